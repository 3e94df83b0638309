"""Random patches in random models: the engine gives what whole passes give."""

import random

import pytest
import torch

from interp_gpt2.causal.engine import run_patches
from interp_gpt2.causal.metrics import kl_divergence, logit_difference, probability
from interp_gpt2.causal.patch import HEAD_POINTS, SQUARE_POINTS, Patch
from interp_gpt2.config import GPT2Config
from interp_gpt2.hooks import hook_point_names


@pytest.mark.parametrize("seed", range(40))
def test_random_sets_of_patches_in_random_models_give_what_whole_passes_give(make_gpt2, seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layers=draw.choice([1, 2, 4]), n_heads=draw.choice([1, 2, 3]), d_model=12, d_head=draw.choice([4, 5]), d_vocab=50,
        n_ctx=8, attn_only=draw.random() < 0.3, tied=draw.random() < 0.5,
    )  # fmt: skip
    model, n_pos, n_pairs = make_gpt2(config, seed), draw.choice([1, 2, 5, 8]), draw.choice([1, 3])
    tokens, other = torch.randint(50, (2, n_pairs, n_pos))
    if draw.random() < 0.5:  # the same up to some position
        other[:, : n_pos // 2] = tokens[:, : n_pos // 2]
    mask = random_mask(draw, n_pairs, n_pos)
    with torch.no_grad():
        reference, source = model.run_with_cache(other, "*", attention_mask=mask)
    cells = [cell for _ in range(12) if not contradictory(cell := random_cell(draw, config, source, n_pos))]
    metric = draw.choice([logit_difference(1, 3), kl_divergence(reference, attention_mask=mask), probability(2, pos=0)])
    naive = run_patches(model, tokens, cells, metric, source, mask, naive=True)
    smallest = max(run_patches(model, tokens, [cell], metric, source, mask).bytes_used for cell in cells)
    for budget in (2**30, smallest):
        found = run_patches(model, tokens, cells, metric, source, mask, budget=budget)
        assert (found.values - naive.values).abs().max() <= 1e-5 * max(1, naive.values.abs().max())
        assert torch.equal(found.values[found.skipped], found.base.expand_as(found.values)[found.skipped])


def random_mask(draw: random.Random, n_pairs: int, n_pos: int) -> torch.Tensor | None:
    """None, right or left padding, or two documents in a row."""
    at, lengths = torch.arange(n_pos), torch.randint(1, n_pos + 1, (n_pairs, 1))
    return draw.choice([None, (at < lengths).long(), (at >= n_pos - lengths).long(), 1 + (at < lengths).long()])


def random_cell(draw: random.Random, config: GPT2Config, source: dict, n_pos: int) -> list[Patch]:
    """One to three patches of random pieces, now and then one of them twice."""

    def which(n: int):
        return draw.choice([None, draw.randrange(-n, n), slice(draw.randrange(n), None), [draw.randrange(-n, n), 0]])

    def patch() -> Patch:
        name = draw.choice(hook_point_names(config))
        leaf = name.rpartition(".")[2]
        square = leaf in SQUARE_POINTS
        heads = which(config.n_heads) if square or leaf in HEAD_POINTS else None
        keys = which(n_pos) if square and draw.random() < 0.5 else None
        neurons = which(4) if not square and leaf not in ("scale", "q", "k", "v") and draw.random() < 0.3 else None
        value = source[name].mean((0, 1)) if leaf in ("z", "resid_mid", "mlp_out", "post") and draw.random() < 0.5 else None
        return Patch(name, positions=which(n_pos), heads=heads, keys=keys, neurons=neurons, value=value)

    cell = [patch() for _ in range(draw.choice([1, 1, 2, 3]))]
    return [*cell, cell[0]] if draw.random() < 0.1 else cell


def contradictory(cell: list[Patch]) -> bool:
    """Split inputs of attention do not read an edited ln1: edits of both are refused."""
    leaves = {patch.point.rpartition(".")[2] for patch in cell}
    return bool(leaves & {"attn_in", "q_input", "k_input", "v_input"}) and any("ln1" in patch.point for patch in cell)
