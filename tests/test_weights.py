"""Weights under their names in the literature compute what the model computes."""

import pytest
import torch

from interp_gpt2 import GPT2, GPT2Config, weights
from interp_gpt2.errors import ConfigError

NAMES = [name for name in vars(weights) if name.startswith(("W_", "b_"))]
SHAPES = {  # n_layers=2, n_heads=3, d_head=5, d_model=8, d_mlp=7, d_vocab=11, n_ctx=6
    "W_E": (11, 8), "W_pos": (6, 8), "W_U": (8, 11), "b_U": (11,),
    "W_Q": (2, 3, 8, 5), "W_K": (2, 3, 8, 5), "W_V": (2, 3, 8, 5), "W_O": (2, 3, 5, 8),
    "b_Q": (2, 3, 5), "b_K": (2, 3, 5), "b_V": (2, 3, 5), "b_O": (2, 8),
    "W_in": (2, 8, 7), "b_in": (2, 7), "W_out": (2, 7, 8), "b_out": (2, 8),
}  # fmt: skip


def config_of_unequal_sizes(**changes):
    sizes = {"n_layers": 2, "n_heads": 3, "d_head": 5, "d_model": 8, "d_mlp": 7, "d_vocab": 11, "n_ctx": 6}
    return GPT2Config(**(sizes | changes))


@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"tied": False}, {"tied": False, "unembed_bias": True}], ids=str)
def test_every_weight_has_its_shape_with_and_without_biases(make_gpt2, changes):
    model = make_gpt2(config_of_unequal_sizes(**changes))
    assert {name: tuple(getattr(weights, name)(model).shape) for name in NAMES} == SHAPES


def test_a_model_without_blocks_has_weights_without_layers(make_gpt2):
    model = make_gpt2(config_of_unequal_sizes(n_layers=0))
    assert {name: tuple(getattr(weights, name)(model).shape) for name in NAMES[4:]} == {
        name: (0, *SHAPES[name][1:]) for name in NAMES[4:]
    }


def test_every_weight_is_a_property_of_the_model(make_gpt2):
    model = make_gpt2(config_of_unequal_sizes())
    assert all(torch.equal(getattr(model, name), getattr(weights, name)(model)) for name in NAMES)


@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"tied": False}, {"tied": False, "unembed_bias": True}], ids=str)
def test_the_formulas_of_the_literature_hold_between_weights_and_activations(make_gpt2, changes):
    model = make_gpt2(config_of_unequal_sizes(**changes))
    tokens = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens, ["*"])
    for layer, block in enumerate(model.blocks):
        normed = block.ln1(cache["resid_pre", layer])[:, :, None, None]  # (batch, pos, head, 1, d_model)
        for name in "qkv":
            W, b = getattr(model, f"W_{name.upper()}")[layer], getattr(model, f"b_{name.upper()}")[layer]
            assert close((normed @ W).squeeze(-2) + b, cache[name, layer])
        result = (cache["z", layer].unsqueeze(-2) @ model.W_O[layer]).squeeze(-2)
        assert close(result, cache["result", layer])
        assert close(result.sum(2) + model.b_O[layer], cache["attn_out", layer])
        pre = block.ln2(cache["resid_mid", layer]) @ model.W_in[layer] + model.b_in[layer]
        assert close(pre, cache["pre", layer])
        assert close(cache["post", layer] @ model.W_out[layer] + model.b_out[layer], cache["mlp_out", layer])
    assert torch.equal(model.W_E[tokens], cache["embed"])
    assert torch.equal(model.W_pos[:6], cache["pos_embed"][0])
    assert close(cache["unembed.in"] @ model.W_U + model.b_U, cache["unembed.out"])


def test_embeddings_are_views_and_the_rest_are_copies(make_gpt2):
    model = make_gpt2(config_of_unequal_sizes())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name in NAMES[4:]:
        getattr(model, name).data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.W_U.data[:, 4] = 7
    assert (model.wte.weight[4] == 7).all(), "the unembedding is tied to the embedding"


def test_gradients_flow_through_stacked_copies_to_the_model(make_gpt2):
    model = make_gpt2(config_of_unequal_sizes())
    (model.W_Q[1, 2] @ model.W_K[1, 2].T).square().sum().backward()
    gradient = model.blocks[1].attn.qkv.weight.grad.unflatten(0, (3, 3, 5))
    assert (gradient[:2, 2] != 0).all()
    assert (gradient[:, :2] == 0).all(), "other heads"
    assert (gradient[2] == 0).all(), "values"


def test_asking_an_attention_only_model_for_its_mlp_is_an_error_that_says_so(make_gpt2):
    model: GPT2 = make_gpt2(config_of_unequal_sizes(attn_only=True))
    for name in ("W_in", "b_in", "W_out", "b_out"):
        with pytest.raises(ConfigError, match=f"no {name}: its blocks have no MLP"):
            getattr(model, name)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)  # float32, sums of at most 15 products in another order
