"""Shares of a logit add up to it and are what removing a part changes; TransformerLens's numbers where it has them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interp_gpt2.analysis.logit_attribution import direct_logit_attribution, logit_attrs, project_resid
from interp_gpt2.analysis.residual import decompose_resid, get_full_resid_decomposition, stack_head_results
from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.transformer_lens import to_hooked_transformer
from interp_gpt2.errors import AnalysisError, HookNameError, TokenError
from interp_gpt2.folding import fold_layer_norm, process_weights

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
SHAPES = {
    "ordinary": {},
    "no biases": {"bias": False},
    "no layer norm": {"layer_norm": False},
    "unembedding bias": {"tied": False, "unembed_bias": True},
    "attention only": {"attn_only": True},
    "no layers": {"n_layers": 0},
}
PARTS = ("layers", "heads", "neurons")


def config_with(changes):
    return GPT2Config(**({"n_layers": 2, "n_heads": 4, "d_model": 24, "d_mlp": 20, "d_vocab": 50, "n_ctx": 16} | changes))


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def any_model(request, make_gpt2):
    return make_gpt2(config_with(request.param)).requires_grad_(False)


@pytest.fixture
def model(make_gpt2):
    return make_gpt2(config_with({})).requires_grad_(False)


@pytest.fixture
def targets():
    return torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(8))


# Direct logit attribution ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", PARTS)
def test_shares_add_up_to_the_logit_and_the_residue_says_how_well(any_model, tokens, targets, parts):
    logits, cache = any_model.run_with_cache(tokens)
    found = direct_logit_attribution(any_model, cache, targets, parts=parts)
    exact = logits.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(found.logits, exact, atol=0, rtol=0)
    torch.testing.assert_close(found.values.sum(0), exact, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.values.sum(0) + found.residue, exact)
    assert found.residue.abs().max() < 1e-4
    assert len(found.labels) == len(set(found.labels)) == len(found.values)


@pytest.mark.parametrize("parts", PARTS)
def test_shares_of_a_difference_are_differences_of_shares(any_model, tokens, targets, parts):
    _, cache = any_model.run_with_cache(tokens)
    difference = direct_logit_attribution(any_model, cache, targets, 7, parts=parts)
    right, wrong = (direct_logit_attribution(any_model, cache, ids, parts=parts) for ids in (targets, 7))
    torch.testing.assert_close(difference.values, right.values - wrong.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(difference.logits, right.logits - wrong.logits)


@pytest.mark.parametrize("label", ["embed", "0_attn_out", "1_mlp_out", "L0H3", "L1N17"])
def test_a_share_is_what_removing_the_part_from_the_last_stream_changes(model, tokens, label):
    """With the final scale held still: the causal meaning of a direct effect."""
    logits, cache = model.run_with_cache(tokens)
    stack = get_full_resid_decomposition(model, cache) if label[0] == "L" else decompose_resid(model, cache)
    edits = {
        ("resid_post", -1): lambda value, site: value - stack[label],
        "ln_final.scale": lambda value, site: cache["ln_final.scale"],
    }
    without = model.run_with_edits(tokens, edits)
    found = direct_logit_attribution(model, cache, 7, parts="neurons" if label[0] == "L" else "layers")
    share = found.values[found.labels.index(label)]
    torch.testing.assert_close((logits - without)[..., 7], share, atol=1e-4, rtol=1e-4)


def test_layers_are_sums_of_their_heads_neurons_and_biases(model, tokens, targets):
    _, cache = model.run_with_cache(tokens)
    layers, heads, neurons = (direct_logit_attribution(model, cache, targets, parts=parts) for parts in PARTS)
    assert layers.labels == ("embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out", "logit_bias")
    assert heads.labels[8:] == ("0_mlp_out", "1_mlp_out", "embed", "pos_embed", "bias", "logit_bias")
    assert neurons.labels[8 + 40 :] == ("embed", "pos_embed", "bias", "logit_bias")
    for coarse, fine in [(layers, heads), (heads, neurons)]:
        torch.testing.assert_close(coarse.values.sum(0), fine.values.sum(0), atol=1e-5, rtol=1e-5)
    attn = layers.values[[2, 4]].sum(0)
    torch.testing.assert_close(heads.values[:8].sum(0) + heads.values[-2], attn, atol=1e-5, rtol=1e-5)


def test_folding_moves_nothing_between_the_parts(model, tokens, targets):
    """Shares need no folding: those of a folded model, whose gain is 1, are the same."""
    _, cache = model.run_with_cache(tokens)
    folded = fold_layer_norm(model)
    _, folded_cache = folded.run_with_cache(tokens)
    for parts in PARTS:
        ours = direct_logit_attribution(model, cache, targets, parts=parts).values
        theirs = direct_logit_attribution(folded, folded_cache, targets, parts=parts).values
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_an_edit_of_the_stream_itself_is_the_residue(model, tokens):
    edits = {("resid_post", 1): lambda value, site: value + 1.0 * torch.arange(24)}
    _, cache = model.run_with_cache(tokens, edits=edits)
    found = direct_logit_attribution(model, cache, 7)
    added = torch.arange(24.0) - 11.5
    by_hand = (added * model.ln_final.weight) @ model.W_U[:, 7] / cache["ln_final.scale"][..., 0]
    torch.testing.assert_close(found.residue, by_hand, atol=1e-4, rtol=1e-4)


def test_one_token_one_for_each_sequence_and_one_for_each_position(model, tokens, targets):
    _, cache = model.run_with_cache(tokens)
    whole = direct_logit_attribution(model, cache, targets).values
    some = direct_logit_attribution(model, cache, targets[:, [3, 11]], positions=[3, 11]).values
    torch.testing.assert_close(some, whole[:, :, [3, 11]])
    last = direct_logit_attribution(model, cache, targets[:, -1], positions=-1).values
    torch.testing.assert_close(last, whole[:, :, -1:])
    for row in range(2):
        one = direct_logit_attribution(model, cache, int(targets[row, -1])).values
        torch.testing.assert_close(one[:, row, -1], whole[:, row, -1])


def test_nothing_as_large_as_a_stack_ever_exists(model, tokens):
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.numbers = max(self.numbers, out.untyped_storage().nbytes() // out.element_size())
            return out

    _, cache = model.run_with_cache(tokens)
    with Largest() as largest:
        found = direct_logit_attribution(model, cache, 7, parts="neurons")
    assert largest.numbers <= max(found.values.numel(), 2 * 12 * 50)


# TransformerLens's ----------------------------------------------------------------------------------------------------


@pytest.mark.hooked_transformer
@pytest.mark.parametrize("processed", [False, True], ids=["as converted", "processed"])
def test_logit_attrs_are_transformer_lenss(any_model, tokens, targets, processed):
    model = process_weights(any_model).requires_grad_(False) if processed else any_model
    _, cache = model.run_with_cache(tokens)
    _, theirs = to_hooked_transformer(model).run_with_cache(tokens)
    wrong = targets.flip(1)
    for stack in (decompose_resid(model, cache), stack_head_results(model, cache, incl_remainder=True)):
        for pair in [(7, None), (7, 9), (targets, None), (targets, wrong)]:
            expected = theirs.logit_attrs(stack.values, *pair)
            torch.testing.assert_close(logit_attrs(model, cache, stack, *pair), expected, atol=1e-5, rtol=1e-4)
    last = decompose_resid(model, cache, positions=-1)
    expected = theirs.logit_attrs(last.values[:, :, 0], targets[:, -1], wrong[:, -1], pos_slice=-1)
    ours = logit_attrs(model, cache, last, targets[:, -1], wrong[:, -1])[..., 0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_after_folding_logit_attrs_and_direct_attribution_are_one(model, tokens, targets):
    model = process_weights(model).requires_grad_(False)
    _, cache = model.run_with_cache(tokens)
    direct = direct_logit_attribution(model, cache, targets)
    torch.testing.assert_close(logit_attrs(model, cache, decompose_resid(model, cache), targets), direct.values[:-1])
    torch.testing.assert_close(direct.values[-1], model.b_U[targets])


@pytest.mark.hooked_transformer
@pytest.mark.parametrize("parts", ["heads", "neurons"])
def test_projections_are_transformer_lenss(model, tokens, parts):
    _, cache = model.run_with_cache(tokens)
    _, theirs = to_hooked_transformer(model).run_with_cache(tokens)
    direction = torch.randn(24, generator=torch.Generator().manual_seed(0))
    for layer in (None, 1):
        args = {"expand_neurons": parts == "neurons", "project_output_onto": direction, "return_labels": True}
        values, labels = theirs.get_full_resid_decomposition(layer, **args)
        ours = project_resid(model, cache, direction, parts, layer)
        assert list(ours.labels) == labels
        torch.testing.assert_close(ours.values, values, atol=1e-5, rtol=1e-4)


# Held wrong -----------------------------------------------------------------------------------------------------------


def test_tokens_that_fit_nothing_are_refused(model, tokens, targets):
    _, cache = model.run_with_cache(tokens)
    for wrong, said in [
        (50, "token 50 is not in the vocabulary: ids are 0 to 49"),
        (torch.tensor([1, -1]), "token -1 is not in the vocabulary"),
        (torch.tensor([1, 2, 3]), r"shape \(3,\); expected ids: one for all, .* \(2,\), or one for each position \(2, 12\)"),
        (1.0, "float32 of shape"),
        (targets[:, :4], "expected ids"),
    ]:
        with pytest.raises(TokenError, match=said):
            direct_logit_attribution(model, cache, wrong)
        with pytest.raises(TokenError, match=said):
            logit_attrs(model, cache, decompose_resid(model, cache), 3, wrong)
    with pytest.raises(AnalysisError, match="parts='mlps' is not one of"):
        direct_logit_attribution(model, cache, 7, parts="mlps")


def test_what_is_missing_in_the_cache_is_named(model, tokens):
    _, cache = model.run_with_cache(tokens, ["embed", "pos_embed", "*attn_out", "*mlp_out", "unembed.out"])
    with pytest.raises(HookNameError, match=r"'ln_final\.scale' was not recorded"):
        direct_logit_attribution(model, cache, 7)
    _, cache = model.run_with_cache(tokens, ["embed", "pos_embed", "*attn_out", "*mlp_out", "ln_final.scale"])
    with pytest.raises(HookNameError, match=r"'unembed\.out' was not recorded"):
        direct_logit_attribution(model, cache, 7)
