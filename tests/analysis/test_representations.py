"""CKA and subspace overlap keep their promises: what they ignore, what they do not, and what chance gives."""

import math

import pytest
import torch

from interp_gpt2.analysis import representations
from interp_gpt2.analysis.representations import (
    LayerSimilarity,
    SimilarityTo,
    cka_between_steps,
    linear_cka,
    stream_rows,
    subspace_overlap,
)
from interp_gpt2.errors import AnalysisError


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d, seed=1):
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_ignores_rotation_scale_and_shift_and_nothing_else(debiased):
    x = normal(60, 5)
    assert linear_cka(x, 3 * x @ rotation(5) + 2, debiased) == pytest.approx(1)
    assert linear_cka(x, x * torch.tensor([5.0, 1, 1, 1, 1]), debiased) < 0.9


def test_the_debiased_estimator_is_about_zero_for_unrelated_rows_where_the_plain_one_is_not():
    pairs = [(normal(50, 40, seed=i), normal(50, 40, seed=100 + i)) for i in range(30)]
    debiased = torch.tensor([linear_cka(x, y) for x, y in pairs])
    assert abs(float(debiased.mean())) < 4 * float(debiased.std()) / math.sqrt(30)
    assert debiased.abs().max() < 0.2
    assert min(linear_cka(x, y, debiased=False) for x, y in pairs) > 0.3


def test_debiased_hsic_is_the_u_statistic_of_the_kernels():
    x, y = normal(9, 3), normal(9, 4, seed=1)
    n = 9

    def hsic(a, b):
        K, L = a @ a.T, b @ b.T
        K, L = K - K.diag().diag(), L - L.diag().diag()
        return (K * L).sum() + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 * (K.sum(0) @ L.sum(0)) / (n - 2)

    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    assert linear_cka(x, y) == pytest.approx(float(expected))


def test_plain_cka_is_that_of_centred_kernels():
    x, y = normal(9, 3), normal(9, 4, seed=1)
    centre = torch.eye(9, dtype=torch.float64) - 1 / 9
    K, L = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    assert linear_cka(x, y, debiased=False) == pytest.approx(float((K * L).sum() / (K.norm() * L.norm())))


def test_a_planted_angle_between_subspaces_is_found():
    x = torch.zeros(200, 6, dtype=torch.float64)
    x[:, :2] = normal(200, 2)
    turn, angle = torch.eye(6, dtype=torch.float64), 0.4
    turn[1, 1] = turn[4, 4] = math.cos(angle)
    turn[1, 4], turn[4, 1] = math.sin(angle), -math.sin(angle)
    found = subspace_overlap(x, x @ turn, k=2)
    assert found.cosines.tolist() == pytest.approx([1, math.cos(angle)])
    assert found.overlap == pytest.approx((1 + math.cos(angle) ** 2) / 2)
    assert found.explained == pytest.approx((1, 1))


def test_random_subspaces_overlap_by_k_over_d_on_average():
    found = [subspace_overlap(normal(100, 20, seed=i), normal(100, 20, seed=500 + i), k=5) for i in range(60)]
    overlaps = torch.tensor([one.overlap for one in found])
    assert found[0].unrelated == 0.25
    assert abs(float(overlaps.mean()) - 0.25) < 4 * float(overlaps.std()) / math.sqrt(60)


def test_layers_of_a_model_are_compared_beside_shuffled_tokens(model):
    tokens = torch.randint(0, 50, (40, 16), generator=torch.Generator().manual_seed(1))
    rows = LayerSimilarity(tokens, k=4)(model)
    found = {(row["metric"], row.get("label")): row for row in rows}
    streams = stream_rows(model, tokens)
    assert found["cka", "embed~L1"]["value"] == pytest.approx(linear_cka(streams[0], streams[2]))
    assert found["cka", "embed~L1"]["layer"] == 1
    assert abs(found["cka_shuffled", "embed~L1"]["value"]) < 0.5 * found["cka", "embed~L1"]["value"]
    assert found["subspace_overlap_unrelated", None]["value"] == 4 / 32


def test_few_tokens_have_as_many_directions_as_they_can(model):
    rows = LayerSimilarity(torch.arange(5)[None])(model)
    found = {(row["metric"], row.get("label")): row.get("value") for row in rows}
    assert found["subspace_overlap_unrelated", None] == 4 / 32, "five tokens, less their mean"
    assert 0 < found["subspace_overlap", "embed~L0"] <= 1


def test_of_many_tokens_evenly_spaced_ones_are_kept(model, tokens, monkeypatch):
    every = stream_rows(model, tokens)
    monkeypatch.setattr(representations, "MOST_ROWS", 6)
    torch.testing.assert_close(stream_rows(model, tokens, batch_size=1), every[:, [0, 4, 8, 12, 16, 20]])


def test_checkpoints_are_compared_with_one_of_them_and_with_each_other(markov_run):
    tokens = next(markov_run.source().validation(16, 8))[:, :-1]
    last = SimilarityTo.step(markov_run, 9, tokens, k=4)
    rows = [row for row in last(markov_run.model(9)) if row["metric"] in ("cka", "subspace_overlap")]
    assert [row["value"] for row in rows] == pytest.approx([1] * 6)
    assert rows[0]["label"] == "embed~embed of step 9"
    matrix = cka_between_steps(markov_run, [0, 5, 9], tokens)
    assert torch.equal(matrix, matrix.T)
    earlier = {row["label"]: row["value"] for row in last(markov_run.model(0)) if row["metric"] == "cka"}
    assert float(matrix[0, 2]) == pytest.approx(earlier["L1~L1 of step 9"])
    assert matrix[0, 2] < matrix[1, 2] < 1


def test_what_does_not_correspond_is_refused():
    with pytest.raises(AnalysisError, match="4 or more of the same tokens"):
        linear_cka(normal(5, 2), normal(6, 2))
    with pytest.raises(AnalysisError, match="4 or more of the same tokens"):
        linear_cka(normal(3, 2), normal(3, 2))
    with pytest.raises(AnalysisError, match="k=3 directions"):
        subspace_overlap(normal(9, 2), normal(9, 2), k=3)
    assert math.isnan(linear_cka(torch.ones(5, 2), normal(5, 2)))
