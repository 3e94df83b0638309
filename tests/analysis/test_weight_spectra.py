"""Spectra are those of planted matrices and of chance, and distances are from where they say."""

import math

import pytest
import torch

from interp_gpt2.analysis.weight_spectra import WeightDistance, WeightSpectra, spectrum, weight_matrices
from interp_gpt2.errors import AnalysisError


def test_a_planted_spectrum_is_found():
    draw = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 3, generator=draw, dtype=torch.float64)).Q for n in (40, 7))
    found = spectrum(U * torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64) @ V.T)
    assert found.values.tolist() == pytest.approx([2, 1, 1, 0, 0, 0, 0], abs=1e-9)
    assert found.norm == pytest.approx(6**0.5)
    assert found.stable_rank == pytest.approx(6 / 4)
    assert found.effective_rank == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))


@pytest.mark.parametrize("shape", [(150, 600), (200, 200), (300, 40)])
def test_normal_matrices_have_the_ranks_and_the_largest_value_that_are_said(shape):
    found = spectrum(3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1)))
    assert found.stable_rank == pytest.approx(found.random_stable_rank, rel=0.1)  # laws of large matrices
    assert found.largest == pytest.approx(found.random_largest, rel=0.05)
    assert found.effective_rank == pytest.approx(found.random_effective_rank, rel=0.01)
    assert found.shape == shape


def test_every_weight_is_in_one_matrix(any_model):
    n = sum(weight.numel() for name, weight in any_model.named_parameters() if weight.ndim == 2)
    assert sum(weight.numel() for weight in weight_matrices(any_model).values()) == n
    rows = WeightSpectra()(any_model)
    assert {row["label"] for row in rows} == set(weight_matrices(any_model))


def test_queries_are_the_queries(model):
    W_Q = weight_matrices(model)["blocks.1.W_Q"]
    assert torch.equal(W_Q, model.W_Q[1].transpose(-1, -2).flatten(0, 1))


def test_distance_is_zero_from_itself_and_from_the_start_what_training_made_of_it(markov_run):
    distance = WeightDistance.from_initialisation(markov_run)
    start = {row["value"] for row in distance(markov_run.model(0)) if row["metric"] == "weight_distance"}
    assert start == {0}
    rows = {(row["metric"], row["label"]): row for row in distance(markov_run.model(9))}
    before, after = (markov_run.model(step).W_E.detach() for step in (0, 9))
    assert rows["weight_distance", "W_E"]["value"] == pytest.approx(float((after - before).norm() / before.norm()))
    assert rows["weight_cosine", "blocks.1.W_in"]["value"] < 1
    assert rows["weight_cosine", "blocks.1.W_in"]["layer"] == 1
    assert rows["weight_cosine_random", "W_E"]["value"] == pytest.approx(1 / math.sqrt(before.numel()))


def test_an_unrelated_matrix_is_as_far_as_is_said(model, make_gpt2, config):
    start = {name: weight / 3 for name, weight in weight_matrices(make_gpt2(config, 1)).items()}
    distance = WeightDistance(start, "another seed, and smaller")
    rows = {(row["metric"], row["label"]): row["value"] for row in distance(model)}
    for name in ("blocks.0.W_in", "blocks.1.W_out", "W_E"):
        assert rows["weight_distance", name] == pytest.approx(rows["weight_distance_unrelated", name], rel=0.05)


def test_another_shape_or_a_diverged_model_is_refused(model, markov_run):
    with pytest.raises(AnalysisError, match="step 9 has no W_E"):
        WeightDistance.from_step(markov_run, 9)(model)
    with torch.no_grad():
        model.wte.weight[0, 0] = math.nan
    with pytest.raises(AnalysisError, match="diverged"):
        WeightSpectra()(model)
