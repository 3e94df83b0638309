"""Largest cosines are those of the formed table; planted directions are found, and random ones stay within the yardstick."""

import pytest
import torch
import torch.nn.functional as F

from interp_gpt2.analysis import direction_cosines
from interp_gpt2.analysis.direction_cosines import (
    Directions,
    embedding_directions,
    head_input_directions,
    head_output_directions,
    max_cosines,
    neuron_input_directions,
    neuron_output_directions,
    neuron_self_cosines,
    unembedding_directions,
)
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, ConfigError
from interp_gpt2.model import GPT2


def formed(left, right):
    return F.cosine_similarity(left[:, None], right[None], dim=-1)


@torch.no_grad()
def test_extremes_are_those_of_the_table_of_all_pairs(model):
    others = {
        "embedding": (embedding_directions(model), model.W_E),
        "unembedding": (unembedding_directions(model), model.W_U.T - model.W_U.T.mean(0)),
        "neuron inputs": (neuron_input_directions(model), model.W_in.mT.flatten(0, 1)),
    }
    for right, values in others.values():
        table = formed(model.W_out.flatten(0, 1), values)
        found = max_cosines(neuron_output_directions(model), right, k=4)
        torch.testing.assert_close(found.top_values, table.topk(4).values, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.bottom_values, table.topk(4, largest=False).values, atol=1e-6, rtol=0)
        torch.testing.assert_close(table.gather(1, found.top), found.top_values, atol=1e-6, rtol=0)


@torch.no_grad()
def test_neurons_of_the_same_or_an_earlier_layer_cannot_read_what_is_written(model):
    found = max_cosines(neuron_output_directions(model), neuron_input_directions(model), k=2, later_only=True)
    table = formed(model.W_out[0], model.W_in[1].T)
    torch.testing.assert_close(found.top_values[:128], table.topk(2).values, atol=1e-6, rtol=0)
    assert (found.top[:128] >= 128).all()
    assert (found.top[128:] == -1).all()
    assert found.top_values[128:].isnan().all()
    frame = found.to_frame()
    assert len(frame) == 128 * 2 * 2
    assert set(frame["other"].str[:2]) == {"L1"}


@torch.no_grad()
def test_a_head_is_represented_by_the_direction_it_writes_in_most(model):
    """No unit vector that a head reads comes out longer than along its first output direction."""
    written = head_output_directions(model, n=8)
    read = head_input_directions(model, n=8)
    assert written.labels[:9] == (*(f"L0H0.{i}" for i in range(8)), "L0H1.0")
    values, inputs = written.values.unflatten(0, (2, 4, 8)), read.values.unflatten(0, (2, 4, 8))
    for layer, head in [(0, 0), (1, 3)]:
        OV = model.OV.AB[layer, head]
        _, S, Vh = torch.linalg.svd(OV)
        torch.testing.assert_close((values[layer, head] @ Vh[:8].T).abs(), torch.eye(8), atol=1e-3, rtol=0)
        torch.testing.assert_close((inputs[layer, head] @ OV).norm(dim=1), S[:8], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_neuron_that_writes_a_token_and_one_that_reads_another_are_the_first_rows(model):
    W_U = model.W_U.T - model.W_U.T.mean(0)
    model.blocks[0].mlp.proj.weight[:, 17] = 3 * W_U[42]  # what neuron 17 writes
    model.blocks[1].mlp.fc.weight[5] = -model.blocks[0].mlp.proj.weight[:, 20]  # neuron 5 reads, reversed, what 20 writes
    labels = [f"<{token}>" for token in range(50)]
    first = max_cosines(neuron_output_directions(model), unembedding_directions(model, labels)).to_frame().iloc[0]
    assert (first["label"], first["other"], first["end"]) == ("L0N17", "<42>", "top")
    assert first["value"] == pytest.approx(1, abs=1e-5)
    table = max_cosines(neuron_output_directions(model), neuron_input_directions(model), later_only=True).to_frame()
    first = table.iloc[0]
    assert (first["label"], first["other"], first["end"]) == ("L0N20", "L1N5", "bottom")
    assert first["value"] == pytest.approx(-1, abs=1e-5)
    assert table.iloc[1]["value"] ** 2 < 0.9**2


@torch.no_grad()
def test_random_directions_reach_what_the_yardstick_says():
    """Measured on directions of another seed, against others that crowd around one side."""
    draw = torch.Generator().manual_seed(5)
    crowded = torch.randn(400, 24, generator=draw) + 0.5
    others = Directions(crowded, tuple(map(str, range(400))), torch.zeros(400, dtype=torch.long))
    random = torch.randn(20_000, 24, generator=draw)
    found = max_cosines(Directions(random, tuple(map(str, range(20_000))), torch.zeros(20_000, dtype=torch.long)), others)
    best, worst = found.top_values[:, 0], found.bottom_values[:, 0]
    # A share of 1,000 draws is known within 4 standard errors: 0.5 +- 0.063, 0.01 +- 0.013.
    assert abs((best > found.random_median).double().mean() - 0.5) < 0.063
    assert 0 < (best > found.random_high).double().mean() < 0.023
    assert 0 < (worst < found.random_low).double().mean() < 0.023


@torch.no_grad()
def test_an_untrained_model_stays_within_the_yardstick():
    """Neurons that write in unrelated directions: one in a hundred lies above what one in a hundred random ones does."""
    model = GPT2(GPT2Config(n_layers=2, n_heads=2, d_model=48, d_mlp=500, d_vocab=300, n_ctx=8))
    found = max_cosines(neuron_output_directions(model), unembedding_directions(model))
    assert (found.top_values > found.random_high).double().mean() < 0.01 + 4 * (2 * 0.01 * 0.99 / 1000) ** 0.5


@torch.no_grad()
def test_self_cosines_are_of_each_neurons_own_weights(model):
    model.blocks[1].mlp.proj.weight[:, 3] = -2 * model.blocks[1].mlp.fc.weight[3]
    found = neuron_self_cosines(model)
    assert found[1, 3] == pytest.approx(-1, abs=1e-5)
    by_hand = model.W_in[0, :, 7] @ model.W_out[0, 7] / model.W_in[0, :, 7].norm() / model.W_out[0, 7].norm()
    torch.testing.assert_close(found[0, 7], by_hand)


@torch.no_grad()
def test_no_table_of_all_pairs_is_ever_formed(largest_made):
    draw = torch.Generator().manual_seed(0)
    left, right = (
        Directions(torch.randn(n, 8, generator=draw), tuple(map(str, range(n))), torch.zeros(n, dtype=torch.long))
        for n in (3000, 6000)
    )
    with largest_made() as largest:
        max_cosines(left, right)
    assert largest.n_bytes <= 4 * 2**22 + 64


def test_what_cannot_be_compared_is_refused(model):
    tokens = embedding_directions(model)
    with pytest.raises(AnalysisError, match="width 32 and 16"):
        max_cosines(tokens, Directions(torch.zeros(3, 16), ("a", "b", "c"), torch.zeros(3, dtype=torch.long)))
    with pytest.raises(AnalysisError, match="k=51 must be 1 to the 50"):
        max_cosines(tokens, tokens, k=51)
    with pytest.raises(AnalysisError, match="n=9 must be 1 to 8"):
        head_output_directions(model, 9)
    with pytest.raises(AnalysisError, match="2 labels are not the 50"):
        unembedding_directions(model, ["a", "b"])
    with pytest.raises(ConfigError, match="has no W_out"):
        neuron_output_directions(GPT2(GPT2Config(n_layers=1, n_heads=1, d_model=8, d_vocab=9, n_ctx=4, attn_only=True)))


@pytest.mark.parametrize("later_only", [False, True])
def test_among_themselves_no_direction_is_most_like_itself(model, later_only, monkeypatch):
    neurons = neuron_output_directions(model)
    monkeypatch.setattr(direction_cosines, "_CHUNK", 40 * len(neurons.labels))  # several parts, whose own columns differ
    found = max_cosines(neurons, neuron_output_directions(model), 1, later_only)
    assert (found.top[:, 0] != torch.arange(len(neurons.labels))).all()
    cosines = torch.nn.functional.cosine_similarity(neurons.values[:, None], neurons.values, dim=-1).fill_diagonal_(-2)
    if not later_only:
        torch.testing.assert_close(found.top_values[:, 0], cosines.amax(1))
