"""A cache is a mapping with TransformerLens's keys."""

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import HookNameError


@pytest.fixture
def cache(model, tokens):
    with torch.no_grad():
        return model.run_with_cache(tokens)[1]


@pytest.mark.parametrize(
    "key",
    ["blocks.1.attn.pattern", "blocks.1.attn.hook_pattern", ("pattern", 1), ("pattern", -1), ("attn", 1), ("pattern", 1, "attn")],
)
def test_every_spelling_of_a_key_is_the_same_tensor(cache, key):
    assert cache[key] is cache["blocks.1.attn.pattern"]
    assert key in cache


def test_keys_without_a_layer_are_those_at_the_ends(cache):
    assert cache["scale"] is cache["ln_final.scale"]
    assert cache["hook_embed"] is cache["embed"]
    assert cache["normalized", 0, "ln2"] is cache["blocks.0.ln2.normalized"]


def test_it_is_a_mapping_in_the_order_of_the_pass(cache):
    assert next(iter(cache)) == "embed"
    assert list(cache)[-1] == "unembed.out"
    assert len(dict(cache)) == len(cache) == 40


def test_stack_puts_layers_first(cache):
    stacked = cache.stack("resid_post")
    assert stacked.shape == (2, 2, 12, 32)
    assert torch.equal(stacked[1], cache["resid_post", 1])
    assert torch.equal(cache.stack("scale", "ln2")[0], cache["scale", 0, "ln2"])


def test_batch_keeps_the_batch_axis(cache):
    assert torch.equal(cache.batch(1)["z", 0], cache["z", 0][1:])
    assert torch.equal(cache.batch(slice(0, 1))["z", 0], cache["z", 0][:1])
    assert torch.equal(cache.batch([1, 0])["embed"], cache["embed"].flip(0))
    with pytest.raises(HookNameError, match="no sequence 2 in a batch of 2"):
        cache.batch(2)


def test_to_changes_a_copy(cache):
    half = cache.to(dtype=torch.float16)
    assert half["z", 0].dtype == torch.float16
    assert cache["z", 0].dtype == torch.float32


def test_what_was_not_recorded_says_what_to_add(model, tokens):
    _, cache = model.run_with_cache(tokens, "*attn_out")
    with pytest.raises(HookNameError, match=r"'blocks\.0\.attn\.z' was not recorded among 2 activations; add it to names="):
        cache["z", 0]
    with pytest.raises(HookNameError, match="there is no layer 2; the model's layers are 0 to 1"):
        cache["z", 2]
    with pytest.raises(HookNameError, match="this cache is empty"):
        model.run_with_cache(tokens, ())[1]["embed"]


@pytest.mark.parametrize("wrong", [5, None, (), (0, "z"), ("z", 0, 1), ("z", 0.5), ("z", 0, "attn", 1), ["z", 0]])
def test_what_is_no_key_is_an_error_and_not_in_it(cache, wrong):
    assert wrong not in cache
    with pytest.raises(HookNameError):
        cache[wrong]


def test_nothing_is_stacked_of_a_model_without_layers(make_gpt2, tokens):
    cache = make_gpt2(GPT2Config(n_layers=0, n_heads=2, d_model=8, d_vocab=50, n_ctx=16)).run_with_cache(tokens)[1]
    with pytest.raises(HookNameError, match="no layers"):
        cache.stack("z")


def test_printing_it_shows_names_and_shapes(cache):
    table = repr(cache)
    assert "40 activations, 2 layers" in table
    assert "blocks.{layer}.attn.pattern      (2, 4, 12, 12) float32  layers 0-1" in table
    assert len(table.splitlines()) == 24
