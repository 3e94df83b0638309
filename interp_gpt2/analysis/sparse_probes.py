"""Probes that may read k neurons only: how few are enough, and which.

A property that one neuron tells as well as all of them is represented there; one that needs many is spread over them.
Gurnee et al. 2023, "Finding Neurons in a Haystack: Case Studies with Sparse Probing" (adaptive thresholding).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.classification import Score, score
from interp_gpt2.analysis.control_tasks import control_name
from interp_gpt2.analysis.neuron_auroc import BinaryLabels, exact_aurocs
from interp_gpt2.analysis.neuron_probing import fitted_probe, labelled_halves, mlp_activations, score_rows
from interp_gpt2.analysis.probe_sets import ProbeSet
from interp_gpt2.analysis.rows import Analysis, Row
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

_CANDIDATES = 4  # times the largest k
_N_SHUFFLINGS = 5


@dataclass(frozen=True)
class SparseProbe:
    """A probe of `neurons` (k of them, in ascending order) scored on test documents.

    `shuffled` is the mean test AUROC of 5 twins trained on shuffled labels, whose neurons were chosen in the same way for
    these: what choosing k among so many is worth. (One twin would not do: where a neuron splits the tokens as the label
    does, a twin that reads it is far from 0.5, on either side.)
    """

    label: str
    k: int
    neurons: tuple[int, ...]
    score: Score
    shuffled: float
    n_train: int


def sparse_probes(
    activations: Float[Tensor, "window pos neuron"], data: ProbeSet, label: str, ks: Sequence[int] = (1, 2, 4, 8, 16, 32)
) -> tuple[SparseProbe, ...]:
    """A probe for each of `ks`, all chosen and trained on training documents.

    The 4 x max(ks) neurons whose own AUROC is farthest from 0.5 (for any class against the rest) are ranked; then, from the
    largest k down, a logistic regression of the neurons left keeps those with the largest weights. The smaller sets lie
    within the larger. A k beyond the number of neurons is that number.

    Raises AnalysisError as `linear_probe` does, or for a k below 1.
    """
    from threadpoolctl import threadpool_limits  # scikit-learn's own

    if not ks or min(ks) < 1:
        raise AnalysisError(f"ks={tuple(ks)}; a sparse probe reads at least one neuron")
    train_x, train_y, test_x, test_y, documents = labelled_halves(activations, data, label)
    n_classes = data.label(label).current_token.shape[1]
    kept = sorted({min(k, train_x.shape[1]) for k in ks}, reverse=True)

    def probes(y: Int[np.ndarray, "n"]) -> dict[int, tuple[tuple[int, ...], Score]]:
        scored = {}
        for k, neurons in _chosen(train_x, y, kept):
            said = fitted_probe(train_x[:, neurons], y).probabilities(test_x[:, neurons], n_classes)
            scored[k] = tuple(sorted(neurons.tolist())), score(said, test_y, documents)
        return scored

    draw = np.random.default_rng(0)
    with threadpool_limits(1):  # as in linear_probe: such small products lose by threads
        real = probes(train_y)
        twins = [probes(draw.permutation(train_y)) for _ in range(_N_SHUFFLINGS)]
    return tuple(
        SparseProbe(label, k, *real[k], float(np.mean([twin[k][1].auroc for twin in twins])), len(train_y)) for k in sorted(real)
    )


def _chosen(x: Float[np.ndarray, "n neuron"], y: Int[np.ndarray, "n"], ks: list[int]) -> list[tuple[int, np.ndarray]]:
    """For each k, in descending order, which neurons."""
    classes = np.unique(y)
    one_sided = classes[1:] if len(classes) == 2 else classes
    names = tuple(f"class {value}" for value in one_sided)
    labels = BinaryLabels(names, y[:, None] == one_sided, np.ones(len(y), dtype=bool))
    strength = np.abs(exact_aurocs(np.ascontiguousarray(x.T), labels).auroc - 0.5).max(0)
    neurons = np.argsort(-strength, kind="stable")[: _CANDIDATES * ks[0]]
    found = []
    for k in ks:
        if k < len(neurons):
            weights = np.linalg.norm(fitted_probe(x[:, neurons], y).weights, axis=0)
            neurons = neurons[np.argsort(-weights, kind="stable")[:k]]
        found.append((k, neurons))
    return found


@dataclass(frozen=True, eq=False)
class SparseProbes(Analysis):
    """`sparse_probes` of every layer's MLP, for a sweep.

    For each label, layer and k: "sparse_probe_4_auroc" and "sparse_probe_4_accuracy" with 95 % intervals over documents, and
    "sparse_probe_4_auroc_shuffled". In a set with control tasks these are labels like others, and "sparse_probe_4_selectivity" is
    the label's accuracy less its control task's.
    """

    data: ProbeSet
    labels: tuple[str, ...] | None = None
    ks: tuple[int, ...] = (1, 4, 16)
    name: str = "sparse_probes"

    def __call__(self, model: GPT2) -> list[Row]:
        rows: list[Row] = []
        for layer, activations in mlp_activations(model, self.data.tokens):
            accuracies: dict[tuple[str, int], float] = {}
            where = {"hook_point": f"blocks.{layer}.mlp.post", "layer": layer}
            for name in self.data.names if self.labels is None else self.labels:
                for probe in sparse_probes(activations, self.data, name, self.ks):
                    at = {**where, "label": name}
                    rows += score_rows("", probe.score, at, f"sparse_probe_{probe.k}")
                    rows.append({"metric": f"sparse_probe_{probe.k}_auroc_shuffled", **at, "value": probe.shuffled})
                    accuracies[name, probe.k] = probe.score.accuracy
            for (name, k), accuracy in accuracies.items():
                control = accuracies.get((control_name(name), k))
                if control is not None:
                    metric = f"sparse_probe_{k}_selectivity"
                    rows.append({"metric": metric, **where, "label": name, "value": accuracy - control})
        return rows
