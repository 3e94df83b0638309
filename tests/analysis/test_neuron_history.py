"""Neurons over training: numbers against the cache, planted dead, always-on and token-promoting neurons, contexts."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp_gpt2.analysis.neuron_activity import NeuronActivity, layer_activity, strongest_writers
from interp_gpt2.analysis.neuron_history import QUANTILES, NeuronStatistics, logit_effects, neuron_histories
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.sweeps import sweep

TOKENS = torch.randint(0, 50, (12, 16), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([16, 3, 16, 1, 9, 16, 16, 12, 16, 16, 7, 16])
WINDOWS = Windows(TOKENS, LENGTHS, torch.arange(12) // 2)


@pytest.fixture
def models(make_gpt2, config: GPT2Config) -> dict[int, GPT2]:
    return {step: make_gpt2(config, seed) for seed, step in enumerate((0, 10, 100))}


def cached(model: GPT2, layer: int) -> torch.Tensor:
    return model.run_with_cache(TOKENS, "blocks.*.mlp.post")[1]["post", layer].detach()


def test_a_record_is_what_the_cache_holds_at_real_tokens(models: dict[int, GPT2]) -> None:
    histories = neuron_histories(models.__getitem__, [10, 0, 100], WINDOWS, [(1, 5), (0, 7), (1, 5)])
    assert [history.label for history in histories] == ["L1N5", "L0N7"]
    for history in histories:
        assert [record.step for record in history.records] == [0, 10, 100]
        for record in history.records:
            values = cached(models[record.step], history.layer)[..., history.neuron][WINDOWS.real]
            assert record.n == int(LENGTHS.sum()) == sum(record.counts)
            assert record.frequency == pytest.approx((values > 0).float().mean().item())
            assert (record.mean, record.std) == pytest.approx((values.mean().item(), values.std().item()), rel=1e-4)
            assert (record.lowest, record.highest) == pytest.approx((values.min().item(), values.max().item()), abs=1e-5)
            assert record.edges[0] == record.lowest
            assert record.edges[-1] == record.highest
            for shown in record.quantiles:
                at = shown.context.activations[shown.context.peak]
                assert at == pytest.approx(values.quantile(shown.quantile, interpolation="nearest").item(), abs=1e-5)
            assert [shown.quantile for shown in record.quantiles] == list(QUANTILES)


def test_likeness_to_the_last_step_is_a_correlation_and_two_cosines(models: dict[int, GPT2]) -> None:
    (history,) = neuron_histories(models.__getitem__, [0, 100], WINDOWS, [(1, 5)])
    first, last = history.records
    assert (last.correlation, last.input_cosine, last.output_cosine) == pytest.approx((1, 1, 1))
    values = [cached(models[step], 1)[..., 5][WINDOWS.real].numpy() for step in (0, 100)]
    assert first.correlation == pytest.approx(np.corrcoef(*values)[0, 1], abs=1e-5)
    for name, found in (("W_in", first.input_cosine), ("W_out", first.output_cosine)):
        one, other = (getattr(models[step], name)[1] for step in (0, 100))
        one, other = (one[:, 5], other[:, 5]) if name == "W_in" else (one[5], other[5])
        assert found == pytest.approx(torch.cosine_similarity(one, other, dim=0).item(), abs=1e-6)


def test_contexts_are_peaks_of_distinct_documents_without_padding(models: dict[int, GPT2]) -> None:
    (history,) = neuron_histories(models.__getitem__, [0], WINDOWS, [(0, 3)], n_contexts=4, width=6)
    values = cached(models[0], 0)[..., 3].masked_fill(~WINDOWS.real, -math.inf)
    by_document = values.amax(1).view(6, 2).amax(1).sort(descending=True)
    top = history.last.top
    assert [context.document for context in top] == by_document.indices[:4].tolist()
    for context, highest in zip(top, by_document.values, strict=False):
        assert context.activations[context.peak] == pytest.approx(highest.item(), abs=1e-5)
        assert len(context.tokens) <= 6


def test_effects_are_centred_output_weights_through_gain_and_unembedding(model: GPT2) -> None:
    (effect,) = logit_effects(model, [(1, 9)], k=50)
    direct = model.W_out[1, 9] - model.W_out[1, 9].mean()
    expected = (direct * model.ln_final.weight) @ model.W_U
    expected = (expected - expected.mean()).detach()
    found = torch.empty(50, dtype=torch.float64)
    for token, value in effect.promoted:
        found[token] = value
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=1e-4)
    assert effect.suppressed == tuple(reversed(effect.promoted))
    assert effect.std == pytest.approx(expected.std(correction=0).item(), rel=1e-4)


def test_adding_to_a_neuron_moves_logits_by_its_effects(model: GPT2) -> None:
    """In the last layer, a small push of the neuron changes logit differences by effect / final scale."""
    tokens = TOKENS[:1]
    (effect,) = logit_effects(model, [(1, 9)])
    model = model.double()
    (best, up), (worst, down) = effect.promoted[0], effect.suppressed[0]

    def push(value: torch.Tensor, site) -> torch.Tensor:
        value[..., 9] += 1e-5
        return value

    _, cache = model.run_with_cache(tokens, ["ln_final.scale", "ln_final.normalized"])
    moved = (model.run_with_edits(tokens, {("post", 1): push}) - model(tokens)) / 1e-5 * cache["ln_final.scale"]
    # The push also changes the scale itself: what it takes from the direction already there.
    pushed = model.W_out[1, 9] - model.W_out[1, 9].mean()
    along = cache["ln_final.normalized"]
    shrunk = (along @ pushed / model.config.d_model)[..., None] * along * model.ln_final.weight @ model.W_U
    difference = (moved + shrunk)[..., best] - (moved + shrunk)[..., worst]
    torch.testing.assert_close(difference, torch.full_like(difference, up - down), rtol=1e-3, atol=1e-4)


def test_a_planted_token_stands_out_of_chance(make_gpt2) -> None:
    model = make_gpt2(GPT2Config(n_layers=1, n_heads=2, d_model=32, d_vocab=500, n_ctx=16))
    with torch.no_grad():
        model.blocks[0].mlp.proj.weight[:, 3] = model.wte.weight[17] / model.ln_final.weight
        model.blocks[0].mlp.proj.weight[:, 4] = torch.randn(32, generator=torch.Generator().manual_seed(5))
    planted, random = logit_effects(model, [(0, 3), (0, 4)])
    assert planted.promoted[0][0] == 17
    assert planted.promoted[0][1] > 1.5 * planted.by_chance
    assert random.promoted[0][1] == pytest.approx(random.by_chance, rel=0.35)
    assert planted.kurtosis > random.kurtosis


@torch.no_grad()
def test_dead_and_always_on_neurons_are_those_planted(make_gpt2, config: GPT2Config) -> None:
    model = make_gpt2(replace(config, act_fn="relu"))
    before = NeuronActivity(WINDOWS)(model)
    model.blocks[1].mlp.fc.bias[:3] = -1e3
    model.blocks[1].mlp.fc.bias[3:5] = 1e3
    found = layer_activity([(TOKENS, cached(model, 1))])
    assert set(found.dead) >= {0, 1, 2}
    assert set(found.always_on) >= {3, 4}
    after = {(row["metric"], row["layer"]): row["value"] for row in NeuronActivity(WINDOWS)(model)}
    for row in before:
        grown = {"dead_neurons": 3, "always_on_neurons": 2}.get(row["metric"], 0) * (row["layer"] == 1)
        if row["metric"] != "firing_frequency":
            assert after[row["metric"], row["layer"]] >= row["value"] + grown / 128 - 5 / 128 * (grown == 0) * row["value"] - 1e-9
    assert after["firing_frequency_untrained", 0] == pytest.approx(0.5, abs=0.15)


def test_activity_in_batches_is_activity_at_once(model: GPT2) -> None:
    values = cached(model, 1)
    parts = layer_activity((TOKENS[i : i + 5], values[i : i + 5]) for i in range(0, 12, 5))
    rows = values.flatten(0, 1).double()
    torch.testing.assert_close(parts.mean, rows.mean(0))
    torch.testing.assert_close(parts.std, rows.std(0))
    torch.testing.assert_close(parts.highest, rows.amax(0))
    assert parts.n == 12 * 16


def test_strongest_writers_move_the_stream_most(model: GPT2) -> None:
    found = strongest_writers(model, WINDOWS, 4)
    assert [layer for layer, _ in found] == [0] * 4 + [1] * 4
    values = cached(model, 1)[WINDOWS.real]
    sizes = ((values - values.mean(0))[:, :, None] * model.W_out[1]).norm(dim=-1).square().mean(0)
    assert [neuron for _, neuron in found[4:]] == sorted(sizes.topk(4).indices.tolist())


def test_statistics_swept_over_a_run_are_its_histories_numbers(markov_run, tmp_path) -> None:
    windows = Windows.of(next(markov_run.source().validation(16, 8))[:, :16])
    table = sweep(markov_run, NeuronStatistics(windows, ((0, 3), (1, 2))), [0, 9], workers=1, store=tmp_path)
    for history in neuron_histories(markov_run.model, [0, 9], windows, [(0, 3), (1, 2)]):
        for record in history.records:
            rows = table[(table.step == record.step) & (table.label == history.label)].set_index("metric")
            assert rows.value["neuron_frequency"] == pytest.approx(record.frequency)
            assert rows.value["neuron_promoted"].tolist() == [token for token, _ in record.effect.promoted[:3]]
            assert rows.value["neuron_effect_by_chance"] == pytest.approx(record.effect.by_chance)


def test_what_is_not_there_is_refused(model: GPT2, config: GPT2Config) -> None:
    with pytest.raises(AnalysisError, match="no neuron 128 in layer 1: the model has 2 layers of 128 neurons"):
        neuron_histories(lambda step: model, [0], WINDOWS, [(1, 128)])
    with pytest.raises(AnalysisError, match="0 steps and 1 neurons"):
        neuron_histories(lambda step: model, [], WINDOWS, [(1, 1)])
    bare = GPT2(replace(config, attn_only=True)).eval()
    with pytest.raises(AnalysisError, match="2 layers of 0 neurons"):
        neuron_histories(lambda step: bare, [0], WINDOWS, [(1, 1)])
    with torch.no_grad():
        model.blocks[0].mlp.fc.bias[2] = math.nan
    with pytest.raises(AnalysisError, match="not finite"):
        neuron_histories(lambda step: model, [0], WINDOWS, [(1, 1)])
    with pytest.raises(AnalysisError, match="not finite"):
        NeuronActivity(WINDOWS)(model)
