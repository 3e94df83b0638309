"""Every method of the drop-in's ActivationCache, with every argument, against TransformerLens's."""

import pytest
import torch

from interp_gpt2.errors import AnalysisError, HookNameError
from interp_gpt2.transformer_lens import ActivationCache

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
TEXTS = ["When John and Mary went to the shops", "When Mary and John went to the shops"]
SLICES = [None, -1, (1, 4), [0, 2]]


@pytest.fixture(params=["processed", "unprocessed", "attention only", "no layer norm"])
def any_pair(request, make_pair):
    kinds = {"processed": {"processed": True}, "attention only": {"attn_only": True}, "no layer norm": {"layer_norm": False}}
    return make_pair(**kinds.get(request.param, {}))


def cached(model, texts=TEXTS, **options):
    return model.run_with_cache(texts, **options)[1]


def test_keys_are_understood_in_every_spelling(any_pair):
    def code(lens, model):
        cache = cached(model)
        names = [("pattern", 1), ("pattern", -1), ("q", 0, "attn"), "z1", ("resid_pre", 0), ("resid_post", 1),
                 ("attn_scores", 1), "embed", ("embed",), "blocks.1.hook_resid_post", ("attn", 0), "hook_pos_embed"]  # fmt: skip
        if model.cfg.normalization_type:
            names += [("scale", 1, "ln1"), "normalized0ln1", "scale"]
        if not model.cfg.attn_only:
            names += [("post", 1), ("mlp_pre", 0), ("mlp_out", 0)]
        return [len(cache), [cache[name] for name in names], "hook_embed" in cache, sorted(cache)[:3], cache.has_batch_dim]

    any_pair.both(code)


@pytest.mark.parametrize("pos", SLICES, ids=str)
@pytest.mark.parametrize("batch", [True, False], ids=["batch", "no batch axis"])
def test_streams_and_their_parts(any_pair, pos, batch):
    def code(lens, model):
        cache = cached(model) if batch else cached(model, TEXTS[0], remove_batch_dim=True)
        found = {}
        has_mlp = not model.cfg.attn_only
        for apply_ln in (False, True):
            given = {"apply_ln": apply_ln, "pos_slice": pos, "return_labels": True}
            for layer in (None, -1, 1, 2):
                key = f"{layer} {apply_ln}"
                found[f"accumulated {key}"] = cache.accumulated_resid(layer, **given)
                found[f"decomposed {key}"] = cache.decompose_resid(layer, **given)
                found[f"no embeddings {key}"] = cache.decompose_resid(layer, incl_embeds=False, mode="attn", **given)
                found[f"heads {key}"] = cache.stack_head_results(layer, **given)
                found[f"heads and rest {key}"] = cache.stack_head_results(layer, incl_remainder=True, **given)
                if has_mlp:
                    found[f"mid {key}"] = cache.accumulated_resid(layer, incl_mid=True, **given)
                    found[f"neurons {key}"] = cache.stack_neuron_results(layer, neuron_slice=(3, 9), incl_remainder=True, **given)
                    found[f"full {key}"] = cache.get_full_resid_decomposition(layer, **given)
                    found[f"MLPs {key}"] = cache.get_full_resid_decomposition(layer, expand_neurons=False, **given)
            if has_mlp:
                for name in ("accumulated_resid", "decompose_resid", "get_full_resid_decomposition"):
                    found[f"MLP input of {name} {apply_ln}"] = getattr(cache, name)(1, mlp_input=True, **given)
        return found

    any_pair.both(code)


@pytest.mark.parametrize("pos", SLICES, ids=str)
def test_neurons_and_projections(pair, pos):
    def code(lens, model):
        cache, onto = cached(model), model.W_U[:, :3]
        return [
            cache.get_neuron_results(1, pos_slice=pos), cache.get_neuron_results(0, neuron_slice=[1, 5], pos_slice=pos),
            cache.get_neuron_results(0, neuron_slice=4, pos_slice=pos),
            cache.get_neuron_results(1, pos_slice=pos, project_output_onto=onto),
            cache.stack_neuron_results(-1, pos_slice=pos, project_output_onto=onto[:, 0]),
            cache.stack_neuron_results(2, pos_slice=pos, project_output_onto=onto, apply_ln=True, return_labels=True),
            cache.get_full_resid_decomposition(pos_slice=pos, project_output_onto=onto, apply_ln=True),
        ]  # fmt: skip

    pair.both(code)


@torch.no_grad()
def test_projections_and_positions_spare_the_stack_they_are_of(pair, largest_made):
    model = pair.ours.model
    cache, onto = cached(model), model.W_U[:, :2].clone()
    largest_known = max(tensor.untyped_storage().nbytes() for tensor in (*cache.values(), *model.model.parameters()))
    n_parts = len(cache.get_full_resid_decomposition(pos_slice=-1))
    n_positions = cache["embed"][..., 0].numel()
    whole = n_parts * n_positions * model.cfg.d_model * onto.element_size()
    for code, size in (
        (lambda: cache.get_full_resid_decomposition(project_output_onto=onto, apply_ln=True), whole * 2 / model.cfg.d_model),
        (lambda: cache.stack_neuron_results(-1, project_output_onto=onto), whole * 2 / model.cfg.d_model),
        (lambda: cache.get_neuron_results(1, project_output_onto=onto), whole * 2 / model.cfg.d_model),
        (lambda: cache.get_full_resid_decomposition(pos_slice=-1), whole / n_positions * len(TEXTS)),
    ):
        with largest_made() as made:
            code()
        assert made.n_bytes <= max(size, largest_known) < whole / 4
    with largest_made() as made:
        cache.get_full_resid_decomposition()
    assert made.n_bytes == whole


def test_layer_norm_on_stacks_that_are_given(any_pair):
    def code(lens, model):
        cache = cached(model)
        stack, last = cache.decompose_resid(), cache.decompose_resid(pos_slice=-1)
        found = [
            cache.apply_ln_to_stack(stack), cache.apply_ln_to_stack(stack, layer=1), cache.apply_ln_to_stack(last, pos_slice=-1),
            cache.apply_ln_to_stack(stack[:, :, 1:3], layer=1, pos_slice=(1, 3)),
            cache.apply_ln_to_stack(stack[:, 0], batch_slice=0, has_batch_dim=False),
            cache.apply_ln_to_stack(last, layer=-1, pos_slice=-1, recompute_ln=True),
        ]  # fmt: skip
        if model.cfg.normalization_type:  # without layer norms TransformerLens ignores batch_slice
            found += [cache.apply_ln_to_stack(stack, batch_slice=[1]), cache.apply_ln_to_stack(stack, batch_slice=0)]
        return found if model.cfg.attn_only else [*found, cache.apply_ln_to_stack(stack, layer=0, mlp_input=True)]

    any_pair.both(code)


def test_attribution_to_logits(any_pair):
    def code(lens, model):
        cache = cached(model)
        stack, last = cache.decompose_resid(), cache.stack_head_results(pos_slice=-1)
        right, wrong = torch.tensor([4, 7]), torch.tensor([5, 9])
        every = model.to_tokens(TEXTS)
        found = [
            cache.logit_attrs(stack, " Mary"), cache.logit_attrs(stack, 3, 4), cache.logit_attrs(stack, torch.tensor(3)),
            cache.logit_attrs(last, right, pos_slice=-1), cache.logit_attrs(last, right, wrong, pos_slice=-1),
            cache.logit_attrs(stack, every, every.flip(0)), cache.logit_attrs(stack[:, :, 1:3], every[:, 1:3], pos_slice=(1, 3)),
            cache.logit_attrs(stack[:, 1], " Mary", " John", batch_slice=1, has_batch_dim=False),
        ]  # fmt: skip
        return [*found, cache.logit_attrs(stack, " Mary", batch_slice=[1])] if model.cfg.normalization_type else found

    any_pair.both(code)


def test_stacks_slices_and_copies(pair):
    def code(lens, model):
        cache = cached(model)
        found = [cache.stack_activation("pattern"), cache.stack_activation("scale", 1, "ln2"), cache.stack_activation("z", -1)]
        for batch in (1, (0, 1), [1, 0], None):
            part = cache.apply_slice_to_batch_dim(batch)
            found.append([part.has_batch_dim, part["pattern", 0], part.stack_head_results()])
        one = cached(model, TEXTS[0]).remove_batch_dim()
        cache.compute_head_results()
        return [found, one.has_batch_dim, one["z", 1], cache["result", 1], cache.to("cpu")["z", 1]]

    pair.both(code)


def test_a_cache_may_be_made_from_what_hooks_collected(pair):
    def code(lens, model):
        found = {}
        model.run_with_hooks(TEXTS, fwd_hooks=[(lambda n: True, lambda value, hook: found.update({hook.name: value.detach()}))])
        return lens.ActivationCache(found, model).accumulated_resid(apply_ln=True)

    pair.both(code)


def test_derivatives_are_turned_off_everywhere_as_there(pair):
    cache = cached(pair.ours.model)
    cache.toggle_autodiff(False)
    assert not torch.is_grad_enabled()
    cache.toggle_autodiff(True)
    assert torch.is_grad_enabled()


def test_what_is_missing_is_an_error_that_names_it(pair):
    model = pair.ours.model
    cache = cached(model, names_filter="blocks.0.attn.hook_z")
    with pytest.raises(KeyError, match=r"blocks\.1\.attn\.hook_z"):
        cache["z", 1]
    with pytest.raises(HookNameError, match="not recorded"):
        cache.accumulated_resid()
    with pytest.raises(AnalysisError, match="2 sequences"):
        cache.remove_batch_dim()
    with pytest.raises(AnalysisError, match="axes"):
        cached(model).apply_ln_to_stack(torch.zeros(3, 32))
    assert isinstance(cache, ActivationCache)
