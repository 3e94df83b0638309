"""Every neuron of a model as a probe by itself: AUROC of all of them for every label, beside what control tasks reach.

The neuron that tells a label best is the best of thousands, so that it is chosen on training documents and scored on test
documents; and the same choice for a control task, a random class for each token id, is its yardstick.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from interp_gpt2.analysis.control_tasks import control_name
from interp_gpt2.analysis.delong import AurocInterval, delong
from interp_gpt2.analysis.neuron_auroc import BinaryLabels, NeuronAurocs, exact_aurocs
from interp_gpt2.analysis.probe_sets import UNLABELLED, ProbeSet
from interp_gpt2.analysis.rows import Analysis, Row
from interp_gpt2.analysis.windows import Batch, Windows, columns_of, neuron_layers, of_these_tokens
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2


@dataclass(frozen=True, eq=False)
class LayerProbes:
    """Every neuron of one layer as a probe: `train` holds the AUROC of all, `tested` that of each label's best on test text.

    `tested` is of sign x activation, so that above 0.5 means as in training; its intervals are over documents, and there are
    none for a label that one test document alone has (or lacks).
    """

    train: NeuronAurocs
    neurons: tuple[int, ...]
    signs: tuple[int, ...]
    tested: tuple[AurocInterval, ...]


def halves(data: ProbeSet) -> tuple[BinaryLabels, BinaryLabels]:
    """The labels of the real tokens, of training and of test documents; several classes count as being above 0.

    A token that lacks some label counts for none. Raises AnalysisError for a label with one class.
    """
    real = Windows.of_probe_set(data).real
    values = np.stack([of.labels[real].numpy() for of in data.labels], axis=1)
    is_test = data.is_test[:, None].expand_as(real)[real].numpy()
    everywhere = (values != UNLABELLED).all(1)
    train, test = (BinaryLabels(data.names, values > 0, everywhere & half) for half in (~is_test, is_test))
    return train, test


def layer_probes(batches: Iterable[Batch], data: ProbeSet) -> LayerProbes:
    """One layer's neurons, from batches of the real tokens' activations in order (a live model's or a store's).

    Exact; holds the whole layer once, 4 bytes x neurons x tokens. Raises AnalysisError for batches of other tokens or another
    number of them, a label with one class, or activations that are not finite.
    """
    if not data.labels:
        raise AnalysisError(f"the probe set has no labels: {dict(data.skipped)}")
    windows = Windows.of_probe_set(data)
    columns = columns_of(of_these_tokens(batches, windows.tokens[windows.real]), windows.n_tokens)
    train, test = halves(data)
    found = exact_aurocs(columns, train)
    documents = windows.token_documents.numpy()[test.counted]
    neurons, signs, tested = found.best.tolist(), [], []
    for label, neuron in enumerate(neurons):
        signs.append(1 if found.auroc[label, neuron] >= 0.5 else -1)
        values = signs[-1] * columns[neuron, test.counted]
        tested.append(delong(values, test.positive[test.counted, label], documents))
    return LayerProbes(found, tuple(neurons), tuple(signs), tuple(tested))


@dataclass(frozen=True, eq=False)
class NeuronProbes(Analysis):
    """`layer_probes` of every layer, for a sweep. Made for a set `with_control_tasks`.

    Rows by layer, label and best neuron: "neuron_probe_auroc" on test documents with its interval, "neuron_probe_sign", and
    "neuron_probe_auroc_train". Beside each label that has a control task: "neuron_probe_auroc_control", what the neuron
    chosen for that one reaches on test documents; and by layer "neurons_above_control", how many of the n neurons are
    farther from 0.5 in training than any of them is for the control task.
    """

    data: ProbeSet
    name: str = "neuron_probes"

    def __call__(self, model: GPT2) -> list[Row]:
        rows: list[Row] = []
        for layer, batches in neuron_layers(model, Windows.of_probe_set(self.data)):
            rows += self._rows(layer, layer_probes(batches, self.data))
        return rows

    def _rows(self, layer: int, found: LayerProbes) -> list[Row]:
        rows: list[Row] = []
        names = found.train.names
        for i, name in enumerate(names):
            at = {"hook_point": f"blocks.{layer}.mlp.post", "layer": layer, "label": name}
            its = {**at, "neuron": found.neurons[i]}
            train = float(found.train.auroc[i, found.neurons[i]])
            rows += [
                _row("neuron_probe_auroc", its, found.tested[i]),
                {"metric": "neuron_probe_auroc_train", **its, "value": max(train, 1 - train)},
                {"metric": "neuron_probe_sign", **its, "value": found.signs[i]},
            ]
            if control_name(name) in names:
                j = names.index(control_name(name))
                strength = np.abs(found.train.auroc - 0.5)
                above = int((strength[i] > strength[j].max()).sum())
                rows += [
                    _row("neuron_probe_auroc_control", {**at, "neuron": found.neurons[j]}, found.tested[j]),
                    {"metric": "neurons_above_control", **at, "value": above, "n": strength.shape[1]},
                ]
        return rows


def _row(metric: str, where: Row, found: AurocInterval) -> Row:
    row = {"metric": metric, **where, "value": found.auroc, "n": found.n}
    return row if math.isnan(found.stderr) else row | {"low": found.low, "high": found.high}
