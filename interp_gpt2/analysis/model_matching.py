"""Heads and neurons of two models paired by what they do, since two seeds learn them in no common order.

Within a layer, and one to one so that the sum over pairs is the best there is (Hungarian method). Beside each match stands
that of an untrained model: among many candidates some look alike by chance. Li et al. 2015, "Convergent Learning: Do
different neural networks learn the same representations?"; Gurnee et al. 2024, "Universal Neurons in GPT2 Language Models".
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.analysis.untrained import untrained_like
from interp_gpt2.analysis.weight_distance import check_same_shape
from interp_gpt2.analysis.windows import Windows, neuron_layers
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import Hooks
from interp_gpt2.model import GPT2

_WINDOWS_AT_ONCE = 4


@dataclass(frozen=True)
class Match:
    """Number `index` of a layer of `a` is most like number `other` of the same layer of `b`.

    `value` is their likeness, `by_chance` that of `index` and its match in the yardstick model.
    """

    layer: int
    index: int
    other: int
    value: float
    by_chance: float


def matched_neurons(a: GPT2, b: GPT2, windows: Windows, yardstick: GPT2 | None = None) -> tuple[Match, ...]:
    """Each neuron of `a` with one of `b`, by the correlation of their activations on the same tokens, in [-1, 1].

    Constant neurons correlate 0 with all. Keeps a layer's d_mlp x d_mlp correlations in float64, twice.
    `yardstick` None is an untrained model of its shape. Raises AnalysisError for models of different shapes.
    """
    models = _models(a, b, yardstick)
    found: list[Match] = []
    for layers in zip(*(neuron_layers(model, windows) for model in models), strict=True):
        layer = layers[0][0]
        sums = [_Products(model.config.d_mlp) for model in models[1:]]
        for batches in zip(*(batches for _, batches in layers), strict=True):
            one, *others = (activations.double() for _, activations in batches)
            for total, other in zip(sums, others, strict=True):
                total.add(one, other)
        found += _matches(layer, *(total.correlations for total in sums))
    return tuple(found)


class _Products:
    """Running sums for the correlations of all columns of one table with all of another."""

    def __init__(self, n: int) -> None:
        self.n, self.products = 0, torch.zeros(n, n, dtype=torch.float64)
        self.sums, self.squares = torch.zeros(2, n, dtype=torch.float64), torch.zeros(2, n, dtype=torch.float64)
        self.shifts: Tensor | None = None

    def add(self, x: Float[Tensor, "n column"], y: Float[Tensor, "n column"]) -> None:
        if self.shifts is None:
            self.shifts = torch.stack([x.mean(0), y.mean(0)])
        x, y = x - self.shifts[0], y - self.shifts[1]
        self.n += len(x)
        self.products += x.T @ y
        self.sums += torch.stack([x.sum(0), y.sum(0)])
        self.squares += torch.stack([x.square().sum(0), y.square().sum(0)])

    @property
    def correlations(self) -> Float[Tensor, "column other"]:
        covariances = self.products - torch.outer(self.sums[0], self.sums[1]) / self.n
        spread = (self.squares - self.sums.square() / self.n).clamp(min=0).sqrt()
        sizes = torch.outer(spread[0], spread[1])
        return torch.where(sizes > 1e-12, covariances / sizes, 0.0)


@torch.no_grad()
def matched_heads(a: GPT2, b: GPT2, windows: Windows, yardstick: GPT2 | None = None) -> tuple[Match, ...]:
    """Each head of `a` with one of `b`, by 1 - the total variation between their patterns, in [0, 1].

    The mean is over queries that see more than themselves; 1 is the same pattern everywhere. `yardstick` as above.
    Raises AnalysisError for models of different shapes, or without a query that sees another token.
    """
    models = _models(a, b, yardstick)
    config = a.config
    for model in models:
        require_eval(model)
    apart = torch.zeros(2, config.n_layers, config.n_heads, config.n_heads, dtype=torch.float64)
    n_queries = 0
    parts = zip(windows.tokens.split(_WINDOWS_AT_ONCE), windows.real.split(_WINDOWS_AT_ONCE), strict=True)
    for tokens, there in parts:
        sees = there & (torch.arange(there.shape[1]) > 0)
        n_queries += int(sees.sum())
        streams = [model.embed(tokens.to(model.device)) for model in models]
        for layer in range(config.n_layers):
            patterns = []
            for i, model in enumerate(models):
                hooks = Hooks(frozenset((f"blocks.{layer}.attn.pattern",)))
                streams[i] = model.run_blocks(streams[i], layer, layer + 1, hooks)
                patterns.append(hooks.cache[f"blocks.{layer}.attn.pattern"].float().cpu())
            for i in (1, 2):
                for head in range(config.n_heads):  # against all of the other's heads
                    distance = (patterns[0][:, [head]] - patterns[i]).abs().sum(-1) / 2
                    apart[i - 1, layer, head] += distance.transpose(1, 2)[sees].double().sum(0)
    if not n_queries:
        raise AnalysisError("no query sees another token; pass windows of two tokens or more")
    likeness = 1 - apart / n_queries
    return tuple(match for layer in range(config.n_layers) for match in _matches(layer, *likeness[:, layer]))


def _models(a: GPT2, b: GPT2, yardstick: GPT2 | None) -> tuple[GPT2, GPT2, GPT2]:
    models = (a, b, untrained_like(a) if yardstick is None else yardstick)
    check_same_shape(*models)
    return models


def _matches(layer: int, likeness: Float[Tensor, "one other"], by_chance: Float[Tensor, "one other"]) -> list[Match]:
    from scipy.optimize import linear_sum_assignment

    (rows, columns), (_, chance) = (linear_sum_assignment(np.asarray(each), maximize=True) for each in (likeness, by_chance))
    return [
        Match(layer, int(row), int(column), float(likeness[row, column]), float(by_chance[row, chance[row]]))
        for row, column in zip(rows, columns, strict=True)
    ]
