"""The model is GPT-2, and every hook point is what its name says."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch._dynamo.testing

from interp_gpt2.config import SIZES, GPT2Config
from interp_gpt2.errors import EditError, ShapeError
from interp_gpt2.hooks import Part, hook_point_names
from interp_gpt2.model import GPT2


def identity(value, site):
    return value


# The model


def test_the_published_sizes_have_the_published_numbers_of_parameters():
    # Radford et al. 2019 round these; the exact numbers are Hugging Face's for the released checkpoints.
    exact = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
    for name, config in SIZES.items():
        assert sum(weight.numel() for weight in GPT2(config, device="meta").parameters()) == exact[name] == config.n_params


def test_the_predicted_number_of_parameters_is_the_number_there(any_model):
    assert sum(weight.numel() for weight in any_model.parameters()) == any_model.config.n_params


def test_initialisation_is_gpt2s():
    model = GPT2(GPT2Config(n_layers=8, n_heads=4, d_model=256, d_vocab=1000, n_ctx=128))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            assert not weight.any()
        elif "ln" in name:
            assert (weight == 1).all()
        else:
            std = 0.02 / math.sqrt(16) if name.endswith("proj.weight") else 0.02
            # The sample's standard deviation has relative error 1 / sqrt(2n); five of them.
            assert abs(weight.std().item() / std - 1) < 5 / math.sqrt(2 * weight.numel()), name


def test_the_seed_alone_decides_the_weights(config):
    first, same, other = GPT2(config, 3).state_dict(), GPT2(config, 3).state_dict(), GPT2(config, 4).state_dict()
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["wte.weight"], other["wte.weight"])


def test_positions_can_start_from_sinusoids_and_are_learned():
    wpe = GPT2(GPT2Config(n_layers=0, n_heads=2, d_model=8, n_ctx=16, pos_init="sinusoidal", pos_std=0.5)).wpe.weight
    assert wpe.requires_grad
    torch.testing.assert_close(wpe[:, 0], 0.5 * torch.arange(16.0).sin())
    torch.testing.assert_close(wpe[:, 4], 0.5 * torch.arange(16.0).cos())


def test_blocks_compose_and_only_the_asked_ones_run(any_model, tokens):
    n_layers = any_model.config.n_layers
    for cut in range(n_layers + 1):
        resid = any_model.run_blocks(any_model.embed(tokens), stop=cut)
        logits = any_model.unembed(any_model.run_blocks(resid, start=cut))
        assert torch.equal(logits, any_model(tokens))
    if n_layers:
        any_model.blocks[0] = None  # a start after it must not touch it
        any_model.run_blocks(torch.zeros(1, 3, any_model.config.d_model), start=1)


# Recording


def test_hook_points_are_listed_with_the_names_and_shapes_of_a_real_pass(any_model, tokens):
    _, cache = any_model.run_with_cache(tokens, list(hook_point_names(any_model.config)))
    assert {name: tuple(value.shape) for name, value in cache.items()} == any_model.hook_points(*tokens.shape)
    assert tuple(cache) == hook_point_names(any_model.config)


@torch.no_grad()
def test_watching_changes_nothing(any_model, tokens):
    plain = any_model(tokens)
    recorded, _ = any_model.run_with_cache(tokens, "*")
    edited = any_model.run_with_edits(tokens, {name: identity for name in any_model.hook_points() if ".ln1." not in name})
    # Listening to a pattern selects explicit attention instead of fused kernels, which round differently.
    torch.testing.assert_close(recorded, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(edited, plain, atol=1e-5, rtol=1e-5)


def test_watching_under_gradients_changes_nothing(any_model, tokens):
    torch.testing.assert_close(any_model.run_with_cache(tokens, "*")[0], any_model(tokens), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_parts_of_the_residual_stream_sum_to_it(any_model, tokens):
    _, cache = any_model.run_with_cache(tokens, "*")
    resid = cache["embed"] + cache["pos_embed"]
    for layer in range(any_model.config.n_layers):
        torch.testing.assert_close(resid, cache["resid_pre", layer], atol=1e-5, rtol=1e-5)
        resid = resid + cache["attn_out", layer]
        if not any_model.config.attn_only:
            torch.testing.assert_close(resid, cache["resid_mid", layer], atol=1e-5, rtol=1e-5)
            resid = resid + cache["mlp_out", layer]
        torch.testing.assert_close(resid, cache["resid_post", layer], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_is_what_its_hook_points_say(any_model, tokens):
    _, cache = any_model.run_with_cache(tokens, "*")
    future = torch.ones(12, 12, dtype=torch.bool).triu(1)
    for layer, block in enumerate(any_model.blocks):
        scores, pattern = cache["attn_scores", layer], cache["pattern", layer]
        assert (scores[..., future] == -torch.inf).all()
        assert (pattern[..., future] == 0).all()
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
        scale = math.sqrt(any_model.config.d_head)
        if any_model.config.scale_attn_by_inverse_layer_idx:
            scale *= layer + 1
        by_hand = torch.einsum("bqhe,bkhe->bhqk", cache["q", layer], cache["k", layer]) / scale
        torch.testing.assert_close(scores.masked_fill(future, 0), by_hand.masked_fill(future, 0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            cache["z", layer], torch.einsum("bhqk,bkhe->bqhe", pattern, cache["v", layer]), atol=1e-5, rtol=1e-5
        )
        bias = 0 if block.attn.proj.bias is None else block.attn.proj.bias
        torch.testing.assert_close(cache["result", layer].sum(2) + bias, cache["attn_out", layer], atol=1e-5, rtol=1e-5)


def test_recorded_by_default_is_transformer_lenss_default_set(model, tokens):
    _, cache = model.run_with_cache(tokens)
    assert len(cache) == 40  # counted in TransformerLens 3.9 for two layers
    assert "result" not in {name.split(".")[-1] for name in cache}


@pytest.mark.parametrize("pos_slice", [-1, 3, slice(2, 9, 3), [0, -2], torch.tensor([4, 1])])
def test_a_part_is_of_the_tokens_at_every_hook_point(model, tokens, pos_slice):
    names = list(model.hook_points())
    _, whole = model.run_with_cache(tokens, names)
    _, kept = model.run_with_cache(tokens, names, keep=Part(pos_slice, dtype=torch.float64))
    picked = torch.arange(tokens.shape[1])[[pos_slice] if isinstance(pos_slice, int) else pos_slice]
    for name, value in whole.items():
        by_query = name.endswith(("attn_scores", "pattern"))
        expected = value[:, :, picked] if by_query else value[:, picked]
        assert torch.equal(kept[name], expected.double()), name
        assert kept[name].untyped_storage().nbytes() == expected.numel() * 8


@pytest.mark.parametrize("pos_slice", [12, -13, [0, 40], 1.5, "last", [[0]], [True]])
def test_a_part_that_is_not_there_is_refused(model, tokens, pos_slice):
    with pytest.raises(ShapeError, match="pos_slice"):
        model.run_with_cache(tokens, keep=Part(pos_slice))


def test_keep_processes_what_is_kept_and_frees_the_rest(model, tokens):
    _, cache = model.run_with_cache(tokens, "*resid_post", keep=lambda value: value[:, -1].half())
    assert cache["resid_post", 0].shape == (2, 32)
    assert cache["resid_post", 0].dtype == torch.float16
    _, cache = model.run_with_cache(tokens, "*resid_post", keep=lambda value: value[:, -1])
    assert cache["resid_post", 0].untyped_storage().nbytes() == 2 * 32 * 4


def test_derivatives_by_recorded_activations_are_finite_differences(make_gpt2):
    model = make_gpt2(GPT2Config(n_layers=2, n_heads=2, d_model=8, d_vocab=11, n_ctx=6)).double()
    tokens = torch.tensor([[3, 1, 4, 1, 5]])

    def metric(logits):
        return logits[0, -1].log_softmax(-1)[7]

    for name in model.hook_points():
        logits, cache = model.run_with_cache(tokens, name)
        (gradient,) = torch.autograd.grad(metric(logits), cache[name])
        direction = torch.randn(cache[name].shape, dtype=torch.double, generator=torch.Generator().manual_seed(5))
        if name.endswith("pattern"):
            direction = direction.tril()

        def nudged(size, name=name, direction=direction):
            with torch.no_grad():
                return metric(model.run_with_edits(tokens, {name: lambda value, site: value + size * direction}))

        measured = (nudged(1e-5) - nudged(-1e-5)) / 2e-5
        finite = gradient.masked_fill(gradient.isnan(), 0)
        torch.testing.assert_close((finite * direction).sum(), measured, atol=1e-8, rtol=1e-5, msg=name)


# Editing


@torch.no_grad()
def test_an_edit_reaches_what_is_downstream_and_nothing_else(any_model, tokens):
    """Bit for bit against identity edits at the same point: upstream and at earlier positions nothing changes."""
    names = hook_point_names(any_model.config)
    here = 7

    def bump(value, site):
        if site.name.endswith(("attn_scores", "pattern")):
            value[:, :, here, 0] += 1  # the position of these is the query, and it sees key 0
        else:
            value[:, here, ..., 0] += 1
        return value

    for name in names:
        same, before = any_model.run_with_cache(tokens, "*", {name: identity})
        changed, after = any_model.run_with_cache(tokens, "*", {name: bump})
        assert torch.equal(same[:, :here], changed[:, :here]), name
        assert not torch.equal(same[:, here], changed[:, here]), name
        for upstream in names[: names.index(name)]:
            split = name.rpartition(".")[2] in ("q_input", "k_input", "v_input")
            if not split or upstream.rpartition(".")[0] != name.rpartition(".")[0]:
                assert torch.equal(before[upstream], after[upstream]), (name, upstream)


@torch.no_grad()
def test_returned_and_in_place_edits_agree_and_never_reach_weights_or_records(any_model, tokens):
    weights = {name: weight.clone() for name, weight in any_model.state_dict().items()}
    _, clean = any_model.run_with_cache(tokens, "*")
    kept = {name: value.clone() for name, value in clean.items()}
    for name in any_model.hook_points():
        factor = 1.0 if name.endswith("pattern") else 0.5

        def in_place(value, site, factor=factor):
            return value.mul_(factor)

        def returned(value, site, factor=factor):
            return value * factor

        assert torch.equal(any_model.run_with_edits(tokens, {name: in_place}), any_model.run_with_edits(tokens, {name: returned}))
    assert all(torch.equal(weight, weights[name]) for name, weight in any_model.state_dict().items())
    assert all(torch.equal(value, kept[name]) for name, value in clean.items())


@torch.no_grad()
def test_zeroing_a_part_removes_it_from_the_stream(model, tokens):
    def zero(value, site):
        return torch.zeros_like(value)

    _, clean = model.run_with_cache(tokens, "*")
    for part, stream in [("attn_out", "resid_mid"), ("mlp_out", "resid_post")]:
        _, cache = model.run_with_cache(tokens, "*", {(part, 1): zero})
        torch.testing.assert_close(cache[stream, 1], clean[stream, 1] - clean[part, 1], atol=1e-5, rtol=1e-5)
    for part in ("z", "result"):
        _, cache = model.run_with_cache(tokens, "*", {(part, 1): zero})
        torch.testing.assert_close(cache["attn_out", 1], model.blocks[1].attn.proj.bias.expand_as(cache["attn_out", 1]))


@torch.no_grad()
def test_split_inputs_edit_one_head_and_leave_the_others(model, tokens):
    def bump_head_two(value, site):
        value[:, :, 2] += 1.0 * torch.arange(value.shape[-1])
        return value

    _, clean = model.run_with_cache(tokens, "*")
    _, cache = model.run_with_cache(tokens, "*", {("k_input", 1): bump_head_two})
    others = [0, 1, 3]
    torch.testing.assert_close(cache["k", 1][:, :, others], clean["k", 1][:, :, others], atol=1e-5, rtol=1e-5)
    assert (cache["k", 1][:, :, 2] - clean["k", 1][:, :, 2]).abs().max() > 0.1
    torch.testing.assert_close(cache["q", 1], clean["q", 1], atol=1e-5, rtol=1e-5)


def test_an_edited_ln1_reaches_attention_whoever_listens_with_gradients_and_without(model, tokens):
    edits = {("normalized", 0, "ln1"): lambda value, site: value * 2}
    expected = model.run_with_edits(tokens, edits)
    for names in ("*", "*.q_input"):
        logits, cache = model.run_with_cache(tokens, names, edits)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):  # an edit of it would be refused too
        torch.autograd.grad(logits.sum(), cache["q_input", 0])


def test_edits_see_where_they_are(model, tokens):
    seen = []

    def look(value, site):
        seen.append((site.name, site.layer, site.positions.tolist()))
        return value

    model.run_with_edits(tokens, {"embed": look, ("z", 1): look})
    assert seen == [("embed", None, list(range(12))), ("blocks.1.attn.z", 1, list(range(12)))]


def test_several_edits_at_a_point_apply_in_order(model, tokens):
    _, cache = model.run_with_cache(
        tokens, ("z", 0), {("z", 0): lambda z, site: z * 0 + 1, "blocks.*.attn.z": lambda z, site: z * 2}
    )
    assert (cache["z", 0] == 2).all()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda value, site: None, "returned None"),
        (lambda value, site: value[:, :1], "returned shape (2, 1, 4, 8); expected (2, 12, 4, 8)"),
        (lambda value, site: value.double(), "returned dtype torch.float64"),
        (lambda value, site: value.to("meta"), "returned device meta"),
        (lambda value, site: 3, "returned 3"),
    ],
)
def test_an_edit_that_returns_something_else_is_refused_by_hook_point(model, tokens, edit, said):
    with pytest.raises(EditError, match=r"'blocks\.1\.attn\.z'") as error:
        model.run_with_edits(tokens, {("z", 1): edit})
    assert said in str(error.value)


def test_an_edited_pattern_may_not_look_ahead(model, tokens):
    with pytest.raises(EditError, match="attends to later positions"):
        model.run_with_edits(tokens, {("pattern", 0): lambda pattern, site: torch.full_like(pattern, 0.1)})
    _, cache = model.run_with_cache(tokens, ("attn_scores", 0), {("attn_scores", 0): lambda s, site: torch.zeros_like(s)})
    assert (cache["attn_scores", 0][0, 0].isfinite() == torch.ones(12, 12).bool().tril()).all()  # masked again


def test_an_exception_in_an_edit_leaves_nothing_behind(model, tokens):
    before = model(tokens)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}

    def fail(value, site):
        value.zero_()
        raise KeyboardInterrupt

    for name in model.hook_points():
        with pytest.raises(KeyboardInterrupt):
            model.run_with_edits(tokens, {name: fail})
    assert torch.equal(model(tokens), before)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


@torch.no_grad()
def test_four_threads_see_only_their_own_pass(model):
    batches = [torch.randint(0, 50, (1, 8), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    alone = [model.run_with_cache(batch)[1] for batch in batches]

    def together(index):
        return [model.run_with_cache(batches[index])[1] for _ in range(25)]

    with ThreadPoolExecutor(4) as pool:
        for index, caches in enumerate(pool.map(together, range(4))):
            for cache in caches:
                assert all(torch.equal(cache[name], alone[index][name]) for name in cache)


# Compiled


@torch.no_grad()
def test_compiled_and_eager_agree_plain_recorded_and_edited(model, tokens):
    eager = model(tokens)
    eager_edited, eager_cache = model.run_with_cache(tokens, "*", {("z", 0): lambda z, site: z * 2})
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model.compile(backend=counter, fullgraph=True)
    torch.testing.assert_close(model(tokens), eager, atol=1e-5, rtol=1e-5)
    _, cache = model.run_with_cache(tokens, "*")
    torch.testing.assert_close(model(tokens), eager, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 2  # off, on, off again
    assert len(cache) == len(model.hook_points())
    edited, cache = model.run_with_cache(tokens, "*", {("z", 0): lambda z, site: z * 2})
    torch.testing.assert_close(edited, eager_edited, atol=1e-5, rtol=1e-5)
    for name in cache:
        torch.testing.assert_close(cache[name], eager_cache[name], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_compiled_once_it_reads_texts_of_every_length(model, tokens):
    torch._dynamo.reset()
    expected = {n: model.run_with_cache(tokens[:, :n], "*")[1] for n in (12, 7, 5, 1)}
    model.compile(backend="eager", fullgraph=True)
    for n, cache in expected.items():
        torch.testing.assert_close(model(tokens[:, :n]), cache["unembed.out"], atol=1e-5, rtol=1e-5)
        recorded = model.run_with_cache(tokens[:, :n], "*")[1]
        torch.testing.assert_close(recorded["pattern", 1], cache["pattern", 1], atol=1e-5, rtol=1e-5)
