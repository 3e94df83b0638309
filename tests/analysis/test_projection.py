"""Products with directions are those of the stacks they spare, and the stacks are never formed."""

import pytest
import torch

from interp_gpt2.analysis import residual
from interp_gpt2.analysis.projection import (
    Directions,
    behind_layer_norm,
    project_full_decomposition,
    project_heads,
    project_neuron_stack,
    project_neurons,
)
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, HookNameError

SHAPES = {
    "ordinary": {}, "attention only": {"attn_only": True}, "no layer norm": {"layer_norm": False}, "no biases": {"bias": False},
}  # fmt: skip


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def any_model(request, make_gpt2):
    return make_gpt2(GPT2Config(**({"n_layers": 2, "n_heads": 4, "d_model": 32, "d_vocab": 50, "n_ctx": 16} | request.param)))


def onto_of(model, cache, behind, layer, mlp_input=False, positions=None):
    given = torch.randn(32, 3, generator=torch.Generator().manual_seed(2))
    onto = behind_layer_norm(model, cache, given, layer, mlp_input, positions) if behind else Directions(given)
    return given, onto


def same_products(found, stack, given, behind, model, cache, layer, mlp_input=False):
    stack = residual.apply_ln_to_stack(model, cache, stack, layer, mlp_input) if behind else stack
    assert found.labels == stack.labels
    torch.testing.assert_close(found.values, stack.values @ given, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("behind", [False, True], ids=["in the stream", "behind the layer norm"])
@pytest.mark.parametrize("layer", [None, 0, 1])
@pytest.mark.parametrize("positions", [None, -1, [0, 3]], ids=str)
def test_products_are_those_of_the_full_decomposition(any_model, tokens, behind, layer, positions):
    _, cache = any_model.run_with_cache(tokens)
    for expand in (True, False):
        for mlp_input in (False, True):
            if mlp_input and (layer is None or any_model.config.attn_only):
                continue
            given, onto = onto_of(any_model, cache, behind, layer, mlp_input, positions)
            choice = (layer, mlp_input, expand, positions)
            found = project_full_decomposition(any_model, cache, onto, *choice)
            stack = residual.get_full_resid_decomposition(any_model, cache, *choice)
            same_products(found, stack, given, behind, any_model, cache, layer, mlp_input)


@pytest.mark.parametrize("behind", [False, True], ids=["in the stream", "behind the layer norm"])
@pytest.mark.parametrize("neurons", [None, 5, slice(3, 9), [1, 7]], ids=str)
def test_products_are_those_of_neurons(model, tokens, behind, neurons):
    _, cache = model.run_with_cache(tokens)
    for layer in (None, 0, 1):
        given, onto = onto_of(model, cache, behind, layer)
        for remainder in (False, True):
            found = project_neuron_stack(model, cache, onto, layer, neurons, None, remainder)
            stack = residual.stack_neuron_results(model, cache, layer, neurons, None, remainder)
            same_products(found, stack, given, behind, model, cache, layer)


def test_products_of_heads_are_the_same_from_result_and_from_z(model, tokens):
    _, with_result = model.run_with_cache(tokens, ["*result"])
    _, with_z = model.run_with_cache(tokens, ["*z"])
    onto = Directions(model.W_U[:, :4])
    for layer in range(2):
        one, other = project_heads(model, with_result, onto, layer), project_heads(model, with_z, onto, layer)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    with pytest.raises(HookNameError, match="not recorded"):
        project_neurons(model, with_z, onto, 0)
    with pytest.raises(AnalysisError, match="500"):
        project_neurons(model, with_z, onto, 0, neurons=[500])


@torch.no_grad()
@pytest.mark.parametrize("behind", [False, True], ids=["in the stream", "behind the layer norm"])
def test_nothing_as_large_as_a_stack_is_ever_made(model, tokens, behind, largest_made):
    _, cache = model.run_with_cache(tokens)
    _, onto = onto_of(model, cache, behind, None)
    known = max(tensor.untyped_storage().nbytes() for tensor in (*cache.values(), *model.parameters()))
    with largest_made() as largest:
        found = project_full_decomposition(model, cache, onto)
        project_neuron_stack(model, cache, onto)
    stack = found.values[..., 0].numel() * model.config.d_model * 4
    assert largest.n_bytes <= max(found.values.numel() * 4, known) < stack / 4
    with largest_made() as largest:
        residual.get_full_resid_decomposition(model, cache)
    assert largest.n_bytes == stack
