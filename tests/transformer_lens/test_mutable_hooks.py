"""Hooks that stand on the drop-in do what they do on a HookedTransformer, and are gone when they are gone there."""

from functools import partial

import pytest
import torch

from interp_gpt2.errors import EditError, HookNameError
from interp_gpt2.transformer_lens import HookPoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
TEXT = "When John and Mary went to the shops"


def ablate_head(value, hook, head):
    value[:, :, head] = 0
    return value


POINTS = {
    "hook_embed": lambda v, hook: v * 1.5, "hook_pos_embed": lambda v, hook: v * 0,
    "blocks.0.hook_resid_pre": lambda v, hook: v + 0.1,
    "blocks.0.ln2.hook_scale": lambda v, hook: v * 2, "blocks.0.ln2.hook_normalized": lambda v, hook: v.flip(-1),
    "blocks.1.attn.hook_q": partial(ablate_head, head=1), "blocks.1.attn.hook_k": partial(ablate_head, head=1),
    "blocks.0.attn.hook_v": partial(ablate_head, head=2), "blocks.1.attn.hook_z": partial(ablate_head, head=0),
    "blocks.1.attn.hook_attn_scores": lambda v, hook: v * 0.5, "blocks.0.attn.hook_pattern": lambda v, hook: v * 0.5,
    "blocks.0.hook_attn_out": lambda v, hook: v * 0, "blocks.1.hook_resid_mid": lambda v, hook: v * 1.1,
    "blocks.0.mlp.hook_pre": lambda v, hook: v - 1, "blocks.0.mlp.hook_post": lambda v, hook: v.clamp(min=0),
    "blocks.1.hook_mlp_out": lambda v, hook: -v, "blocks.1.hook_resid_post": lambda v, hook: v * 0.9,
    "ln_final.hook_scale": lambda v, hook: v + 1, "ln_final.hook_normalized": lambda v, hook: v * 2,
}  # fmt: skip


@pytest.mark.parametrize("name", POINTS)
def test_a_hook_at_any_point_has_the_same_effect(pair, name):
    logits = pair.both(lambda lens, model: model.run_with_hooks(TEXT, fwd_hooks=[(name, POINTS[name])]))
    assert not torch.allclose(logits, pair.ours.model(TEXT)), "the hook had no effect"


def test_heads_results_and_split_inputs_need_no_switch(pair):
    model = pair.theirs.model
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    for name in ("blocks.1.attn.hook_result", "blocks.1.hook_k_input"):
        hooks = [(name, partial(ablate_head, head=1))]
        expected, found = (side.model.run_with_hooks(TEXT, fwd_hooks=hooks) for side in (pair.theirs, pair.ours))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_hooks_see_transformerlenss_names_and_may_return_none(pair):
    def code(lens, model):
        seen = []

        def look(value, hook):
            hook.ctx["norm"] = value.norm()
            seen.append((hook.name, hook.layer() if hook.name.startswith("blocks") else None, tuple(value.shape)))

        def in_place(value, hook):
            value[:, 3] = 0

        hooks = [(lambda name: name.endswith(("hook_z", "hook_embed")), look), ("blocks.0.hook_mlp_out", in_place)]
        logits = model.run_with_hooks(TEXT, fwd_hooks=hooks)
        return [logits, seen, model.hook_dict["hook_embed"].ctx]

    pair.both(code)
    assert isinstance(pair.ours.model.blocks[0].attn.hook_z, HookPoint)


def test_hooks_stand_until_they_are_reset(pair):
    def double(value, hook):
        return value * 2

    def code(lens, model):
        name, found = "blocks.0.hook_attn_out", [model(TEXT)]
        model.add_hook(name, double)
        model.add_perma_hook("blocks.1.hook_mlp_out", double)
        model.blocks[0].hook_mlp_out.add_hook(double)
        found.append(model(TEXT))
        with model.hooks(fwd_hooks=[(name, double)]):
            found.append(model(TEXT))
            with model.hooks(fwd_hooks=[(lambda n: n == "blocks.1.hook_attn_out", double)]):
                found.append(model(TEXT))
            found.append(model(TEXT))
        found.append(model(TEXT))
        found.append(dict(sorted(model.run_with_cache(TEXT)[1].items())))
        model.reset_hooks()
        found.append(model(TEXT))
        model.run_with_hooks(TEXT, fwd_hooks=[(name, double)], reset_hooks_end=False)
        found.append(model(TEXT))
        model.reset_hooks(including_permanent=True)
        found.append(model(TEXT))
        return found

    found = pair.both(code)
    assert torch.equal(found[0], found[-1])


def test_hooks_run_in_the_order_they_were_added_or_prepended(pair):
    def code(lens, model):
        model.add_hook("hook_embed", lambda value, hook: value + 1)
        model.add_hook("hook_embed", lambda value, hook: value * 2)
        model.add_hook("hook_embed", lambda value, hook: value - 5, prepend=True)
        return model.run_with_cache(TEXT)[1]["hook_embed"]

    pair.both(code)


def test_backward_hooks_see_and_change_gradients(pair):
    def code(lens, model):
        seen = {}

        def look(gradient, hook):
            seen[hook.name] = gradient.clone()

        def cut(gradient, hook):
            return gradient * 0

        model.add_hook("blocks.1.hook_mlp_out", cut, dir="bwd")
        with model.hooks(bwd_hooks=[(lambda name: "resid" in name or "hook_z" in name, look)]):
            model(TEXT, return_type="loss").backward()
        return dict(sorted(seen.items()))

    found = pair.both(code)
    assert len(found) == 8
    with pytest.raises(EditError, match="bwd_hooks"):
        pair.ours.model.run_with_hooks(TEXT, bwd_hooks=[("hook_embed", lambda g, hook: None)])


def test_an_error_in_a_hook_leaves_none_behind(pair):
    model = pair.ours.model
    before = model(TEXT)

    def fail(value, hook):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        model.run_with_hooks(TEXT, fwd_hooks=[("hook_embed", lambda v, hook: v * 2), ("blocks.1.attn.hook_z", fail)])
    assert torch.equal(model(TEXT), before)
    assert model.context_level == 0


def test_names_that_are_none_are_refused(pair):
    model = pair.ours.model
    with pytest.raises(HookNameError, match=r"blocks\.0\.attn\.pattern"):
        model.add_hook("blocks.0.attn.hook_patern", lambda value, hook: value)
    with pytest.raises(HookNameError, match="set_use_attn_result"):
        model.run_with_cache(TEXT, names_filter=lambda name: "result" in name)
    with pytest.raises(HookNameError):
        model.run_with_cache(TEXT, names_filter=["blocks.0.hook_resid_pos"])
    with pytest.raises(EditError, match="shape"):
        model.run_with_hooks(TEXT, fwd_hooks=[("hook_embed", lambda value, hook: value[:, :1])])


def test_the_model_underneath_never_keeps_a_hook(pair):
    model = pair.ours.model
    tokens = model.to_tokens(TEXT)
    before = model.model(tokens)
    model.add_hook("hook_embed", lambda value, hook: value * 2)
    assert torch.equal(model.model(tokens), before)
    assert not torch.equal(model(tokens), before)


def test_caching_hooks_fill_their_dict(pair):
    def code(lens, model):
        cache, fwd, bwd = model.get_caching_hooks(lambda name: "resid_post" in name, incl_bwd=True)
        with model.hooks(fwd, bwd):
            model(TEXT, return_type="loss").backward()
        return dict(sorted(cache.items()))

    pair.both(code)
