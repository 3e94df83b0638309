"""Attribution patching estimates activation patching: exactly where the model is straight, to first order elsewhere."""

import pytest
import torch

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.causal import activation_patching as patching
from interp_gpt2.causal.activation_patching import Sweep
from interp_gpt2.causal.metrics import logit_difference, rank
from interp_gpt2.causal.node_attribution import attribution_patching, correlation
from interp_gpt2.errors import AnalysisError, HookNameError
from interp_gpt2.prompts.pairs import PromptPairs

SWEEPS = {name: sweep for name, sweep in vars(patching).items() if name.startswith("get_act_patch_") and isinstance(sweep, Sweep)}
SWEEPS |= {
    "neurons": Sweep("post", ("layer", "pos", "neuron")),
    "some neurons before the activation function": Sweep("pre", ("neuron", "layer"), layers=[1], neurons=[3, 7]),
    "some heads at some positions": Sweep("z", ("layer", "head", "pos"), heads=[1], positions=[2, 3]),
    "embeddings": Sweep("embed", ("pos",)),
    "the last stream": Sweep("resid_post", ("layer", "pos"), layers=[1], positions=[1, 3]),
}


@pytest.fixture
def pairs() -> PromptPairs:
    return PromptPairs.from_tokens([[7, 8, 9, 10, 11], [7, 8, 9]], [[1, 8, 2, 10, 11], [7, 4, 9]], [3, 4], [5, 6])


def near(size: float) -> tuple[GPT2, PromptPairs]:
    """A model in float64 in which the one token that differs has nearly the same embedding: a small corruption."""
    model = GPT2(GPT2Config(n_layers=2, n_heads=2, d_model=8, d_mlp=10, d_vocab=12, n_ctx=8)).eval().double()
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.4 * torch.randn(weight.shape, generator=draw, dtype=torch.float64))
        model.wte.weight[1] = model.wte.weight[0] + size * torch.randn(8, generator=draw, dtype=torch.float64)
    return model, PromptPairs.from_tokens([[2, 0, 7, 4]], [[2, 1, 7, 4]], [3], [5])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS.keys())
def test_for_a_small_corruption_it_is_activation_patching(sweep, direction):
    errors = []
    for size in (1e-3, 1e-4):
        model, pairs = near(size)
        found = attribution_patching(model, pairs, sweep, direction=direction)
        true = sweep(model, pairs, direction=direction)
        assert (found.axes, found.labels, found.values.shape) == (true.axes, true.labels, true.values.shape)
        torch.testing.assert_close(found.clean, true.clean)
        torch.testing.assert_close(found.corrupted, true.corrupted)
        base = true.corrupted if direction == "denoising" else true.clean
        errors.append(((found.values - true.values).abs().max() / (true.values - base).abs().max()).item())
    assert errors[0] < 0.05
    assert errors[1] < 0.2 * errors[0] + 1e-8  # first order: the error goes as the corruption


def test_it_is_exact_where_the_metric_is_straight(model, pairs):
    """The stream after the last layer reaches the metric through the final layer norm alone; without one, straight."""
    straight = GPT2(GPT2Config(n_layers=2, n_heads=4, d_model=32, d_vocab=50, n_ctx=16, layer_norm=False)).eval()
    sweep = Sweep("mlp_out", ("layer", "pos"), layers=[1])
    found, true = attribution_patching(straight, pairs, sweep), sweep(straight, pairs)
    torch.testing.assert_close(found.values, true.values, rtol=1e-4, atol=1e-6)


def test_heads_add_up_to_their_layer_and_coarse_sweeps_are_sums_of_fine_ones(model, pairs):
    def effects(point: str, *axes: str) -> torch.Tensor:
        found = attribution_patching(model, pairs, Sweep(point, axes))
        return found.values - found.corrupted

    by_head = effects("z", "layer", "pos", "head")
    torch.testing.assert_close(by_head.sum(2), effects("attn_out", "layer", "pos"))
    torch.testing.assert_close(by_head.sum(1), effects("z", "layer", "head"))
    torch.testing.assert_close(effects("result", "head", "layer"), effects("z", "layer", "head").transpose(0, 1))
    torch.testing.assert_close(effects("post", "layer", "pos", "neuron").sum(2), effects("mlp_out", "layer", "pos"))
    square = effects("pattern", "layer", "head", "dest_pos", "src_pos")
    torch.testing.assert_close(square.sum(3), effects("pattern", "layer", "head", "dest_pos"))


def test_splitting_the_pairs_changes_nothing(model, pairs):
    sweep = patching.get_act_patch_attn_head_out_by_pos
    torch.testing.assert_close(
        attribution_patching(model, pairs, sweep, budget=1).values, attribution_patching(model, pairs, sweep).values
    )


def test_one_number_for_all_pairs_has_the_effects_of_all(model, pairs):
    sweep, metric = patching.get_act_patch_mlp_out, logit_difference([3, 4], [5, 6])
    named = attribution_patching(model, pairs, sweep, metric)
    one = attribution_patching(model, pairs, sweep, lambda logits: metric(logits, pairs.attention_mask).mean())
    assert one.values.shape == (2, 5, 1)
    torch.testing.assert_close(one.mean, named.mean)


def test_standing_edits_act_in_both_runs(model, pairs):
    def silence(value, site):
        return value * 0

    found = attribution_patching(model.with_edits({("z", 1): silence}), pairs, patching.get_act_patch_attn_head_out_by_pos)
    assert found.skipped[1].all()
    assert not found.skipped[0].all()


def test_correlation_leaves_out_what_could_not_differ(model, pairs):
    sweep = patching.get_act_patch_attn_head_out_by_pos
    found, true = attribution_patching(model, pairs, sweep), sweep(model, pairs)
    found, true = attribution_patching(model, pairs[1], sweep), sweep(model, pairs[1])
    both = correlation(found, true)
    chosen = ~true.skipped.all(-1)
    assert both.n == int(chosen.sum()) < true.mean.numel()
    stacked = torch.stack([(r.mean - r.corrupted.mean())[chosen] for r in (found, true)])
    assert both.pearson == pytest.approx(torch.corrcoef(stacked)[0, 1].item(), abs=1e-5)
    ranks = (stacked[:, :, None] > stacked[:, None]).sum(-1) + 0.5 * (stacked[:, :, None] == stacked[:, None]).sum(-1)
    assert both.spearman == pytest.approx(torch.corrcoef(ranks)[0, 1].item(), abs=1e-5)
    assert correlation(true, true).pearson == pytest.approx(1)
    with pytest.raises(AnalysisError, match="different sweeps"):
        correlation(found, sweep(model, pairs, direction="noising"))


@pytest.mark.parametrize(
    ("sweep", "error", "message"),
    [
        (Sweep("attn_scores", ("layer", "head")), AnalysisError, "attribute 'pattern' instead"),
        (Sweep("resid_pre", ("layer", "head")), AnalysisError, "has no heads"),
        (Sweep("z", ("layer",), layers=[2]), HookNameError, "no layer 2"),
        (Sweep("z", ("pos",)), HookNameError, "z"),
        (Sweep("z", ("layer", "pos"), positions=[5]), AnalysisError, "no position 5"),
        (Sweep("z", ("layer", "dest_pos")), AnalysisError, "no axis 'dest_pos'"),
    ],
)
def test_places_that_do_not_exist_are_refused(model, pairs, sweep, error, message):
    with pytest.raises(error, match=message):
        attribution_patching(model, pairs, sweep)


def test_what_cannot_be_attributed_is_refused(model, pairs):
    sweep = patching.get_act_patch_mlp_out
    with pytest.raises(AnalysisError, match="is nan for pair 0"):
        attribution_patching(model, pairs, sweep, lambda logits: logits[:, -1, 0] * torch.nan)
    with pytest.raises(AnalysisError, match="cannot be differentiated"):
        attribution_patching(model, pairs, sweep, rank([[3], [4]]))
    with pytest.raises(AnalysisError, match="neither 'denoising'"):
        attribution_patching(model, pairs, sweep, direction="both")
    with pytest.raises(AnalysisError, match="nothing to attribute"):
        attribution_patching(model, pairs[1], Sweep("z", ("layer", "pos"), positions=[0]))
