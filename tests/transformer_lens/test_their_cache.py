"""Every method of TransformerLens's own ActivationCache, over our activations and our model, gives what ours gives."""

from pathlib import Path

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.folding import process_weights
from interp_gpt2.transformer_lens import HookedTransformer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
TEXTS = ["When John and Mary went to the shops", "When Mary and John went to the shops"]
POSITIONS = [None, -1, (1, 4), [0, 2]]
ONLY_THERE = {  # of state-space models, and (in 4.3) the logit lens, which test_protocols.py runs
    "ssm_layers", "compute_ssm_state", "compute_ssm_effective_attention", "logit_lens",
}  # fmt: skip


def both_caches(model, texts=TEXTS, **options):
    from transformer_lens.ActivationCache import ActivationCache

    _, ours = model.run_with_cache(texts, **options)
    return ours, ActivationCache(dict(ours.cache_dict), model, ours.has_batch_dim)


def same(found, expected):
    """Within 1e-5 as everywhere, and labels exactly."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    elif isinstance(expected, (tuple, list)):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == expected


@pytest.fixture(params=["processed", "unprocessed", "attention only", "no layer norm"])
def model(request, tokenizer, make_gpt2):
    changes = {"attention only": {"attn_only": True}, "no layer norm": {"layer_norm": False}}.get(request.param, {})
    gpt2 = make_gpt2(GPT2Config(n_layers=2, n_heads=4, d_model=32, d_vocab=len(tokenizer), n_ctx=48, **changes))
    folded = request.param == "processed"
    return HookedTransformer.from_gpt2(process_weights(gpt2) if folded else gpt2, tokenizer, folded=folded)


def streams(cache, pos, apply_ln):
    given = {"pos_slice": pos, "apply_ln": apply_ln, "return_labels": True}
    found = []
    for layer in (None, -1, 1):
        found += [cache.accumulated_resid(layer, **given), cache.decompose_resid(layer, **given)]
        found += [cache.decompose_resid(layer, incl_embeds=False, mode="attn", **given), cache.stack_head_results(layer, **given)]
        found += [cache.stack_head_results(layer, incl_remainder=True, **given)]
        found += [cache.get_full_resid_decomposition(layer, **given)]
    return found


def of_neurons(cache, pos, apply_ln):
    given, onto = {"pos_slice": pos, "apply_ln": apply_ln, "return_labels": True}, cache.model.W_U[:, :3]
    found = [cache.accumulated_resid(None, incl_mid=True, **given), cache.decompose_resid(2, mode="mlp", **given)]
    for name in ("accumulated_resid", "decompose_resid", "get_full_resid_decomposition"):
        found.append(getattr(cache, name)(1, mlp_input=True, **given))
    found += [cache.stack_neuron_results(layer, neuron_slice=(3, 9), incl_remainder=True, **given) for layer in (-1, 1)]
    if cache.model.cfg.normalization_type or not apply_ln:  # TransformerLens asks for a scale where there is no layer norm
        found += [
            cache.stack_neuron_results(-1, project_output_onto=onto, **given),
            cache.get_full_resid_decomposition(project_output_onto=onto[:, 0], **given),
            cache.get_full_resid_decomposition(expand_neurons=False, project_output_onto=onto, **given),
        ]
    found += [
        cache.get_neuron_results(1, pos_slice=pos), cache.get_neuron_results(0, neuron_slice=[1, 5], pos_slice=pos),
        cache.get_neuron_results(0, pos_slice=pos, project_output_onto=onto),
    ]  # fmt: skip
    return found


@pytest.mark.parametrize("apply_ln", [False, True], ids=["as they are", "behind the layer norm"])
@pytest.mark.parametrize("pos", POSITIONS, ids=str)
@pytest.mark.parametrize("batch", [True, False], ids=["batch", "no batch axis"])
def test_streams_and_their_parts(model, pos, apply_ln, batch):
    ours, theirs = both_caches(model) if batch else both_caches(model, TEXTS[0], remove_batch_dim=True)
    same(streams(theirs, pos, apply_ln), streams(ours, pos, apply_ln))
    if not model.cfg.attn_only:
        same(of_neurons(theirs, pos, apply_ln), of_neurons(ours, pos, apply_ln))


def layer_norms(cache):
    stack, last = cache.decompose_resid(), cache.decompose_resid(pos_slice=-1)
    found = [
        cache.apply_ln_to_stack(stack), cache.apply_ln_to_stack(stack, layer=1), cache.apply_ln_to_stack(last, pos_slice=-1),
        cache.apply_ln_to_stack(stack[:, 0], batch_slice=0, has_batch_dim=False),
        cache.apply_ln_to_stack(last, layer=-1, pos_slice=-1, recompute_ln=True),
    ]  # fmt: skip
    if cache.model.cfg.normalization_type:  # without layer norms TransformerLens 3.9 ignores batch_slice
        found += [cache.apply_ln_to_stack(stack, batch_slice=[1]), cache.logit_attrs(stack, " Mary", batch_slice=[1])]
    return found


def attributions(cache):
    stack, last = cache.decompose_resid(), cache.stack_head_results(pos_slice=-1)
    right, wrong, every = torch.tensor([4, 7]), torch.tensor([5, 9]), cache.model.to_tokens(TEXTS)
    return [
        cache.logit_attrs(stack, " Mary"), cache.logit_attrs(stack, 3, 4), cache.logit_attrs(stack, torch.tensor(3)),
        cache.logit_attrs(last, right, pos_slice=-1), cache.logit_attrs(last, right, wrong, pos_slice=-1),
        cache.logit_attrs(stack, every, every.flip(0)), cache.logit_attrs(stack[:, :, 1:3], every[:, 1:3], pos_slice=(1, 3)),
        cache.logit_attrs(stack[:, 1], " Mary", " John", batch_slice=1, has_batch_dim=False),
    ]  # fmt: skip


def mapping(cache):
    names = [("pattern", 1), ("pattern", -1), ("q", 0, "attn"), "z1", ("resid_pre", 0), "embed", "blocks.1.hook_resid_post"]
    part = cache.apply_slice_to_batch_dim(1)
    some = cache.apply_slice_to_batch_dim([1, 0])
    cache.compute_head_results()
    return [
        [cache[name] for name in names], len(cache), "hook_embed" in cache, sorted(cache), sorted(cache.keys()),
        [value.shape for _, value in sorted(cache.items())], len(cache.values()), cache.has_batch_dim, cache["result", 1],
        part.has_batch_dim, part["z", 0], some.has_batch_dim, some.decompose_resid(), cache.stack_activation("pattern"),
        cache.stack_activation("z", 1), cache.to("cpu")["z", 1],
    ]  # fmt: skip


@pytest.mark.parametrize("code", [layer_norms, attributions, mapping], ids=lambda code: code.__name__)
def test_what_is_done_with_a_cache(model, code):
    ours, theirs = both_caches(model)
    same(code(theirs), code(ours))


def test_a_batch_axis_and_derivatives_are_taken_away(model):
    ours, theirs = both_caches(model, TEXTS[0])
    try:
        for cache in (ours, theirs):
            assert cache.remove_batch_dim() is cache
            assert not cache.has_batch_dim
            cache.toggle_autodiff(False)
            assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    same(theirs["pattern", 1], ours["pattern", 1])


def test_every_method_of_theirs_is_run_here():
    from transformer_lens.ActivationCache import ActivationCache

    methods = {name for name, method in vars(ActivationCache).items() if callable(method) and not name.startswith("_")}
    source = Path(__file__).read_text()
    assert not {name for name in methods - ONLY_THERE if f".{name}(" not in source and f'"{name}"' not in source}
    assert len(methods - ONLY_THERE) >= 16
