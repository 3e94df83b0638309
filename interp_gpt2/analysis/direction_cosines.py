"""Which directions in the stream point the same way: what heads and neurons write against what is read, by cosine.

    neuron_outputs, unembedding = neuron_output_directions(model), unembedding_directions(model)
    max_cosines(neuron_outputs, unembedding, k=3).to_frame()

In a space of many directions the best of many cosines is large by chance alone, and larger where directions crowd, as
embeddings do. So every table comes with what random directions reach against the same others. Of the weights as they stand:
gains and means of layer norms stand between them unless they are folded (`folding.process_weights`). Gurnee et al. 2024,
"Universal Neurons in GPT2 Language Models".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.attention_patterns import head_label
from interp_gpt2.analysis.residual import neuron_labels
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

if TYPE_CHECKING:
    from pandas import DataFrame

_CHUNK = 2**22  # cosines held at once: 16 MiB in float32
_N_RANDOM = 1000


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions in the stream with their names and layers: -1 is the embedding's, n_layers the unembedding's."""

    values: Float[Tensor, "direction d_model"]
    labels: tuple[str, ...]
    layers: Int[Tensor, "direction"]


@dataclass(frozen=True, eq=False)
class MaxCosines:
    """For each of some directions the k others of largest and of smallest cosine, in [-1, 1].

    The yardstick: the largest cosine of a random direction with the same others is above `random_median` half of the time
    and above `random_high` once in a hundred times; the smallest is below `random_low` once in a hundred times. A table of
    n rows has n chances. Where there are fewer than k others, entries are NaN, with index -1. A direction of length 0 has
    cosine 0 with everything.
    """

    labels: tuple[str, ...]
    other_labels: tuple[str, ...]
    top: Int[Tensor, "direction k"]
    top_values: Float[Tensor, "direction k"]
    bottom: Int[Tensor, "direction k"]
    bottom_values: Float[Tensor, "direction k"]
    random_median: float
    random_high: float
    random_low: float

    def to_frame(self) -> "DataFrame":
        """A row for each entry: label, end ("top" or "bottom"), rank, other, value, random_median, random_high, random_low.
        Largest absolute value first."""
        import pandas

        columns = []
        for end, ids, values in [("top", self.top, self.top_values), ("bottom", self.bottom, self.bottom_values)]:
            kept = ids >= 0
            row, rank = kept.nonzero(as_tuple=True)
            found = {"label": [self.labels[at] for at in row.tolist()], "end": end, "rank": rank.cpu().numpy()}
            found |= {"other": [self.other_labels[at] for at in ids[kept].tolist()], "value": values[kept].cpu().numpy()}
            columns.append(pandas.DataFrame(found))
        frame = pandas.concat(columns, ignore_index=True)
        frame = frame.assign(random_median=self.random_median, random_high=self.random_high, random_low=self.random_low)
        return frame.sort_values("value", key=abs, ascending=False, kind="stable", ignore_index=True)


# Directions -----------------------------------------------------------------------------------------------------------


def embedding_directions(model: GPT2, token_labels: Sequence[str] | None = None) -> Directions:
    """Rows of W_E, named by the vocabulary's labels (a tokenizer's `labels`), else by ids."""
    return _directions(model.W_E, _token_names(model, token_labels), [-1] * model.config.d_vocab)


def unembedding_directions(model: GPT2, token_labels: Sequence[str] | None = None) -> Directions:
    """Columns of W_U, less their mean: what raises a token over others; raising all alike says nothing."""
    W_U = model.W_U.T - model.W_U.T.mean(0)
    return _directions(W_U, _token_names(model, token_labels), [model.config.n_layers] * model.config.d_vocab)


def neuron_output_directions(model: GPT2) -> Directions:
    """Rows of W_out: "L0N0", "L0N1", ..."""
    return _of_neurons(model, model.W_out)


def neuron_input_directions(model: GPT2) -> Directions:
    """Columns of W_in, as rows: "L0N0", "L0N1", ..."""
    return _of_neurons(model, model.W_in.mT)


def head_output_directions(model: GPT2, n: int = 1) -> Directions:
    """The n directions each head writes in most: right singular vectors of W_V @ W_O, "L0H0.0", "L0H0.1", ...

    Largest singular value first. Their signs are arbitrary, so that "top" and "bottom" of a table mean the same.
    """
    return _of_heads(model, model.OV.svd()[2], n)


def head_input_directions(model: GPT2, n: int = 1) -> Directions:
    """The n directions each head reads most as value: left singular vectors of W_V @ W_O. As `head_output_directions`."""
    return _of_heads(model, model.OV.svd()[0], n)


# Tables ---------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def max_cosines(directions: Directions, others: Directions, k: int = 1, later_only: bool = False, seed: int = 0) -> MaxCosines:
    """For each direction, the k of the others that are most like it and most opposed to it.

    Of directions among themselves, none is compared with itself. `later_only` compares with others of later layers alone,
    those that can read what is written. The yardstick: the same for 1,000 random directions (`seed`), against all of the
    others. No table of all pairs ever exists. Raises AnalysisError for directions of different width, and if k is more than
    there are others.
    """
    if directions.values.shape[1] != others.values.shape[1]:
        widths = directions.values.shape[1], others.values.shape[1]
        raise AnalysisError(f"directions of width {widths[0]} and {widths[1]} are not in the same stream")
    if not 1 <= k <= len(others.labels):
        raise AnalysisError(f"k={k} must be 1 to the {len(others.labels)} directions to compare with")
    left, right = _unit(directions.values), _unit(others.values)
    step, found = max(1, _CHUNK // len(right)), []
    among_themselves = torch.equal(directions.values, others.values)
    for start in range(0, len(left), step):
        some, layers = left[start : start + step], directions.layers[start : start + step]
        hidden = layers[:, None] >= others.layers.to(layers.device) if later_only else None
        if among_themselves:
            itself = torch.eye(len(some), len(right), dtype=torch.bool, device=left.device).roll(start, 1)
            hidden = itself if hidden is None else hidden | itself
        found.append(_extremes(some @ right.T, hidden, k))
    top, top_values, bottom, bottom_values = (torch.cat(column) for column in zip(*found, strict=True))
    random = F.normalize(torch.randn(_N_RANDOM, right.shape[1], generator=torch.Generator().manual_seed(seed)).to(right), dim=1)
    best = [(part.amax(1), part.amin(1)) for part in (some @ right.T for some in random.split(step))]
    high, low = (torch.cat(column) for column in zip(*best, strict=True))
    yardstick = float(high.median()), float(high.quantile(0.99)), float(low.quantile(0.01))
    return MaxCosines(directions.labels, others.labels, top, top_values, bottom, bottom_values, *yardstick)


@torch.no_grad()
def neuron_self_cosines(model: GPT2) -> Float[Tensor, "layer neuron"]:
    """Cosine of what each neuron reads with what it writes: does it strengthen (+) or erase (-) what it found?

    Unrelated directions have mean 0 and standard deviation 1 / sqrt(d_model).
    """
    return F.cosine_similarity(model.W_in.mT, model.W_out, dim=-1)


def _extremes(cosines: Float[Tensor, "direction other"], hidden: Tensor | None, k: int) -> tuple[Tensor, ...]:
    ends = []
    for sign in (1, -1):
        signed = sign * cosines
        signed = signed if hidden is None else signed.masked_fill(hidden, -torch.inf)
        values, ids = signed.topk(k)
        absent = values == -torch.inf
        ends += [ids.masked_fill(absent, -1), (sign * values).masked_fill(absent, torch.nan)]
    return tuple(ends)


def _of_neurons(model: GPT2, weights: Float[Tensor, "layer neuron d_model"]) -> Directions:
    labels = neuron_labels(model, model.config.n_layers)
    layers = [layer for layer in range(model.config.n_layers) for _ in range(model.config.d_mlp)]
    return _directions(weights.flatten(0, 1), labels, layers)


def _of_heads(model: GPT2, vectors: Float[Tensor, "layer head d_model k"], n: int) -> Directions:
    n_layers, n_heads, _, k = vectors.shape
    if not 1 <= n <= k:
        raise AnalysisError(f"n={n} must be 1 to {k}, the number of singular directions of a head")
    every = [(layer, head, i) for layer in range(n_layers) for head in range(n_heads) for i in range(n)]
    labels = [f"{head_label(layer, head)}.{i}" for layer, head, i in every]
    return _directions(vectors[..., :n].mT.flatten(0, 2), labels, [layer for layer, _, _ in every])


def _directions(values: Tensor, labels: Iterable[str], layers: list[int]) -> Directions:
    return Directions(values.detach(), tuple(labels), torch.tensor(layers, dtype=torch.long, device=values.device))


def _token_names(model: GPT2, labels: Sequence[str] | None) -> Sequence[str]:
    if labels is not None and len(labels) != model.config.d_vocab:
        raise AnalysisError(f"{len(labels)} labels are not the {model.config.d_vocab} tokens of the model's vocabulary")
    return labels if labels is not None else [str(token) for token in range(model.config.d_vocab)]


def _unit(values: Tensor) -> Tensor:
    return F.normalize(values.to(torch.promote_types(values.dtype, torch.float32)), dim=1)
