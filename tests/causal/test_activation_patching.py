"""Sweeps have the axes, values and baselines that they say, and TransformerLens finds the same."""

import pytest
import torch

from interp_gpt2.causal import activation_patching as sweeps
from interp_gpt2.causal.activation_patching import Sweep, get_act_patch_attn_head_out_all_pos, get_act_patch_resid_pre
from interp_gpt2.causal.metrics import logit_difference
from interp_gpt2.convert.transformer_lens import to_hooked_transformer
from interp_gpt2.errors import AnalysisError, ContextLengthError, HookNameError

NAMES = [name for name in dir(sweeps) if name.startswith("get_act_patch_")]
SHAPES = {
    "attn_head_pattern_by_pos": (2, 4, 9), "attn_head_pattern_dest_src_pos": (2, 4, 9, 9), "block_every": (3, 2, 9),
    "attn_head_all_pos_every": (5, 2, 4), "attn_head_by_pos_every": (5, 2, 9, 4),
}  # fmt: skip


def shape_of(name: str) -> tuple[int, ...]:
    short = name.removeprefix("get_act_patch_")
    return SHAPES.get(short, (2, 4) if short.endswith("all_pos") else (2, 9, 4) if short.endswith("by_pos") else (2, 9))


def test_all_eighteen_are_there():
    assert len(NAMES) == 15 + 3


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", NAMES)
def test_every_sweep_gives_what_whole_passes_give(model, make_pairs, name, direction):
    pairs = make_pairs(lengths=[9, 7])
    found = getattr(sweeps, name)(model, pairs, direction=direction)
    naive = getattr(sweeps, name)(model, pairs, direction=direction, naive=True)
    assert found.values.shape == (*shape_of(name), 2)
    assert [len(found.labels[axis]) for axis in found.axes] == list(shape_of(name))
    assert (found.values - naive.values).abs().max() <= 1e-5 * naive.values.abs().max()
    assert found.n_skipped > 0 or "all_pos" in name


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.hooked_transformer
@pytest.mark.parametrize("name", NAMES)
def test_transformer_lens_finds_the_same(model, make_pairs, name):
    from transformer_lens import patching

    pairs = make_pairs()
    theirs = to_hooked_transformer(model)
    metric = logit_difference(pairs.correct, pairs.incorrect)
    _, cache = theirs.run_with_cache(pairs.clean)
    with torch.no_grad():
        expected = getattr(patching, name)(theirs, pairs.corrupted, cache, lambda logits: metric(logits).mean())
    found = getattr(sweeps, name)(model, pairs, metric)
    assert (found.mean - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_whole_last_stream_carries_the_whole_run(model, make_pairs):
    pairs = make_pairs()
    whole = Sweep("resid_post", ("layer",), layers=[-1])
    for direction, end in (("denoising", 1), ("noising", 0)):
        found = whole(model, pairs, direction=direction)
        assert found.normalised.item() == pytest.approx(end, abs=1e-5)
    with pytest.raises(HookNameError, match="resid_pre"):
        Sweep("resid_pre", ("pos",))(model, pairs)  # without "layer" as an axis there is no layer to patch


@pytest.mark.parametrize(
    ("axes", "options", "message"),
    [
        (("pos",), {"layers": [0]}, r"layers=\[0\] is not a list of indices along an axis of the sweep, which has pos"),
        (("layer",), {"heads": [1, 2]}, "heads=.* what is not an axis is patched whole"),
        (("layer", "head"), {"positions": [3]}, "positions="),
        (("layer", "pos"), {"layers": 1}, "layers=1 is not a list"),
        (("layer", "pos", "dest_pos"), {}, "name one axis twice"),
        (("layer", "layer"), {}, "name one axis twice"),
    ],
)
def test_a_sweep_says_which_part_of_it_would_have_been_ignored(axes, options, message):
    with pytest.raises(AnalysisError, match=message):
        Sweep("z", axes, **options)


def test_normalised_values_and_their_interval_by_hand(model, make_pairs):
    pairs = make_pairs(n_pairs=6)
    found = get_act_patch_attn_head_out_all_pos(model, pairs)
    values, gap = found.values[1, 2].double(), (found.clean - found.corrupted).double()
    normalised = (values.mean() - found.corrupted.double().mean()) / gap.mean()
    assert found.normalised[1, 2].item() == pytest.approx(normalised.item(), rel=1e-4)
    jackknife = torch.stack([
        (values - found.corrupted)[torch.arange(6) != left].mean() / gap[torch.arange(6) != left].mean() for left in range(6)
    ])  # fmt: skip
    error = ((jackknife - jackknife.mean()).square().sum() * 5 / 6).sqrt()  # another way to the same standard error
    low, high = (end[1, 2].item() for end in found.interval)
    assert low < found.normalised[1, 2].item() < high
    assert (high - low) / 2 / 2.5706 == pytest.approx(error.item(), rel=0.5)  # t of 5 degrees of freedom
    assert get_act_patch_attn_head_out_all_pos(model, make_pairs(n_pairs=1)).interval[0].isnan().all()


@pytest.mark.parametrize("metric", ["logit_difference", "logit", "probability", "log_probability", "rank", "kl_divergence"])
def test_metrics_go_by_name(model, make_pairs, metric):
    pairs = make_pairs(n_pairs=5, differ_at=8)
    found = get_act_patch_resid_pre(model, pairs, metric)
    assert found.metric.replace(" ", "_").lower() == metric.lower()
    if metric == "kl_divergence":
        assert found.clean.abs().max() <= 1e-6
        assert (found.corrupted > 0).all()
    swapped = get_act_patch_resid_pre(model, pairs, metric, "noising")
    assert torch.equal(found.clean, swapped.clean)


def test_a_frame_has_a_row_for_every_cell(model, make_pairs):
    pairs = make_pairs()
    found = get_act_patch_resid_pre(model, pairs)
    frame = found.to_frame()
    assert frame.shape[0] == 2 * 9
    row = frame[(frame.layer == "1") & (frame.pos == found.labels["pos"][3])].iloc[0]
    assert row.value == found.mean[1, 3].item()
    assert bool(row.skipped) is False
    assert frame[frame.pos == found.labels["pos"][0]].skipped.all()
    top = found.top(2)
    assert top.normalised.abs().tolist() == sorted(frame.normalised.abs(), reverse=True)[:2]
    assert "2 layer x 9 pos, 2 pairs" in repr(found)


def test_some_layers_positions_and_heads_are_the_same_cells(model, make_pairs):
    pairs = make_pairs()
    whole = sweeps.get_act_patch_attn_head_out_by_pos(model, pairs)
    part = Sweep("z", ("layer", "pos", "head"), layers=[1], positions=[3, 5], heads=[2])(model, pairs)
    assert (part.values - whole.values[1:2][:, [3, 5]][:, :, [2]]).abs().max() <= 1e-5
    assert part.labels["head"] == ("H2",)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, p: get_act_patch_resid_pre(m, p, direction="forwards"), AnalysisError, "neither 'denoising'"),
        (lambda m, p: get_act_patch_resid_pre(m, p, "accuracy"), AnalysisError, "there is no metric 'accuracy'; known are"),
        (lambda m, p: get_act_patch_resid_pre(m, p, lambda logits: logits.sum() * 0), AnalysisError, "nothing to normalise"),
        (lambda m, p: get_act_patch_resid_pre(m, p, logit_difference(1, 2, pos=2)), AnalysisError, "nothing to normalise"),
        (lambda m, p: Sweep("resid_pre", ("layer", "pos"), positions=[0, 1])(m, p), AnalysisError, "no cell of the sweep"),
        (lambda m, p: Sweep("resid_pre", ("layer", "pos"), positions=[])(m, p), AnalysisError, "nothing to patch along 'pos'"),
        (lambda m, p: Sweep("resid_pre", ("layer", "key"))(m, p), AnalysisError, "'key' is not an axis"),
        (lambda m, p: Sweep("resid_pre", ("layer", "head"))(m, p), AnalysisError, "has no heads"),
        (lambda m, p: Sweep("mlp_outt", ("layer",))(m, p), HookNameError, "mlp_out"),
        (lambda m, p: Sweep("z", ("layer",), layers=[2])(m, p), HookNameError, "no layer 2"),
    ],
)
def test_held_wrong(model, make_pairs, call, error, message):
    with pytest.raises(error, match=message):
        call(model, make_pairs())


def test_prompts_that_the_model_cannot_read_are_refused(model, make_pairs):
    with pytest.raises(ContextLengthError, match="20 tokens"):
        get_act_patch_resid_pre(model, make_pairs(n_pos=20))
    with pytest.raises(ValueError, match="not in the vocabulary"):
        get_act_patch_resid_pre(model, make_pairs(d_vocab=60))
