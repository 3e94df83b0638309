"""Without its residual connections a model is the plain composition of its sub-layers."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from interp_gpt2.causal.ablation import without_residual
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, EditError
from interp_gpt2.hooks import NO_HOOKS
from interp_gpt2.model import GPT2

SHAPE = {"n_layers": 3, "n_heads": 2, "d_model": 16, "d_vocab": 20, "n_ctx": 8}
TOKENS = torch.randint(20, (2, 8), generator=torch.Generator().manual_seed(0))


def composed(model: GPT2, tokens: torch.Tensor) -> torch.Tensor:
    """Every sub-layer's output is the next one's input, by hand."""
    stream = model.embed(tokens)
    for block in model.blocks:
        stream = block.attn(block.qkv(stream, NO_HOOKS), NO_HOOKS, None)
        if not model.config.attn_only:
            stream = block.mlp(block.ln2(stream), NO_HOOKS)
    return model.unembed(stream)


@pytest.mark.parametrize("option", [{}, {"attn_only": True}, {"layer_norm": False}], ids=str)
def test_sub_layers_replace_the_stream(option):
    model = GPT2(GPT2Config(**SHAPE, **option), seed=1)
    edited = model.with_edits(without_residual(model.config))
    torch.testing.assert_close(edited(TOKENS), composed(model, TOKENS))
    assert not torch.allclose(edited(TOKENS), model(TOKENS))


def test_gradients_are_those_of_the_composition():
    model = GPT2(GPT2Config(**SHAPE), seed=1)
    found = []
    for logits in (model.with_edits(without_residual(model.config))(TOKENS), composed(model, TOKENS)):
        found.append(torch.autograd.grad(logits.square().sum(), list(model.parameters()), allow_unused=True))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_threads_do_not_mix():
    edited = GPT2(GPT2Config(**SHAPE), seed=1).with_edits(without_residual(GPT2Config(**SHAPE)))
    inputs = [TOKENS.roll(n, 1) for n in range(8)]
    alone = [edited(tokens) for tokens in inputs]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(*pair) for _ in range(20) for pair in zip(pool.map(edited, inputs), alone, strict=True))


def test_a_model_without_layers_is_refused():
    with pytest.raises(AnalysisError, match="without layers"):
        without_residual(GPT2Config(n_layers=0))


@pytest.mark.parametrize("point", ["attn_out", "mlp_out"])
def test_an_edit_of_what_a_sub_layer_writes_is_what_replaces_the_stream(point):
    model = GPT2(GPT2Config(**SHAPE), seed=1)
    edited = model.with_edits(without_residual(model.config))
    _, cache = edited.run_with_cache(TOKENS, "*", {(point, 1): lambda value, site: value * 2})
    ends = "resid_mid" if point == "attn_out" else "resid_post"
    assert torch.equal(cache[ends, 1], cache[point, 1])
    together = without_residual(model.config) | {(point, 1): lambda value, site: value * 2}
    torch.testing.assert_close(model.run_with_edits(TOKENS, together), cache["unembed.out"])


def test_an_edit_in_the_place_of_its_own_is_refused():
    model = GPT2(GPT2Config(**SHAPE), seed=1)
    with pytest.raises(EditError, match="was not remembered"):
        model.run_with_edits(TOKENS, without_residual(model.config) | {"*.attn_out": lambda value, site: value})


def test_a_copy_of_the_model_is_without_residual_too():
    edited = GPT2(GPT2Config(**SHAPE), seed=1).with_edits(without_residual(GPT2Config(**SHAPE)))
    assert torch.equal(copy.deepcopy(edited)(TOKENS), edited(TOKENS))
