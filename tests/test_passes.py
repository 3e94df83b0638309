"""Standing edits, parts of a pass, batches and derivatives agree with whole passes, and leave nothing on the model."""

import copy
import weakref

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.convert.transformer_lens import hooked_state_dict, to_hooked_transformer
from interp_gpt2.errors import AnalysisError, ConfigError, EditError, HookNameError, TokenError
from interp_gpt2.hooks import default_hook_points, tl_name
from interp_gpt2.model import GPT2

SHAPES = {
    "ordinary": {},
    "attention only": {"attn_only": True},
    "no layer norm": {"layer_norm": False},
    "no layers": {"n_layers": 0},
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def any_model(request, make_gpt2):
    return make_gpt2(GPT2Config(**({"n_layers": 3, "n_heads": 4, "d_model": 32, "d_vocab": 50, "n_ctx": 16} | request.param)))


@pytest.fixture
def mask(tokens):
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    return mask


def double(value, site):
    return value * 2


EDITS = {"embed": double, ("z", 0): double, "blocks.1.mlp_out": lambda value, site: value + site.positions[..., None]}


# Standing edits


@torch.no_grad()
def test_a_view_with_standing_edits_is_the_edited_model_in_every_method(model, tokens, mask):
    view = model.with_edits(EDITS)
    logits = model.run_with_edits(tokens, EDITS)
    assert not torch.allclose(logits, model(tokens))
    assert torch.equal(view(tokens), logits)
    assert torch.equal(view(tokens, attention_mask=mask), model.run_with_edits(tokens, EDITS, mask))
    recorded, cache = view.run_with_cache(tokens, "*resid_post")
    assert torch.equal(recorded, logits)
    assert torch.equal(cache["resid_post", 1], model.run_with_cache(tokens, ("resid_post", 1), EDITS)[1]["resid_post", 1])
    assert torch.equal(view.unembed(view.run_blocks(view.embed(tokens))), logits)
    resid, _ = view.run_until(tokens, 1, ())
    assert torch.equal(view.run_from(resid, 1, ())[0], logits)
    assert torch.equal(torch.cat([part for part, _ in view.run_batched(tokens, 1, ())]), logits)
    assert view.hook_points() == model.hook_points()


@torch.no_grad()
def test_a_view_generates_under_its_edits_token_by_token(model, tokens):
    view, longer = model.with_edits(EDITS), tokens[:, :4]
    for _ in range(5):
        longer = torch.cat([longer, model.run_with_edits(longer, EDITS)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(view.generate(tokens[:, :4], 5, temperature=0), longer)


def test_a_view_shares_weights_and_mode_and_stores_nothing_on_the_model(model, tokens):
    before, names = model(tokens), set(vars(model))
    view = model.with_edits(EDITS)
    assert all(ours is theirs for ours, theirs in zip(view.parameters(), model.parameters(), strict=True))
    assert view.state_dict().keys() == model.state_dict().keys()
    view(tokens)
    assert torch.equal(model(tokens), before)
    assert set(vars(model)) == names
    model.train()
    assert view.training
    with torch.no_grad():
        model.wte.weight.mul_(2)
    assert torch.equal(view.W_E, model.W_E)


@torch.no_grad()
def test_edits_of_a_pass_come_after_the_standing_ones(model, tokens):
    def plus_one(value, site):
        return value + 1

    view = model.with_edits({("z", 0): plus_one})
    _, cache = view.run_with_cache(tokens, ("z", 0), {("z", 0): double})
    clean = model.run_with_cache(tokens, ("z", 0))[1]["z", 0]
    assert torch.equal(cache["z", 0], (clean + 1) * 2)
    _, cache = view.with_edits({("z", 0): double}).run_with_cache(tokens, ("z", 0))
    assert torch.equal(cache["z", 0], (clean + 1) * 2)


@torch.no_grad()
def test_a_view_of_a_compiled_model_is_edited_too(model, tokens):
    edited = model.run_with_edits(tokens, EDITS)
    torch._dynamo.reset()
    model.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model.with_edits(EDITS)(tokens), edited, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_copy_of_a_view_is_a_view_of_a_copy(model, tokens):
    view = model.with_edits(EDITS)
    other = copy.deepcopy(view)
    assert torch.equal(other(tokens), view(tokens))
    other.wte.weight.zero_()
    assert model.wte.weight.any()


def test_a_view_is_not_written_elsewhere_without_its_edits(model, tmp_path):
    for convert in (to_huggingface, hooked_state_dict):
        with pytest.raises(EditError, match="standing edits cannot be converted"):
            convert(model.with_edits(EDITS))
    with pytest.raises(EditError, match="standing edits cannot be saved"):
        model.with_edits(EDITS).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_standing_edits_are_checked_at_once_and_against_those_of_a_pass(model, tokens):
    with pytest.raises(HookNameError, match="no hook point"):
        model.with_edits({"blocks.0.attn.zz": double})
    view = model.with_edits({"blocks.0.ln1.scale": double})
    with pytest.raises(EditError, match="edit one or the other"):
        view.run_with_edits(tokens, {("q_input", 0): double})


# Some of the layers


@torch.no_grad()
def test_stopping_and_starting_at_a_layer_is_the_whole_pass_and_runs_no_other_layer(any_model, tokens, mask):
    logits, whole = any_model.run_with_cache(tokens, "*", attention_mask=mask)
    blocks = list(any_model.blocks)
    for layer in range(any_model.config.n_layers + 1):
        for later in range(layer, len(blocks)):
            any_model.blocks[later] = None  # running it would fail
        resid, before = any_model.run_until(tokens, layer, "*", attention_mask=mask)
        for index, block in enumerate(blocks):
            any_model.blocks[index] = None if index < layer else block
        ended, after = any_model.run_from(resid, layer, "*", attention_mask=mask)
        for index, block in enumerate(blocks):
            any_model.blocks[index] = block
        assert torch.equal(ended, logits)
        assert [*before, *after] == list(whole)
        assert all(torch.equal({**before, **after}[name], whole[name]) for name in whole)


@torch.no_grad()
def test_edits_and_keep_act_in_a_part_of_a_pass_as_in_the_whole(model, tokens):
    def last(value):
        return value[:, -1]

    whole = model.run_with_cache(tokens, "*resid_post", EDITS, keep=last)[1]
    resid, before = model.run_until(tokens, 1, "*resid_post", {"embed": double, ("z", 0): double}, keep=last)
    later = {"blocks.1.mlp_out": EDITS["blocks.1.mlp_out"]}
    _, after = model.run_from(resid, 1, "*resid_post", later, keep=last)
    assert torch.equal(before["resid_post", 0], whole["resid_post", 0])
    assert torch.equal(after["resid_post", 1], whole["resid_post", 1])


def test_edits_at_the_end_of_a_part_see_their_positions(model, tokens, mask):
    seen = []

    def look(value, site):
        seen.append(site.positions.tolist())
        return value

    resid = model.embed(tokens, attention_mask=mask)
    model.run_from(resid, 1, (), {"ln_final.scale": look}, attention_mask=mask)
    model.with_edits({"ln_final.scale": look}).unembed(resid)
    assert seen == [[[0, 0, 0, 0, *range(8)], list(range(12))], list(range(12))]


def test_what_a_part_of_a_pass_does_not_reach_is_refused_by_name(model, tokens):
    with pytest.raises(HookNameError, match=r"'blocks.1.attn.z' is not reached.* from 'embed' to 'blocks.0.resid_post'"):
        model.run_until(tokens, 1, ["*pattern", "blocks.1.attn.z"])
    with pytest.raises(HookNameError, match=r"\('z', 1\) is not reached"):
        model.run_until(tokens, 1, ("z", 1))
    with pytest.raises(HookNameError, match=r"\('z', 0\) is not reached"):
        model.run_from(model.embed(tokens), 1, (), {("z", 0): double})
    for layer in (-1, 3):
        with pytest.raises(ConfigError, match=f"no stream before layer {layer}; 0 to n_layers=2"):
            model.run_until(tokens, layer)
        with pytest.raises(ConfigError, match=f"no stream before layer {layer}"):
            model.run_from(model.embed(tokens), layer)


# Batches


@torch.no_grad()
def test_batches_give_what_the_sequences_give_together(model):
    tokens = torch.randint(0, 50, (7, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[3, 8:] = 0
    logits, whole = model.run_with_cache(tokens, "*resid_post", attention_mask=mask)
    parts = list(model.run_batched(tokens, 3, "*resid_post", keep=lambda value: value[:, -1], attention_mask=mask))
    assert [len(part) for part, _ in parts] == [3, 3, 1]
    torch.testing.assert_close(torch.cat([part for part, _ in parts]), logits, atol=1e-5, rtol=1e-5)
    for name in whole:
        torch.testing.assert_close(torch.cat([cache[name] for _, cache in parts]), whole[name][:, -1], atol=1e-5, rtol=1e-5)


def test_a_batch_is_let_go_when_the_next_one_is_asked_for(model):
    batches = model.run_batched(torch.zeros(3, 4, dtype=torch.long), 1, "*z")
    logits, cache = next(batches)
    held = [weakref.ref(logits), weakref.ref(cache["z", 1])]
    del logits, cache
    next(batches)
    assert [reference() for reference in held] == [None, None]


def test_a_batch_runs_when_it_is_asked_for(model):
    tokens = torch.zeros(4, 3, dtype=torch.long)
    tokens[3] = 99  # not in the vocabulary
    batches = model.run_batched(tokens, 2, ())
    next(batches)
    with pytest.raises(TokenError, match="token 99"):
        next(batches)
    with pytest.raises(HookNameError, match="no hook point"):
        model.run_batched(tokens, 2, "nothing")
    with pytest.raises(TokenError, match="batch_size=0 holds no sequence"):
        model.run_batched(tokens, 0)
    with pytest.raises(TokenError, match="attention_mask has shape"):
        model.run_batched(tokens, 2, attention_mask=torch.ones(2, 3))


# Derivatives


def last_logit(logits):
    return logits[:, -1, 7].sum()


SPLIT = ("attn_in", "q_input", "k_input", "v_input")


def shared_points(model):
    """Every hook point that can be differentiated by together: attention reads either ln1 or its split inputs."""
    return [name for name in model.hook_points() if not name.endswith(SPLIT)]


def split_points(model):
    return [name for name in model.hook_points() if ".ln1." not in name]


@pytest.mark.parametrize("points", [shared_points, split_points])
@pytest.mark.parametrize("frozen", [False, True], ids=["weights that learn", "frozen weights, gradients off"])
def test_derivatives_are_those_of_the_recorded_activations(any_model, tokens, frozen, points):
    names = points(any_model)
    logits, cache = any_model.run_with_cache(tokens, names)
    expected = torch.autograd.grad(last_logit(logits), list(cache.values()), allow_unused=True)
    any_model.requires_grad_(not frozen)
    with torch.set_grad_enabled(not frozen):
        again, activations, gradients = any_model.run_with_gradients(tokens, last_logit, names)
    assert list(gradients) == list(cache) == list(activations)
    torch.testing.assert_close(again, logits.detach())
    for (name, gradient), by_hand in zip(gradients.items(), expected, strict=True):
        torch.testing.assert_close(activations[name], cache[name].detach())
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if by_hand is None else by_hand, msg=name)
        assert not gradient.requires_grad
        assert not activations[name].requires_grad
    assert all(weight.grad is None for weight in any_model.parameters())


@pytest.mark.parametrize("points", [shared_points, split_points])
def test_derivatives_go_on_downstream_of_an_edit_that_cuts_the_graph(make_gpt2, points):
    """Against finite differences: 0 upstream of a constant, the derivative of what follows it downstream."""
    model = make_gpt2(GPT2Config(n_layers=2, n_heads=2, d_model=8, d_vocab=11, n_ctx=6)).double()
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    constant = torch.randn(1, 5, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    edits = {("resid_pre", 1): lambda value, site: constant}
    _, _, gradients = model.run_with_gradients(tokens, last_logit, points(model), edits)
    assert not constant.requires_grad, "the caller's own tensor is left alone"
    for name, gradient in gradients.items():
        if name.startswith(("embed", "pos_embed", "blocks.0")):
            assert not gradient.any(), name
            continue
        direction = torch.randn(gradient.shape, dtype=torch.double, generator=torch.Generator().manual_seed(5))
        direction = direction.tril() if name.endswith(("pattern", "attn_scores")) else direction
        moved = []
        for size in (1e-5, -1e-5):
            nudge = {name: lambda value, site, size=size, direction=direction: value + size * direction}
            with torch.no_grad():
                moved.append(last_logit(model.run_with_edits(tokens, edits | nudge)))
        torch.testing.assert_close((gradient * direction).sum(), (moved[0] - moved[1]) / 2e-5, atol=1e-8, rtol=1e-5, msg=name)


def test_derivatives_of_a_view_are_those_under_its_edits(model, tokens, mask):
    _, _, ours = model.with_edits(EDITS).run_with_gradients(tokens, last_logit, "*mlp_out", attention_mask=mask)
    _, _, theirs = model.run_with_gradients(tokens, last_logit, "*mlp_out", EDITS, attention_mask=mask)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_derivatives_by_both_of_what_attention_could_read_are_refused(model, tokens):
    scale = ("scale", 0, "ln1")
    for names, edits in [("*", {}), (("q_input", 0), {scale: double}), (scale, {("q_input", 0): double})]:
        with pytest.raises(HookNameError, match="does not read the shared ln1; use a pass for each"):
            model.run_with_gradients(tokens, last_logit, names, edits)
        with pytest.raises(HookNameError, match="use a pass for each"):
            model.with_edits(edits).run_with_gradients(tokens, last_logit, names)


def test_a_metric_that_is_no_number_of_the_logits_is_refused(model, tokens):
    for metric, said in [
        (lambda logits: logits[:, -1], r"one number; it gave a tensor of shape \(2, 50\)"),
        (lambda logits: last_logit(logits).item(), "one number; it gave -?[0-9]"),
        (lambda logits: last_logit(logits).detach(), "cannot be differentiated"),
    ]:
        with pytest.raises(AnalysisError, match=said):
            model.run_with_gradients(tokens, metric)


@pytest.mark.hooked_transformer
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_derivatives_are_hooked_transformers(model: GPT2, tokens):
    theirs = {}

    def add(gradient, hook):  # ln1's fire three times there, for q, k and v (its incl_bwd keeps the last); ours is shared
        theirs[hook.name] = theirs.get(hook.name, 0) + gradient

    hooked = to_hooked_transformer(model)
    with hooked.hooks(bwd_hooks=[(tl_name(name), add) for name in default_hook_points(model.config)]):
        last_logit(hooked(tokens)).backward()
    _, _, ours = model.run_with_gradients(tokens, last_logit)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[tl_name(name)], atol=1e-5, rtol=1e-4, msg=name)
