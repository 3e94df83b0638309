"""AUROC of all neurons: against scikit-learn and the pairs themselves, ties included; the sketch within its own bound."""

import numpy as np
import pytest
import torch

from interp_gpt2.analysis.neuron_auroc import BinaryLabels, exact_aurocs, streamed_aurocs
from interp_gpt2.analysis.windows import Windows, columns_of, neuron_layers
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

N = 3000


def labels_of(n: int = N, counted: float = 1.0, seed: int = 0) -> BinaryLabels:
    draw = np.random.default_rng(seed)
    positive = draw.random((n, 3)) < (0.5, 0.1, 0.02)
    return BinaryLabels(("even", "rare", "rarer"), positive, draw.random(n) < counted)


def activations(kind: str, labels: BinaryLabels, n_neurons: int = 7) -> np.ndarray:
    """(token, neuron): neuron i tells label i mod 3 a little."""
    draw = np.random.default_rng(1)
    values = draw.standard_normal((len(labels.counted), n_neurons)).astype(np.float32)
    values += 0.5 * labels.positive[:, np.arange(n_neurons) % 3]
    if kind == "relu":
        values = np.maximum(values, 0)
        values[::2] *= -1  # as many -0.0 as 0.0
    if kind == "bfloat16":
        values = torch.from_numpy(values).bfloat16().float().numpy()
    if kind == "drifting":  # later tokens come from elsewhere than those that the bins are made from
        values[N // 3 :] += 4
    return values


def in_batches(values: np.ndarray, size: int = 500) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(len(part), dtype=torch.long), part) for part in torch.from_numpy(values).split(size)]


def by_pairs(values: np.ndarray, positive: np.ndarray) -> float:
    above = values[positive][:, None] - values[~positive]
    return ((above > 0) + (above == 0) / 2).mean()


KINDS = ["normal", "relu", "bfloat16", "drifting"]


@pytest.mark.parametrize("kind", KINDS)
def test_exact_is_what_scikit_learn_and_the_pairs_say(kind: str) -> None:
    from sklearn.metrics import roc_auc_score

    labels = labels_of(counted=0.8)
    values = activations(kind, labels)
    found = exact_aurocs(np.ascontiguousarray(values.T), labels)
    for label in range(3):
        for neuron in range(7):
            x, y = values[labels.counted, neuron], labels.positive[labels.counted, label]
            assert found.auroc[label, neuron] == pytest.approx(roc_auc_score(y, x), abs=1e-12)
    x, y = values[labels.counted, 1], labels.positive[labels.counted, 1]
    assert found.auroc[1, 1] == pytest.approx(by_pairs(x, y), abs=1e-12)
    assert len(x) < N
    assert (found.error == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_bins", [16, 128])
def test_streamed_is_within_its_bound_of_exact(kind: str, n_bins: int) -> None:
    labels = labels_of(counted=0.8)
    values = activations(kind, labels)
    exact = exact_aurocs(columns_of(in_batches(values), N), labels)
    streamed = streamed_aurocs(in_batches(values), labels, n_bins)
    assert (np.abs(streamed.auroc - exact.auroc) <= streamed.error + 1e-12).all()
    if kind != "drifting":
        assert streamed.error.max() < 1.5 / (2 * n_bins)
    assert (streamed.error > 0).any()
    assert streamed.best.tolist() == exact.best.tolist() or n_bins == 16


def test_the_bound_is_reached_when_the_order_within_bins_is_all_that_tells() -> None:
    """Two bins hold as many positives as negatives, in each bin the positives above: all that is unknown goes one way."""
    values, positive = np.array([0.0, 1, 10, 11] * 8, np.float32), [False, True, False, True] * 8
    labels = BinaryLabels.of(positive)
    streamed = streamed_aurocs(in_batches(values[:, None], 32), labels, 2)
    assert (streamed.auroc.item(), streamed.error.item()) == (0.5, 0.25)
    assert exact_aurocs(values[None], labels).auroc.item() == 0.75


def test_zeros_of_a_relu_tie_and_cost_no_bound() -> None:
    values = np.tile(np.array([0, 0, 1, 0, 0, 2], np.float32), 100)
    labels = BinaryLabels.of(np.arange(600) % 5 == 0)
    streamed, exact = streamed_aurocs(in_batches(values[:, None]), labels, 8), exact_aurocs(values[None], labels)
    assert streamed.auroc.item() == pytest.approx(exact.auroc.item(), abs=1e-12)
    assert streamed.error.item() == 0


def test_a_flipped_neuron_has_the_opposite_auroc_and_a_monotone_one_the_same() -> None:
    labels = labels_of()
    values = np.ascontiguousarray(activations("normal", labels).T)
    plain, flipped = exact_aurocs(values, labels), exact_aurocs(-values, labels)
    np.testing.assert_allclose(plain.auroc + flipped.auroc, 1, atol=1e-12)
    np.testing.assert_array_equal(exact_aurocs(values * 8, labels).auroc, plain.auroc)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_has_no_auroc_is_refused(bad: float) -> None:
    with pytest.raises(AnalysisError, match="label 'quotes' has one class only: 0 of 5 counted tokens are positive"):
        BinaryLabels.of([False] * 5, "quotes")
    labels = BinaryLabels.of([False, True] * 2)
    with pytest.raises(AnalysisError, match="not finite"):
        exact_aurocs(np.array([[0, 1, bad, 2]], np.float32), labels)
    with pytest.raises(AnalysisError, match="4 labelled tokens"):
        exact_aurocs(np.zeros((2, 5), np.float32), labels)
    for read in (lambda batches: columns_of(batches, 4), lambda batches: streamed_aurocs(batches, labels)):
        for n in (3, 5):
            with pytest.raises(AnalysisError, match="pass as many labels"):
                read(in_batches(np.zeros((n, 2), np.float32), 2))


def test_a_live_models_layers_are_its_cached_activations(model: GPT2) -> None:
    tokens = torch.randint(0, 50, (5, 16), generator=torch.Generator().manual_seed(0))
    windows = Windows(tokens, torch.tensor([16, 3, 16, 1, 9]), torch.tensor([0, 0, 1, 2, 2]))
    _, cache = model.run_with_cache(tokens, "blocks.*.mlp.post")
    seen = []
    for layer, batches in neuron_layers(model, windows):
        if layer == 0:
            continue  # what is not read still counts for the layers above
        columns = columns_of(batches, windows.n_tokens)
        np.testing.assert_allclose(columns, cache["post", layer][windows.real].T.detach(), atol=1e-5)
        seen.append(layer)
    assert seen == [1]
    assert windows.token_documents.tolist() == [0] * 19 + [1] * 16 + [2] * 10


def test_windows_and_models_without_neurons_are_refused() -> None:
    with pytest.raises(AnalysisError, match="lengths run from 0 to 4"):
        Windows(torch.zeros(2, 4, dtype=torch.long), torch.tensor([0, 4]), torch.arange(2))
    with pytest.raises(AnalysisError, match="are not"):
        Windows(torch.zeros(2, 4, dtype=torch.long), torch.tensor([4]), torch.arange(2))
    bare = GPT2(GPT2Config(n_layers=1, n_heads=1, d_model=4, d_vocab=5, n_ctx=4, attn_only=True))
    with pytest.raises(AnalysisError, match="no neurons"):
        next(neuron_layers(bare, Windows.of(torch.zeros(1, 4, dtype=torch.long))))
