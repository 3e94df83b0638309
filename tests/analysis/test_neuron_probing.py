import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interp_gpt2.analysis.logit_lens import residual_streams
from interp_gpt2.analysis.neuron_probing import (
    BestNeurons,
    Probes,
    baselines,
    best_neurons,
    linear_probe,
    max_activating_contexts,
    top_contexts,
)
from interp_gpt2.analysis.probe_sets import UNLABELLED, probe_set
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.tokenizers import CharTokenizer

N_CTX = 48
WORDS = ["the", "An", "x1", '"so it is"', "42", "isn't", "Deep"]


def document(seed: int) -> str:
    draw = np.random.default_rng(seed)
    lines = [" " * draw.choice([0, 0, 3, 6]) + " ".join(draw.choice(WORDS, size=6)) for _ in range(30)]
    return "\n".join(line + "\n" * (draw.random() < 0.3) for line in lines)


TEXTS = [document(seed) for seed in range(16)]
CHARS = CharTokenizer.from_text("".join(TEXTS))


@pytest.fixture(scope="module")
def data():
    return probe_set([torch.tensor(CHARS.encode(text)) for text in TEXTS], CHARS, N_CTX, n_tokens=1500)


@pytest.fixture(scope="module")
def model():
    config = GPT2Config(n_layers=2, n_heads=2, d_model=32, d_vocab=CHARS.d_vocab, n_ctx=N_CTX, embed_std=0.5)
    return GPT2(config, seed=0)


@pytest.fixture(scope="module")
def noise(data):
    return torch.randn(*data.tokens.shape, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("label", ["inside_quotes", "indentation"])
def test_a_planted_direction_is_read_and_its_control_is_not(data, noise, label):
    direction = torch.randn(20, generator=torch.Generator().manual_seed(1))
    planted = noise + 3 * data.label(label).labels[..., None] * direction
    probe = linear_probe(planted, data, label)
    assert probe.contextual
    assert probe.score.auroc > 0.99
    assert probe.score.accuracy > 0.95
    assert probe.score.accuracy > baselines(data, label).last_two_tokens.accuracy
    assert probe.shuffled.accuracy <= baselines(data, label).majority.accuracy + 0.01


def test_noise_is_read_at_chance(data, noise):
    for label in data.names:
        probe = linear_probe(noise, data, label)
        assert probe.score.auroc_low - 0.03 < 0.5 < probe.score.auroc_high + 0.03
        assert probe.score.accuracy <= baselines(data, label).majority.accuracy + 0.02
        assert probe.shuffled.auroc == pytest.approx(0.5, abs=0.1)


def test_a_probe_is_sklearns_pipeline_on_training_documents_scored_on_test_documents(data, noise):
    labels = data.label("uppercase").labels
    planted = noise.clone()
    planted[..., 3] += labels
    kept = labels != UNLABELLED
    train, test = kept & ~data.is_test[:, None], kept & data.is_test[:, None]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(planted[train].numpy(), labels[train].numpy())
    probe = linear_probe(planted, data, "uppercase")
    assert probe.score.accuracy == pytest.approx(pipeline.score(planted[test].numpy(), labels[test].numpy()), abs=1e-3)
    expected = roc_auc_score(labels[test].numpy(), pipeline.decision_function(planted[test].numpy()))
    assert probe.score.auroc == pytest.approx(expected, abs=1e-3)  # another summation order, then an iterative fit
    assert (probe.n_train, probe.score.n) == (int(train.sum()), int(test.sum()))


def test_baselines_know_what_the_last_characters_tell(data):
    uppercase, word_start, quotes = (baselines(data, name) for name in ("uppercase", "word_start", "inside_quotes"))
    assert uppercase.current_token.accuracy == 1.0
    assert word_start.current_token.accuracy < 0.97
    assert word_start.last_two_tokens.accuracy > 0.99
    assert quotes.last_two_tokens.accuracy < 0.97
    assert quotes.majority.auroc == 0.5
    tested = data.label("inside_quotes").labels[data.is_test]
    tested = tested[tested != UNLABELLED]
    assert quotes.majority.accuracy == pytest.approx(float((tested == 0).double().mean()))


def test_the_embedding_tells_the_current_character_but_not_the_quotes(model, data):
    embedding = residual_streams(model, data.tokens)[0]
    assert linear_probe(embedding, data, "uppercase").score.auroc > 0.99
    assert linear_probe(embedding, data, "inside_quotes").score.auroc < 0.97


def test_rows_hold_every_stream_and_every_yardstick(model, data):
    rows = Probes(data, labels=("inside_quotes",))(model)
    streams = residual_streams(model, data.tokens)
    by_place = {(row["metric"], row.get("hook_point")): row for row in rows}
    points = ["blocks.0.resid_pre", "blocks.0.resid_post", "blocks.1.resid_post"]
    expected = {(f"probe_{m}{kind}", point) for m in ("accuracy", "auroc") for kind in ("", "_shuffled") for point in points}
    lone = ("_majority", "_current_token", "_last_two_tokens")
    expected |= {(f"probe_{m}{kind}", None) for m in ("accuracy", "auroc") for kind in lone}
    assert set(by_place) == expected
    assert len(rows) == len(expected)
    assert [by_place["probe_auroc", point].get("layer") for point in points] == [None, 0, 1]
    for stream, point in zip(streams, points, strict=True):
        probe = linear_probe(stream, data, "inside_quotes")
        row = by_place["probe_auroc", point]
        assert (row["value"], row["low"], row["high"]) == (probe.score.auroc, probe.score.auroc_low, probe.score.auroc_high)
        assert by_place["probe_accuracy_shuffled", point]["value"] == probe.shuffled.accuracy
        assert row["label"] == "inside_quotes"
    assert {row["label"] for row in Probes(data)(model)} == set(data.names)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_neuron_is_found_with_its_sign(data, noise, sign):
    planted = noise.clone()
    planted[..., 7] += 2 * sign * data.label("inside_quotes").labels
    planted[..., 11] += 2 * sign * (data.label("indentation").labels > 0)
    quotes, depth = best_neurons(planted, data, ["inside_quotes", "indentation"])
    assert (quotes.neuron, quotes.sign) == (7, sign)
    assert (depth.neuron, depth.sign) == (11, sign)
    labels = data.label("inside_quotes").labels[data.is_test]
    kept = labels != UNLABELLED
    expected = roc_auc_score(labels[kept].numpy(), sign * planted[data.is_test][..., 7][kept].numpy())
    assert quotes.auroc == pytest.approx(expected, abs=1e-12)
    assert quotes.low < quotes.auroc < quotes.high
    assert quotes.auroc > 0.85
    assert quotes.shuffled == pytest.approx(0.5, abs=0.1)


def test_a_neuron_is_chosen_on_training_documents_only(data, noise):
    planted = noise.clone()
    labels = data.label("inside_quotes").labels
    planted[..., 4] += 2 * labels * ~data.is_test[:, None]  # works in training
    planted[..., 9] += 9 * labels * data.is_test[:, None]  # works on the test documents, which must not be seen
    (best,) = best_neurons(planted, data, ["inside_quotes"])
    assert best.neuron == 4
    assert best.auroc_train > 0.85
    assert best.auroc == pytest.approx(0.5, abs=0.1)


def test_best_neuron_rows_are_those_of_each_layers_mlp(model, data):
    rows = BestNeurons(data)(model)
    _, cache = model.run_with_cache(data.tokens, "*.mlp.post")
    for layer in range(2):
        for best in best_neurons(cache["post", layer].detach(), data):
            (row,) = [r for r in rows if (r["metric"], r["layer"], r["label"]) == ("neuron_auroc", layer, best.label)]
            assert (row["neuron"], row["value"]) == (best.neuron, pytest.approx(best.auroc, abs=1e-6))
    assert len(rows) == 2 * len(data.names) * 4


def test_planted_peaks_are_shown_in_order_from_distinct_documents(data):
    activations = torch.zeros(data.tokens.shape)
    first, second = (int((data.documents == number).nonzero()[0]) for number in data.documents.unique()[:2])
    activations[first, 30], activations[first, 2], activations[second, 1] = 5.0, 4.0, 3.0
    a, b = top_contexts(activations, data, k=2, width=9)
    assert (a.document, a.position, a.activations[a.peak]) == (int(data.documents[first]), 30, 5.0)
    assert (b.document, b.position, b.activations[b.peak]) == (int(data.documents[second]), 1, 3.0)
    assert a.tokens == tuple(data.tokens[first, 26:35].tolist())
    assert b.tokens == tuple(data.tokens[second, :9].tolist())
    assert a.tokens[a.peak] == data.tokens[first, 30]


def test_padding_is_never_shown(data):
    activations = (torch.arange(N_CTX) >= data.lengths[:, None]).float() * 9
    assert (data.lengths < N_CTX).any()
    for context in top_contexts(activations, data, k=99, width=N_CTX):
        assert max(context.activations) == 0


def test_contexts_of_a_neuron_stand_beside_its_mean(model, data):
    found = max_activating_contexts(model, data, layer=1, neuron=5, k=3, width=11)
    _, cache = model.run_with_cache(data.tokens, [("post", 1)])
    real = torch.arange(N_CTX) < data.lengths[:, None]
    values = cache["post", 1][..., 5].detach()
    assert found.label == "L1N5"
    assert len(found.contexts) == 3
    assert len({context.document for context in found.contexts}) == 3
    peak = found.contexts[0]
    assert peak.activations[peak.peak] == pytest.approx(float(values[real].max()), abs=1e-6)
    assert found.mean == pytest.approx(float(values[real].mean()), abs=1e-6)
    assert found.n == int(real.sum())


def test_activations_of_half_precision_models_can_be_probed(data, noise):
    probe = linear_probe(noise.bfloat16(), data, "digit")
    assert probe.score == linear_probe(noise.bfloat16().float(), data, "digit").score
    assert best_neurons(noise.bfloat16(), data) == best_neurons(noise.bfloat16().float(), data)


def test_what_cannot_be_probed_is_refused(model, data, noise):
    with pytest.raises(AnalysisError, match="no label 'quotes'"):
        linear_probe(noise, data, "quotes")
    with pytest.raises(AnalysisError, match="are not"):
        linear_probe(noise[:, 1:], data, "digit")
    with pytest.raises(AnalysisError, match="diverged"):
        linear_probe(noise * math.nan, data, "digit")
    with pytest.raises(AnalysisError, match="2 layers of 128 neurons"):
        max_activating_contexts(model, data, layer=1, neuron=128)
    attn_only = GPT2(GPT2Config(n_layers=1, n_heads=2, d_model=16, d_vocab=CHARS.d_vocab, n_ctx=N_CTX, attn_only=True))
    with pytest.raises(AnalysisError, match="no MLP"):
        BestNeurons(data)(attn_only)
