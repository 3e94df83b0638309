"""Probes of k neurons, control tasks, and every neuron as a probe: planted answers, and what chance and memory reach."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from interp_gpt2.activations.creating import Recording, create_store
from interp_gpt2.activations.texts import Texts
from interp_gpt2.analysis.control_tasks import control_name, with_control_tasks
from interp_gpt2.analysis.neuron_probes import NeuronProbes, halves, layer_probes
from interp_gpt2.analysis.neuron_probing import baselines, linear_probe
from interp_gpt2.analysis.probe_sets import UNLABELLED, ProbeSet, probe_set
from interp_gpt2.analysis.sparse_probes import SparseProbes, sparse_probes
from interp_gpt2.analysis.windows import Windows, neuron_layers
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.tokenizers import CharTokenizer

WORDS = ["the", "An", "x1", '"so it is"', "42", "isn't", "Deep"]
QUOTES = "inside_quotes"


def text(seed: int) -> str:
    draw = np.random.default_rng(seed)
    lines = [" " * draw.choice([0, 0, 3, 6]) + " ".join(draw.choice(WORDS, size=6)) for _ in range(30)]
    return "\n".join(line + "\n" * (draw.random() < 0.3) for line in lines)


TEXTS = [text(seed) for seed in range(16)]
CHARS = CharTokenizer.from_text("".join(TEXTS))


@pytest.fixture(scope="module")
def data() -> ProbeSet:
    return probe_set([torch.tensor(CHARS.encode(each)) for each in TEXTS], CHARS, 48, n_tokens=1500)


@pytest.fixture(scope="module")
def with_controls(data: ProbeSet) -> ProbeSet:
    return with_control_tasks(data)


@pytest.fixture
def noise(data: ProbeSet) -> torch.Tensor:
    return torch.randn(*data.tokens.shape, 20, generator=torch.Generator().manual_seed(0))


# k-sparse -------------------------------------------------------------------------------------------------------------


def test_a_label_spread_over_two_neurons_needs_both(data: ProbeSet, noise: torch.Tensor) -> None:
    """Each of two neurons alone is blurred, by what their sum is free of."""
    blur = 4 * torch.randn(data.tokens.shape, generator=torch.Generator().manual_seed(1))
    noise[..., 7] = 3 * data.label(QUOTES).labels + blur
    noise[..., 11] = 3 * data.label(QUOTES).labels - blur
    one, two, eight = sparse_probes(noise, data, QUOTES, (1, 2, 8))
    assert two.neurons == (7, 11)
    assert set(two.neurons) < set(eight.neurons)
    assert two.score.auroc > 0.99
    assert one.score.auroc < 0.8
    assert eight.score.auroc == pytest.approx(two.score.auroc, abs=0.02)
    for probe in (one, two, eight):
        assert len(probe.neurons) == probe.k
        assert probe.shuffled == pytest.approx(0.5, abs=0.15)


def test_a_class_of_several_is_found_by_the_neurons_that_tell_any_of_them(data: ProbeSet, noise: torch.Tensor) -> None:
    depth = data.label("indentation").labels
    noise[..., 3] += 3 * (depth == 1)
    noise[..., 5] += 3 * (depth == 2)
    (probe,) = sparse_probes(noise, data, "indentation", (2,))
    assert probe.neurons == (3, 5)


def test_all_neurons_together_are_the_linear_probe(data: ProbeSet, noise: torch.Tensor) -> None:
    noise[..., 2] += data.label(QUOTES).labels
    (probe,) = sparse_probes(noise, data, QUOTES, (99,))
    assert probe.k == 20
    whole = linear_probe(noise, data, QUOTES).score
    assert (probe.score.auroc, probe.score.accuracy) == pytest.approx((whole.auroc, whole.accuracy), abs=2e-3)


def test_neurons_are_chosen_on_training_documents_only(data: ProbeSet, noise: torch.Tensor) -> None:
    noise[..., 4] += 2 * data.label(QUOTES).labels * ~data.is_test[:, None]
    noise[..., 9] += 9 * data.label(QUOTES).labels * data.is_test[:, None]
    (probe,) = sparse_probes(noise, data, QUOTES, (1,))
    assert probe.neurons == (4,)
    assert probe.score.auroc == pytest.approx(0.5, abs=0.1)


# Control tasks --------------------------------------------------------------------------------------------------------


def test_a_control_task_is_a_class_for_each_token_id_at_the_same_places(with_controls: ProbeSet) -> None:
    for name in (QUOTES, "indentation"):
        real, control = with_controls.label(name), with_controls.label(control_name(name))
        assert torch.equal(control.labels == UNLABELLED, real.labels == UNLABELLED)
        labelled = control.labels != UNLABELLED
        for token in with_controls.tokens[labelled].unique():
            assert len(control.labels[labelled & (with_controls.tokens == token)].unique()) == 1
        assert set(control.labels.unique().tolist()) == set(real.labels.unique().tolist())
        assert baselines(with_controls, control_name(name)).current_token.accuracy > 0.99
    n = len(with_controls.names) // 2
    assert with_control_tasks(with_controls).names[2 * n :] == with_controls.names[n:], "controls have no controls"


def test_what_knows_the_token_only_is_selective_for_nothing(with_controls: ProbeSet) -> None:
    """One-hot tokens tell a control task as a table does, and what the token does not tell of the quotes they do not."""
    one_hot = torch.nn.functional.one_hot(with_controls.tokens).float()
    real, control = (linear_probe(one_hot, with_controls, name).score for name in (QUOTES, control_name(QUOTES)))
    assert control.accuracy > 0.99
    assert real.accuracy < control.accuracy
    quotes = with_controls.label(QUOTES).labels
    planted = torch.stack([2.0 * quotes, torch.zeros(quotes.shape)], -1)
    real, control = (linear_probe(planted, with_controls, name).score for name in (QUOTES, control_name(QUOTES)))
    assert real.accuracy > control.accuracy
    assert real.auroc - control.auroc > 0.2


def test_too_few_token_ids_for_a_control_task_are_refused(data: ProbeSet) -> None:
    with pytest.raises(AnalysisError, match="no control task for 'inside_quotes': 1 token ids"):
        with_control_tasks(replace(data, tokens=torch.zeros_like(data.tokens)))


# All neurons ----------------------------------------------------------------------------------------------------------


def test_every_neuron_is_scored_as_scikit_learn_scores_it(data: ProbeSet, noise: torch.Tensor) -> None:
    from sklearn.metrics import roc_auc_score

    noise[..., 7] -= 2 * data.label(QUOTES).labels
    real = Windows.of_probe_set(data).real
    batches = [(data.tokens[i][real[i]], noise[i][real[i]]) for i in range(len(noise))]
    found = layer_probes(iter(batches), data)
    train, test = halves(data)
    at = data.names.index(QUOTES)
    assert (found.neurons[at], found.signs[at]) == (7, -1)
    values = noise[real].numpy()
    for neuron in (0, 7, 19):
        expected = roc_auc_score(train.positive[train.counted, at], values[train.counted, neuron])
        assert found.train.auroc[at, neuron] == pytest.approx(expected, abs=1e-12)
    tested = roc_auc_score(test.positive[test.counted, at], -values[test.counted, 7])
    assert found.tested[at].auroc == pytest.approx(tested, abs=1e-12)
    assert found.tested[at].low < tested < found.tested[at].high


@pytest.fixture(scope="module")
def model() -> GPT2:
    config = GPT2Config(n_layers=2, n_heads=2, d_model=32, d_vocab=CHARS.d_vocab, n_ctx=48, embed_std=0.5)
    return GPT2(config, seed=0)


def test_rows_put_every_label_beside_its_control_task(with_controls: ProbeSet, model: GPT2) -> None:
    rows = NeuronProbes(with_controls)(model)
    assert {row["layer"] for row in rows} == {0, 1}
    by = {(row["metric"], row["layer"], row["label"]): row for row in rows}
    for layer in (0, 1):
        real, control = (by[f"neuron_probe_auroc{kind}", layer, "digit"] for kind in ("", "_control"))
        assert control["value"] == by["neuron_probe_auroc", layer, control_name("digit")]["value"]
        assert control["neuron"] == by["neuron_probe_auroc", layer, control_name("digit")]["neuron"]
        assert real["low"] <= real["value"] <= real["high"]
        above = by["neurons_above_control", layer, "digit"]
        assert 0 <= above["value"] <= above["n"] == 128
    sparse = SparseProbes(with_controls, ("digit", control_name("digit")), (1, 4))(model)
    by = {(row["metric"], row["layer"], row["label"]): row["value"] for row in sparse}
    for k in (1, 4):
        found = [by[f"sparse_probe_{k}_accuracy", 1, name] for name in ("digit", control_name("digit"))]
        assert by[f"sparse_probe_{k}_selectivity", 1, "digit"] == found[0] - found[1]


def test_a_label_in_one_test_document_alone_has_no_interval_and_takes_nothing_from_the_others(data, model) -> None:
    one = data.documents == data.documents[data.is_test][0]
    rare = data.label("digit")
    labels = rare.labels * (one | ~data.is_test)[:, None] if bool((rare.labels[one] == 1).any()) else None
    assert labels is not None
    both = replace(data, labels=(replace(rare, labels=labels), data.label(QUOTES)))
    rows = {(row["metric"], row["layer"], row["label"]): row for row in NeuronProbes(both)(model)}
    assert "low" not in rows["neuron_probe_auroc", 0, "digit"]
    assert 0 < rows["neuron_probe_auroc", 0, "digit"]["value"] <= 1
    assert rows["neuron_probe_auroc", 0, QUOTES]["low"] < rows["neuron_probe_auroc", 0, QUOTES]["high"]


def test_a_store_serves_as_a_live_model_does(data: ProbeSet, model: GPT2, tmp_path: Path) -> None:
    texts = Texts.of(data.tokens, data.lengths, data.documents)
    store = create_store(tmp_path / "store", model, texts, Recording(["*mlp.post"], "float32", shard_bytes=100_000))
    live = {layer: layer_probes(batches, data) for layer, batches in neuron_layers(model, Windows.of_probe_set(data))}
    for layer, batches in store.layers("mlp.post"):
        found = layer_probes(batches, data)
        np.testing.assert_allclose(found.train.auroc, live[layer].train.auroc, atol=1e-4)  # other batches round otherwise
        assert found.neurons == live[layer].neurons
    assert set(live) == {0, 1}


def test_a_label_with_one_class_is_refused_by_name(data: ProbeSet, noise: torch.Tensor) -> None:
    constant = replace(data.labels[0], labels=torch.zeros_like(data.tokens))
    bad = replace(data, labels=(constant,))
    with pytest.raises(AnalysisError, match=f"label {constant.name!r} has one class only"):
        halves(bad)
    with pytest.raises(AnalysisError, match=f"label {constant.name!r} has one class only"):
        sparse_probes(noise, bad, constant.name)
    with pytest.raises(AnalysisError, match=f"label {constant.name!r} has one class only"):
        linear_probe(noise, bad, constant.name)
    with pytest.raises(AnalysisError, match="no labels"):
        layer_probes([], replace(data, labels=()))
    with pytest.raises(AnalysisError, match="at least one neuron"):
        sparse_probes(noise, data, QUOTES, (0, 1))
