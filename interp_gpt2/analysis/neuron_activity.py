"""How often neurons fire, and those that never or always do.

A neuron fires where its activation is above 0, which for GELU and ReLU is where its input is. One that does not fire on n
tokens is dead as far as they tell: it may fire on up to 3 / n of all tokens (95 %; more where tokens are not independent).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.analysis.rows import Analysis, Row
from interp_gpt2.analysis.untrained import untrained_like
from interp_gpt2.analysis.windows import Batch, Windows, neuron_layers
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2


@dataclass(frozen=True, eq=False)
class LayerActivity:
    """Of every neuron of a layer: the share of the `n` tokens on which it fires, and its activations' moments and range."""

    frequency: Float[Tensor, "neuron"]
    mean: Float[Tensor, "neuron"]
    std: Float[Tensor, "neuron"]
    lowest: Float[Tensor, "neuron"]
    highest: Float[Tensor, "neuron"]
    n: int

    @property
    def dead(self) -> list[int]:
        """Neurons that fire on none of the tokens."""
        return (self.frequency == 0).nonzero()[:, 0].tolist()

    @property
    def always_on(self) -> list[int]:
        """Neurons that fire on all of them."""
        return (self.frequency == 1).nonzero()[:, 0].tolist()


def layer_activity(batches: Iterable[Batch]) -> LayerActivity:
    """One reading of a layer's activations; only sums are kept, in float64.

    Raises AnalysisError without tokens, or for an activation that is not finite.
    """
    n, parts = 0, None
    for _, activations in batches:
        rows = activations.detach().flatten(0, -2).double()
        if not len(rows):
            continue
        if not rows.isfinite().all():
            raise AnalysisError("an activation is not finite; has the model diverged?")
        mean = rows.mean(0)
        new = [(rows > 0).sum(0), mean, (rows - mean).square().sum(0), rows.amin(0), rows.amax(0)]
        parts = new if parts is None else _joined(parts, n, new, len(rows))
        n += len(rows)
    if parts is None:
        raise AnalysisError("there are no activations to look at; pass at least one token")
    fired, mean, squares, lowest, highest = parts
    return LayerActivity(fired.double() / n, mean, (squares / max(n - 1, 1)).sqrt(), lowest, highest, n)


def _joined(one: list[Tensor], n: int, other: list[Tensor], m: int) -> list[Tensor]:
    """Chan, Golub and LeVeque 1983: a sum of squares of all values less the square of their mean would cancel."""
    apart = other[1] - one[1]
    mean = one[1] + apart * m / (n + m)
    squares = one[2] + other[2] + apart.square() * n * m / (n + m)
    return [one[0] + other[0], mean, squares, torch.minimum(one[3], other[3]), torch.maximum(one[4], other[4])]


@dataclass(frozen=True, eq=False)
class NeuronActivity(Analysis):
    """Shares of dead and of always-on neurons, and the median firing frequency, by layer, for a sweep.

    "dead_neurons", "always_on_neurons" and "firing_frequency" with n tokens; beside each, "..._untrained": the same of an
    untrained model of its shape.
    """

    windows: Windows
    name: str = "neuron_activity"

    def __call__(self, model: GPT2) -> list[Row]:
        return [row for kind, of in (("", model), ("_untrained", untrained_like(model))) for row in self._rows(kind, of)]

    def _rows(self, kind: str, model: GPT2) -> list[Row]:
        rows: list[Row] = []
        for layer, batches in neuron_layers(model, self.windows):
            found = layer_activity(batches)
            n_neurons = len(found.frequency)
            values = {
                "dead_neurons": len(found.dead) / n_neurons,
                "always_on_neurons": len(found.always_on) / n_neurons,
                "firing_frequency": float(found.frequency.median()),
            }
            where = {"hook_point": f"blocks.{layer}.mlp.post", "layer": layer, "n": found.n}
            rows += [{"metric": metric + kind, **where, "value": value} for metric, value in values.items()]
        return rows


def strongest_writers(model: GPT2, windows: Windows, n_per_layer: int) -> list[tuple[int, int]]:
    """The (layer, neuron)s that move the stream most: standard deviation of the activation x norm of the output weights.

    `n_per_layer` of each layer (all, if it has no more), in the order of their numbers.
    """
    found = []
    for layer, batches in neuron_layers(model, windows):
        norms = model.blocks[layer].mlp.proj.weight.detach().norm(dim=0).double().cpu()
        order = (layer_activity(batches).std.cpu() * norms).sort(descending=True, stable=True).indices
        found += [(layer, neuron) for neuron in sorted(order[:n_per_layer].tolist())]
    return found
