"""Analyses read from a store give what they give of the model that was stored, and of other tokens they refuse."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from interp_gpt2.activations.creating import Recording, create_store
from interp_gpt2.activations.store import ActivationStore
from interp_gpt2.activations.texts import Texts
from interp_gpt2.analysis.neuron_history import neuron_histories
from interp_gpt2.analysis.neuron_probes import layer_probes
from interp_gpt2.analysis.neuron_probing import linear_probe, max_activating_contexts
from interp_gpt2.analysis.probe_sets import ProbeSet, probe_set
from interp_gpt2.analysis.sparse_probes import sparse_probes
from interp_gpt2.analysis.stored import probe_grid, top_activations, tuned_lens_of_store
from interp_gpt2.analysis.tuned_lens import LensTraining, fit_tuned_lens
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.errors import AnalysisError, HookNameError, StoreError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.run import Run
from interp_gpt2.tokenizers import CharTokenizer

WORDS = ["the", "An", "x1", '"so it is"', "42", "Deep"]
SHORT = LensTraining(n_steps=20, n_positions=48, lr=3e-3)
Make = Callable[..., ActivationStore]


def text(seed: int) -> str:
    draw = np.random.default_rng(seed)
    return "\n".join(" ".join(draw.choice(WORDS, size=4)) for _ in range(20))


@pytest.fixture(scope="module")
def data() -> ProbeSet:
    texts = [text(seed) for seed in range(12)]
    chars = CharTokenizer.from_text("".join(texts))
    return probe_set([torch.tensor(chars.encode(each)) for each in texts], chars, 16, n_tokens=600)


@pytest.fixture
def stored(data: ProbeSet, model: GPT2, tmp_path: Path) -> ActivationStore:
    texts = Texts.of(data.tokens, data.lengths, data.documents)
    names = ["blocks.0.resid_pre", "*resid_post", "*mlp.post"]
    return create_store(tmp_path / "store", model, texts, Recording(names, "float32", 8, 200_000))


def test_top_activations_are_the_models(stored: ActivationStore, data: ProbeSet, model: GPT2) -> None:
    found = top_activations(stored, ("mlp.post", 1), [5, 90], k=4, width=10)
    assert [contexts.label for contexts in found] == ["L1N5", "L1N90"]
    for contexts, neuron in zip(found, (5, 90), strict=True):
        live = max_activating_contexts(model, data, 1, neuron, k=4, width=10)
        assert (contexts.n, contexts.mean, contexts.std) == pytest.approx((live.n, live.mean, live.std), rel=1e-4)
        for here, there in zip(contexts.contexts, live.contexts, strict=True):
            assert (here.document, here.position, here.tokens, here.peak) == (
                there.document, there.position, there.tokens, there.peak)  # fmt: skip
            assert here.activations == pytest.approx(there.activations, abs=1e-4)
    (stream,) = top_activations(stored, "blocks.0.resid_post", [3], k=1, width=1)
    rows = stored["blocks.0.resid_post"][:][:, 3]
    assert stream.contexts[0].activations == (float(rows.max()),)
    assert stream.contexts[0].tokens == (int(stored.columns["tokens"][rows.argmax()]),)
    with pytest.raises(AnalysisError, match=r"units \[128\] are not among those of blocks\.1\.mlp\.post: it has 128, from 0"):
        top_activations(stored, ("mlp.post", 1), [128])


def test_linear_and_sparse_probes_of_a_grid_are_those_of_the_cache(stored: ActivationStore, data: ProbeSet, model: GPT2) -> None:
    with torch.no_grad():
        _, cache = model.run_with_cache(data.tokens, ["blocks.0.resid_post", "blocks.1.mlp.post"])
    real = Windows.of_probe_set(data).real
    for name in cache:
        torch.testing.assert_close(probe_grid(stored, data, name)[real], cache[name][real], atol=1e-4, rtol=1e-4)
    label = data.names[0]
    at = "blocks.0.resid_post"
    assert linear_probe(probe_grid(stored, data, at), data, label).score.auroc == pytest.approx(
        linear_probe(cache[at], data, label).score.auroc, abs=1e-3)  # fmt: skip
    neurons = "blocks.1.mlp.post"
    live = sparse_probes(cache[neurons], data, label, (1, 4))
    assert [probe.neurons for probe in sparse_probes(probe_grid(stored, data, neurons), data, label, (1, 4))] == [
        probe.neurons for probe in live]  # fmt: skip


def test_labels_of_other_tokens_are_refused(data: ProbeSet, model: GPT2, tmp_path: Path) -> None:
    texts = Texts.of((data.tokens + 1) % 50, data.lengths, data.documents)  # as many, and others
    other = create_store(tmp_path / "other", model, texts, Recording(["*mlp.post"], "float32"))
    with pytest.raises(AnalysisError, match="other tokens than the probe set's"):
        probe_grid(other, data, ("mlp.post", 0))
    with pytest.raises(AnalysisError, match="from token 0 on are of other tokens than the labels"):
        layer_probes(other.batches(("mlp.post", 0)), data)


def test_histories_read_from_a_store_of_a_run_are_the_models(markov_run: Run, tmp_path: Path) -> None:
    tokens = torch.cat(list(markov_run.source().validation(markov_run.config.n_ctx, 64)))[:24, :-1]
    steps, neurons = [0, 9], [(1, 5), (0, 7)]
    store = create_store(tmp_path / "s", markov_run, Texts.of(tokens), Recording(["*mlp.post"], "float32", 8, 60_000), steps)
    live = neuron_histories(markov_run.model, steps, Windows.of(tokens), neurons, n_contexts=2, width=8)
    found = neuron_histories(markov_run.model, steps, store, neurons, n_contexts=2, width=8)
    assert [history.label for history in found] == ["L1N5", "L0N7"]
    for here, there in zip(found, live, strict=True):
        assert [record.step for record in here.records] == steps
        for one, other in zip(here.records, there.records, strict=True):
            assert (one.frequency, one.n) == (other.frequency, other.n)
            assert (one.mean, one.std, one.highest) == pytest.approx((other.mean, other.std, other.highest), abs=1e-5)
            assert [context.tokens for context in one.top] == [context.tokens for context in other.top]
            assert (one.effect, one.output_cosine) == (other.effect, other.output_cosine)
            assert one.correlation == pytest.approx(other.correlation, abs=1e-4)
    with pytest.raises(StoreError, match="no step 3"):
        neuron_histories(markov_run.model, [3, 9], store, neurons)
    with pytest.raises(StoreError, match="activations of another model"):
        neuron_histories(lambda step: markov_run.model(0), [9], store, neurons)
    part = create_store(tmp_path / "part", markov_run, Texts.of(tokens), Recording(["blocks.0.mlp.post"]), [9])
    with pytest.raises(AnalysisError, match=r"layer 1 are not stored; store blocks\.1\.mlp\.post"):
        neuron_histories(markov_run.model, [9], part, neurons)


def test_a_tuned_lens_of_a_store_is_the_one_trained_on_the_model(model: GPT2, tmp_path: Path) -> None:
    tokens = torch.randint(0, 50, (24, 16), generator=torch.Generator().manual_seed(3))
    recording = Recording(["blocks.0.resid_pre", "*resid_post"], "float32", 8, 30_000)
    store = create_store(tmp_path / "store", model, Texts.of(tokens), recording)
    live, found = fit_tuned_lens(model, tokens, SHORT), tuned_lens_of_store(store, model, training=SHORT)
    assert live.A.abs().max() > 0.01
    torch.testing.assert_close(found.A, live.A, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(found.b, live.b, atol=2e-4, rtol=1e-3)
    with pytest.raises(StoreError, match="activations of another model"):
        tuned_lens_of_store(store, GPT2(model.config, seed=5).eval(), training=SHORT)
    part = create_store(tmp_path / "part", model, Texts.of(tokens), Recording(["*resid_post"]))
    with pytest.raises(HookNameError, match=r"'blocks\.0\.resid_pre' is not stored"):
        tuned_lens_of_store(part, model, training=SHORT)


def test_a_tuned_lens_of_a_store_sees_no_padding(model: GPT2, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(4)
    tokens, lengths = torch.randint(0, 50, (24, 16), generator=draw), torch.randint(1, 17, (24,), generator=draw)
    names = ["blocks.0.resid_pre", "*resid_post"]
    padded = [tokens.where(torch.arange(16) < lengths[:, None], fill) for fill in (0, 49)]
    lenses = [
        tuned_lens_of_store(create_store(tmp_path / f"{i}", model, Texts.of(each, lengths), Recording(names)), model, None, SHORT)
        for i, each in enumerate(padded)
    ]
    assert torch.equal(lenses[0].A, lenses[1].A)
