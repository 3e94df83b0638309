"""Two models compared: what was changed by hand is what moved, nothing else is, and numbers are those of whole passes."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp_gpt2.analysis import model_diff as module
from interp_gpt2.analysis.model_diff import DiffFromStep, model_diff
from interp_gpt2.analysis.model_matching import matched_heads, matched_neurons
from interp_gpt2.analysis.untrained import untrained_like
from interp_gpt2.analysis.weight_distance import weight_distances
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.sweeps import sweep

TOKENS = torch.randint(0, 50, (10, 16), generator=torch.Generator().manual_seed(0))
WINDOWS = Windows(TOKENS, torch.tensor([16, 16, 3, 16, 1, 9, 16, 16, 12, 16]), torch.arange(10))


@torch.no_grad()
def changed(model: GPT2, change: Callable[[GPT2], None]) -> GPT2:
    other = copy.deepcopy(model)
    change(other)
    return other


def head_of(model: GPT2, layer: int, head: int) -> torch.Tensor:
    """The rows of a head's queries."""
    d_head = model.config.d_head
    return model.blocks[layer].attn.qkv.weight[head * d_head : (head + 1) * d_head]


def test_a_model_is_not_apart_from_itself(model: GPT2) -> None:
    found = model_diff(model, copy.deepcopy(model), WINDOWS)
    for kind in ("weights", "heads"):
        assert all(part.value == 0 for part in getattr(found, kind))
        assert all(part.yardstick > 0 for part in getattr(found, kind))
    assert max(part.value for part in found.neurons) < 1e-9
    said = found.predictions
    assert (said.kl, said.agreement) == (0, 1)
    assert said.loss_a == said.loss_b
    assert said.kl_yardstick > 0.01


def test_what_was_changed_is_what_moved(model: GPT2) -> None:
    other = changed(model, lambda m: head_of(m, 1, 2).mul_(-3))
    found = model_diff(model, other, WINDOWS)
    assert [part.label for part in found.weights if part.value] == ["L1H2"]
    assert [part.label for part in found.heads if part.value > 1e-6] == ["L1H2"]
    assert found.most("heads", 1)[0].label == found.most("weights", 1)[0].label == "L1H2"
    assert {part.layer for part in found.neurons if part.value > 1e-6} == {1}

    def flip(m: GPT2) -> None:
        m.blocks[0].mlp.fc.weight[9] *= -1

    found = model_diff(model, changed(model, flip), WINDOWS)
    assert found.most("neurons", 1)[0].label == "L0N9"
    assert [part.label for part in found.weights if part.value] == ["L0 mlp"]
    assert all(part.value < 1e-6 for part in found.heads if part.layer == 0)


def test_numbers_are_those_of_whole_passes(model: GPT2, make_gpt2, config: GPT2Config, monkeypatch) -> None:
    monkeypatch.setattr(module, "_BATCH_TOKENS", 48)  # three windows a batch, and few positions of logits at once
    monkeypatch.setattr(module, "_LOGITS", 3 * 50 * 5)
    other, yardstick = make_gpt2(config, 1), make_gpt2(config, 2)
    found = model_diff(model, other, WINDOWS, yardstick)
    caches = [each.run_with_cache(TOKENS, ["*.pattern", "*.post"]) for each in (model, other, yardstick)]
    real = WINDOWS.real
    sees = real & (torch.arange(16) > 0)
    for part in (found.heads[1], found.heads[-1]):
        patterns = [cache["pattern", part.layer][:, part.head].detach() for _, cache in caches]
        apart = [(patterns[0] - each).abs().sum(-1)[sees].mean().item() / 2 for each in patterns[1:]]
        assert (part.value, part.yardstick) == pytest.approx(apart, abs=1e-6)
    for part in (found.neurons[3], found.neurons[-1]):
        one, two, three = (cache["post", part.layer][..., part.neuron][real].detach().double().numpy() for _, cache in caches)
        assert part.value == pytest.approx(1 - np.corrcoef(one, two)[0, 1], abs=1e-6)
        assert part.yardstick == pytest.approx(1 - np.corrcoef(one, three)[0, 1], abs=1e-6)
    a, b, c = (logits.detach().double().log_softmax(-1) for logits, _ in caches)
    said = found.predictions
    kl = (a.exp() * (a - b)).sum(-1)
    assert said.kl == pytest.approx(kl[real].mean().item(), abs=1e-6)
    assert said.kl_yardstick == pytest.approx((a.exp() * (a - c)).sum(-1)[real].mean().item(), abs=1e-6)
    assert said.agreement == pytest.approx((a.argmax(-1) == b.argmax(-1))[real].double().mean().item())
    has_next = real[:, 1:]
    losses = [-x[:, :-1].gather(-1, TOKENS[:, 1:, None])[..., 0][has_next].mean().item() for x in (a, b, c)]
    assert (said.loss_a, said.loss_b, said.loss_yardstick) == pytest.approx(losses, abs=1e-6)
    rise, beside = ((each.exp() - a.exp())[real].mean(0) for each in (b, c))
    assert [shift.token for shift in said.raised] == rise.argsort(descending=True)[:10].tolist()
    lowest = said.lowered[0]
    assert (lowest.token, lowest.value) == (int(rise.argmin()), pytest.approx(rise.min().item(), abs=1e-6))
    assert lowest.yardstick == pytest.approx(beside[lowest.token].item(), abs=1e-6)
    assert said.n == found.n == int(real.sum())
    by_document = kl.masked_fill(~real, -1).max(1)
    assert [change.document for change in said.changes] == by_document.values.argsort(descending=True).tolist()
    change = said.changes[0]
    assert change.position == int(by_document.indices[change.document])
    assert change.kl == pytest.approx(by_document.values.max().item(), abs=1e-6)
    assert change.tokens == tuple(TOKENS[change.document, : change.position + 1].tolist())
    assert change.before[0] == (int(a[change.document, change.position].argmax()), pytest.approx(
        a[change.document, change.position].max().exp().item(), abs=1e-6))  # fmt: skip


def test_the_untrained_yardstick_is_no_runs_first_checkpoint(config: GPT2Config) -> None:
    for seed in range(3):
        first = GPT2(config, seed).eval()
        assert min(part.yardstick for part in weight_distances(first, first, untrained_like(first)) if part.label == "embed") > 1


def test_padding_takes_no_part(make_gpt2, model: GPT2, config: GPT2Config) -> None:
    other = make_gpt2(config, 1)
    tokens = TOKENS.clone()
    tokens[~WINDOWS.real] = 7
    one, two = (model_diff(model, other, replace(WINDOWS, tokens=each)) for each in (TOKENS, tokens))
    assert one.heads == two.heads
    assert one.predictions == two.predictions


def test_every_parameter_is_in_exactly_one_part(any_model: GPT2) -> None:
    """A tensor that changes moves one part, or, where it is the heads', every head of its layer."""
    other = changed(any_model, lambda m: [weight.add_(0.01) for weight in m.parameters()])
    seen = set()
    for name in any_model.state_dict():
        one = copy.deepcopy(any_model)
        with torch.no_grad():
            one.state_dict()[name].add_(0.5)
        moved = [part.label for part in weight_distances(any_model, one, other) if part.value > 0]
        heads = any_model.config.n_heads if ".attn." in name and not name.endswith("proj.bias") else 1
        assert len(moved) == heads, name
        seen.update(moved)
    assert seen == {part.label for part in weight_distances(any_model, other, other)}


def test_reordered_heads_and_neurons_are_found_again(model: GPT2) -> None:
    heads, neurons = [2, 0, 3, 1], torch.randperm(128, generator=torch.Generator().manual_seed(3))

    def shuffle(m: GPT2) -> None:
        attn, mlp = m.blocks[1].attn, m.blocks[1].mlp
        for weights in (attn.qkv.weight, attn.qkv.bias):
            weights.copy_(weights.unflatten(0, (3, 4, 8))[:, heads].flatten(0, 2))
        attn.proj.weight.copy_(attn.proj.weight.unflatten(1, (4, 8))[:, heads].flatten(1))
        for weights in (mlp.fc.weight, mlp.fc.bias):
            weights.copy_(weights[neurons])
        mlp.proj.weight.copy_(mlp.proj.weight[:, neurons])

    other = changed(model, shuffle)
    torch.testing.assert_close(other(TOKENS), model(TOKENS), atol=1e-4, rtol=1e-4)
    assert max(part.value for part in model_diff(model, other, WINDOWS).heads if part.layer == 1) > 0.01
    found = matched_heads(model, other, WINDOWS)
    assert [match.other for match in found if match.layer == 0] == [0, 1, 2, 3]
    assert [heads[match.other] for match in found if match.layer == 1] == [0, 1, 2, 3]
    assert all(match.value > 1 - 1e-5 and match.by_chance < match.value for match in found)
    found = matched_neurons(model, other, WINDOWS)
    assert [int(neurons[match.other]) for match in found if match.layer == 1] == list(range(128))
    assert all(match.value == pytest.approx(1, abs=1e-5) for match in found)
    assert np.mean([match.by_chance for match in found]) < 0.7


def test_a_sweep_measures_every_step_from_one(markov_run, tmp_path) -> None:
    windows = Windows.of(next(markov_run.source().validation(16, 8))[:, :16])
    table = sweep(markov_run, DiffFromStep.of(markov_run, 9, windows), [0, 5, 9], workers=1, store=tmp_path)
    kl = table[table.metric == "diff_kl"].set_index("step").value
    assert kl[9] == 0
    assert kl[0] > kl[5] > 0
    direct = model_diff(markov_run.model(9), markov_run.model(0), windows)
    assert kl[0] == pytest.approx(direct.predictions.kl)
    rows = table[(table.step == 0) & (table.metric == "diff_pattern")]
    assert dict(zip(rows.label, rows.value, strict=True)) == pytest.approx({part.label: part.value for part in direct.heads})
    assert set(table.metric) >= {"diff_kl_untrained", "diff_weights_untrained", "diff_neuron", "diff_top1"}
    from_start = DiffFromStep.of(markov_run, 0, windows)(markov_run.model(9))
    biases = [row for row in from_start if row["metric"] == "diff_weights" and row["label"] == "L0 attention bias"]
    assert [row["value"] for row in biases] == [None], "they began at 0: no share of that"
    stale = replace(DiffFromStep.of(markov_run, 9, windows), sha256="0")
    with pytest.raises(AnalysisError, match="is not what it was"):
        stale(markov_run.model(0))


def test_a_table_holds_every_part(model: GPT2, make_gpt2, config: GPT2Config) -> None:
    found = model_diff(model, make_gpt2(config, 1), WINDOWS)
    frame = found.to_frame()
    assert len(frame) == len(found.weights) + len(found.heads) + len(found.neurons)
    row = frame[(frame.kind == "heads") & (frame.label == "L1H3")].iloc[0]
    assert (row.value, row.yardstick) == (found.heads[7].value, found.heads[7].yardstick)


def test_models_of_different_shapes_are_refused(model: GPT2, config: GPT2Config) -> None:
    other = GPT2(replace(config, n_heads=2))
    for compare in (model_diff, matched_heads, matched_neurons):
        with pytest.raises(AnalysisError, match="n_heads is 4 in one model and 2 in the other"):
            compare(model, other, WINDOWS)
    bare = GPT2(replace(config, attn_only=True)).eval()
    found = model_diff(bare, GPT2(bare.config, 1).eval(), WINDOWS)
    assert found.neurons == ()
    with pytest.raises(AnalysisError, match="no neurons"):
        matched_neurons(bare, bare, WINDOWS)
