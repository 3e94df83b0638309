"""Stacks of the residual stream add up to it, carry TransformerLens's labels, and equal its values one by one."""

import pytest
import torch

from interp_gpt2.analysis.residual import (
    ResidualStack,
    accumulated_resid,
    apply_ln_to_stack,
    decompose_resid,
    get_full_resid_decomposition,
    get_neuron_results,
    renormalise_stack,
    stack_activation,
    stack_head_results,
    stack_neuron_results,
)
from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.transformer_lens import to_hooked_transformer
from interp_gpt2.errors import AnalysisError, HookNameError

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
SHAPES = {
    "ordinary": {},
    "no biases": {"bias": False},
    "no layer norm": {"layer_norm": False},
    "narrow heads": {"n_heads": 3, "d_head": 5},
    "attention only": {"attn_only": True},
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def model(request, make_gpt2):
    config = {"n_layers": 3, "n_heads": 4, "d_model": 24, "d_mlp": 20, "d_vocab": 50, "n_ctx": 16} | request.param
    return make_gpt2(GPT2Config(**config)).requires_grad_(False)


@pytest.fixture
def cache(model, tokens):
    return model.run_with_cache(tokens)[1]


@pytest.fixture
def one_model(make_gpt2):
    return make_gpt2(GPT2Config(n_layers=2, n_heads=4, d_model=24, d_vocab=50, n_ctx=16)).requires_grad_(False)


@pytest.fixture
def theirs(model, tokens):
    return to_hooked_transformer(model).run_with_cache(tokens)[1]


def assert_same(stack: ResidualStack, labelled: tuple) -> None:
    """By value, order and label. Values within float32 rounding: here sums of tens of products in another order."""
    values, labels = labelled
    assert list(stack.labels) == labels
    torch.testing.assert_close(stack.values, values, atol=2e-5, rtol=1e-5)


# Against TransformerLens ----------------------------------------------------------------------------------------------


@pytest.mark.hooked_transformer
def test_states_of_the_stream_are_transformer_lenss(model, cache, theirs):
    for layer in (None, 0, 1, 3):
        assert_same(accumulated_resid(model, cache, layer), theirs.accumulated_resid(layer, return_labels=True))
    if model.config.attn_only:
        return
    mid = theirs.accumulated_resid(2, incl_mid=True, return_labels=True)
    assert_same(accumulated_resid(model, cache, 2, incl_mid=True), mid)
    mid = theirs.accumulated_resid(1, incl_mid=True, mlp_input=True, return_labels=True)
    assert_same(accumulated_resid(model, cache, 1, incl_mid=True, mlp_input=True), mid)


@pytest.mark.hooked_transformer
def test_a_renormalised_stack_is_transformer_lenss_logit_lens(model, cache, theirs):
    ours = renormalise_stack(model, accumulated_resid(model, cache))
    assert_same(ours, theirs.accumulated_resid(apply_ln=True, return_labels=True))
    torch.testing.assert_close(ours.values[-1] @ model.W_U + model.b_U, cache["unembed.out"], atol=1e-5, rtol=1e-5)


@pytest.mark.hooked_transformer
@pytest.mark.parametrize("mode", ["all", "attn", "mlp"])
def test_parts_by_layer_are_transformer_lenss(model, cache, theirs, mode):
    for layer in (None, 0, 2):
        assert_same(decompose_resid(model, cache, layer, mode), theirs.decompose_resid(layer, mode=mode, return_labels=True))
    if not model.config.attn_only:
        mlp_input = theirs.decompose_resid(1, mlp_input=True, mode=mode, return_labels=True)
        assert_same(decompose_resid(model, cache, 1, mode, mlp_input=True), mlp_input)


@pytest.mark.hooked_transformer
def test_heads_are_transformer_lenss_from_z_and_from_recorded_results(model, tokens, cache, theirs):
    _, with_results = model.run_with_cache(tokens, ["*result", "*resid_post"])
    for ours in (cache, with_results):
        for layer in (None, 1):
            for remainder in (False, True):
                labelled = theirs.stack_head_results(layer, return_labels=True, incl_remainder=remainder)
                assert_same(stack_head_results(model, ours, layer, incl_remainder=remainder), labelled)


@pytest.mark.hooked_transformer
def test_neurons_are_transformer_lenss(model, cache, theirs):
    if model.config.attn_only:
        return
    for neurons in (None, slice(3, 17, 2), [7, 0, 19]):
        for layer in (None, 2):
            for remainder in (False, True):
                args = {"neuron_slice": neurons, "incl_remainder": remainder, "return_labels": True}
                stack = stack_neuron_results(model, cache, layer, neurons, incl_remainder=remainder)
                assert_same(stack, theirs.stack_neuron_results(layer, **args))
        one_layer = get_neuron_results(model, cache, 1, neurons)
        torch.testing.assert_close(one_layer, theirs.get_neuron_results(1, neurons), atol=1e-6, rtol=1e-5)


@pytest.mark.hooked_transformer
@pytest.mark.parametrize("expand_neurons", [True, False])
def test_full_decompositions_are_transformer_lenss(model, cache, theirs, expand_neurons):
    if model.config.attn_only and expand_neurons:
        return  # there it looks for MLPs and fails
    cases = [(None, False), (1, False), (0, False)] + [(1, True)] * (not model.config.attn_only)
    for layer, mlp_input in cases:
        labelled = theirs.get_full_resid_decomposition(layer, mlp_input, expand_neurons, return_labels=True)
        assert_same(get_full_resid_decomposition(model, cache, layer, mlp_input, expand_neurons), labelled)


@pytest.mark.hooked_transformer
def test_frozen_layer_norm_on_stacks_is_transformer_lenss(model, cache, theirs):
    stack = decompose_resid(model, cache, 1)
    for layer, mlp_input in [(None, False), (1, False)] + [(1, True)] * (not model.config.attn_only):
        ours = apply_ln_to_stack(model, cache, stack, layer, mlp_input)
        torch.testing.assert_close(ours.values, theirs.apply_ln_to_stack(stack.values, layer, mlp_input), atol=1e-5, rtol=1e-5)
        assert ours.labels == stack.labels


@pytest.mark.hooked_transformer
def test_stacked_activations_are_transformer_lenss(model, cache, theirs):
    for name, layer, scope in [("pattern", None, None), ("z", 2, None)] + [("scale", None, "ln1")] * model.config.layer_norm:
        ours = stack_activation(cache, name, layer, scope)
        torch.testing.assert_close(ours, theirs.stack_activation(name, layer, scope), atol=1e-5, rtol=1e-5)


# Identities -----------------------------------------------------------------------------------------------------------


def test_every_decomposition_adds_up_to_the_stream(model, cache):
    for layer in range(4):
        stream = accumulated_resid(model, cache, layer).values[-1]
        wholes = [
            decompose_resid(model, cache, layer),
            get_full_resid_decomposition(model, cache, layer),
            get_full_resid_decomposition(model, cache, layer, expand_neurons=False),
            stack_head_results(model, cache, layer, incl_remainder=True),
        ]
        if not model.config.attn_only:
            wholes.append(stack_neuron_results(model, cache, layer, [1, 2], incl_remainder=True))
        for whole in wholes:
            torch.testing.assert_close(whole.values.sum(0), stream, atol=2e-5, rtol=1e-5)
            assert len(whole.labels) == len(whole.values) == len(set(whole.labels))


def test_parts_behind_a_frozen_layer_norm_add_up_to_what_the_layer_reads(model, cache):
    if not model.config.layer_norm:
        return
    full = get_full_resid_decomposition(model, cache, 2)
    total = apply_ln_to_stack(model, cache, full, 2).values.sum(0)
    torch.testing.assert_close(total, cache["blocks.2.ln1.normalized"], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", [slice(2, 5), [0, 7, -1], -1, slice(None, None, 4)], ids=str)
def test_positions_are_those_of_the_whole_stack(model, cache, positions):
    columns = [positions] if isinstance(positions, int) else positions
    for function in (accumulated_resid, decompose_resid, stack_head_results, get_full_resid_decomposition):
        whole, some = function(model, cache), function(model, cache, positions=positions)
        torch.testing.assert_close(some.values, whole.values[:, :, columns])
        ours = apply_ln_to_stack(model, cache, some).values
        torch.testing.assert_close(ours, apply_ln_to_stack(model, cache, whole).values[:, :, columns], atol=1e-6, rtol=1e-5)


def test_a_component_is_found_by_its_label(model, cache):
    stack = decompose_resid(model, cache)
    assert torch.equal(stack["2_attn_out"], cache["attn_out", 2])
    assert torch.equal(stack["embed"], cache["embed"])
    with pytest.raises(AnalysisError, match=r"no component is labelled '3_attn_out'; the labels are embed, pos_embed"):
        stack["3_attn_out"]


def test_only_what_is_asked_for_need_be_recorded(one_model, tokens):
    last = one_model.run_with_cache(tokens, ["*attn.z", "*resid_post"], keep=lambda value: value[:, -1:])[1]
    whole = one_model.run_with_cache(tokens)[1]
    ours = stack_head_results(one_model, last, incl_remainder=True).values
    torch.testing.assert_close(ours, stack_head_results(one_model, whole, positions=-1, incl_remainder=True).values)


def test_a_model_of_no_layers_has_a_stream_too(make_gpt2, tokens):
    model = make_gpt2(GPT2Config(n_layers=0, n_heads=4, d_model=24, d_vocab=50, n_ctx=16))
    _, cache = model.run_with_cache(tokens)
    stack = accumulated_resid(model, cache)
    assert stack.labels == ("final_post",)
    torch.testing.assert_close(model.unembed(stack.values[0]), cache["unembed.out"])
    assert get_full_resid_decomposition(model, cache).labels == ("embed", "pos_embed", "bias")
    assert stack_head_results(model, cache).values.shape == (0, 2, 12, 24)


def test_derivatives_flow_through_stacks_to_recorded_activations(one_model, tokens):
    one_model.requires_grad_(True)
    _, cache = one_model.run_with_cache(tokens)
    stack = stack_head_results(one_model, cache)
    (gradient,) = torch.autograd.grad(stack["L1H2"].sum(), cache["z", 1])
    torch.testing.assert_close(gradient[0, 0, 2], one_model.W_O[1, 2].sum(1))
    assert not gradient[:, :, :2].any()


# Held wrong -----------------------------------------------------------------------------------------------------------


def test_what_is_missing_in_the_cache_is_named(one_model, tokens):
    _, cache = one_model.run_with_cache(tokens, ["*attn_out", "embed"])
    with pytest.raises(HookNameError, match="'pos_embed' was not recorded among 3 activations; add it to names="):
        decompose_resid(one_model, cache)
    with pytest.raises(HookNameError, match=r"'blocks\.0\.attn\.z' was not recorded"):
        stack_head_results(one_model, cache)
    with pytest.raises(HookNameError, match=r"'blocks\.0\.mlp\.post' was not recorded"):
        stack_neuron_results(one_model, cache)
    with pytest.raises(HookNameError, match=r"'blocks\.0\.resid_pre' was not recorded"):
        accumulated_resid(one_model, cache)
    with pytest.raises(HookNameError, match=r"'ln_final\.scale' was not recorded"):
        apply_ln_to_stack(one_model, cache, ResidualStack(cache["embed"][None], ("embed",)))


def test_layers_positions_and_caches_that_do_not_fit_are_refused(one_model, make_gpt2, tokens):
    _, cache = one_model.run_with_cache(tokens)
    with pytest.raises(AnalysisError, match="layer=-1 must be 0 to 2, or None"):
        accumulated_resid(one_model, cache, -1)
    with pytest.raises(AnalysisError, match="mlp_input=True with layer=2"):
        decompose_resid(one_model, cache, None, mlp_input=True)
    with pytest.raises(AnalysisError, match="mode='heads' is not one of"):
        decompose_resid(one_model, cache, mode="heads")
    with pytest.raises(AnalysisError, match="12 is not among the 12 positions"):
        accumulated_resid(one_model, cache, positions=[0, 12])
    with pytest.raises(AnalysisError, match="96 is not among"):
        get_neuron_results(one_model, cache, 0, [96])
    with pytest.raises(AnalysisError, match=r"leaves nothing to stack; pass 1 to 2"):
        stack_activation(cache, "z", 0)
    kept = one_model.run_with_cache(tokens, keep=lambda value: value[:, -1])[1]
    with pytest.raises(AnalysisError, match=r"'resid_pre' was kept with shape \(2, 24\); expected 3 axes"):
        accumulated_resid(one_model, kept)
    toy = make_gpt2(GPT2Config(n_layers=1, n_heads=4, d_model=24, d_vocab=50, n_ctx=16, attn_only=True))
    with pytest.raises(AnalysisError, match="the cache is of a model with 2 layers, this one has 1"):
        accumulated_resid(toy, cache)
    _, cache = toy.run_with_cache(tokens)
    with pytest.raises(AnalysisError, match="has no neurons"):
        stack_neuron_results(toy, cache)
    with pytest.raises(AnalysisError, match="no stream between attention and MLP"):
        accumulated_resid(toy, cache, incl_mid=True)
