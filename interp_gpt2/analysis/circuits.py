"""What heads do by their weights alone: do they copy, and do they read what earlier heads write?

Of the weights as they stand: gains of layer norms stand between them and the stream, so `folding.fold_layer_norm` comes
first where those are not 1. Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.analysis.attention_patterns import head_label
from interp_gpt2.factored import FactoredMatrix
from interp_gpt2.model import GPT2
from interp_gpt2.weights import OV, QK, W_E, W_U

if TYPE_CHECKING:
    from pandas import DataFrame

_RANDOM_HEADS = 128


@dataclass(frozen=True, eq=False)
class CopyingScores:
    """Of every head, in [-1, 1]: 1 if it raises whatever it attends to, -1 if it lowers it.

    A head of random weights scores 0 on average, and `random_std` is by how much such heads spread; `random_highest`, where it is
    measured, is what the highest of as many such heads as the model has scores on average.
    """

    values: Float[Tensor, "layer head"]
    random_std: float
    random_highest: float | None = None


def copying_score(circuit: FactoredMatrix) -> Float[Tensor, "*lead"]:
    """Sum of the eigenvalues over the sum of their absolute values, in [-1, 1]; NaN of a zero matrix.

    The sum is the trace, and real. Positive eigenvalues make more of what goes in: they copy.
    """
    eigenvalues = circuit.eigenvalues
    return eigenvalues.sum(-1).real / eigenvalues.abs().sum(-1)


@torch.no_grad()
def ov_copying_scores(model: GPT2) -> CopyingScores:
    """`copying_score` of OV, from the stream to the stream: does a head write in the direction it has read?

    `random_std` is about 3 / (2 d_head).
    """
    return CopyingScores(copying_score(OV(model)), 1.5 / model.config.d_head)


@torch.no_grad()
def full_ov_copying_scores(model: GPT2) -> CopyingScores:
    """`copying_score` of the full OV circuit W_E @ OV @ W_U, from tokens to logits: does a head raise what it attends to?

    `random_std` is measured, on 128 heads of normal weights between this model's own embeddings: where these have a few
    large directions, as in trained models, random heads lie much farther from 0 than 3 / (2 d_head).
    """
    # The same eigenvalues, but for zeros, as (W_U @ W_E) @ OV, which has no vocabulary axis.
    between = W_U(model) @ W_E(model)
    draw = torch.Generator().manual_seed(0)
    V, O = (torch.randn(_RANDOM_HEADS, *shape, generator=draw).to(between) for shape in _factors(model))  # noqa: E741
    random = copying_score(between @ FactoredMatrix(V, O))
    n_heads = model.config.n_layers * model.config.n_heads
    return CopyingScores(copying_score(between @ OV(model)), float(random.square().mean().sqrt()), _largest_of(n_heads, random))


def _largest_of(n: int, values: Float[Tensor, "value"]) -> float:
    """The mean of the largest of each `n` values in turn; the largest of all where there are not as many."""
    return float(torch.stack([part.max() for part in values.split(n) if len(part) == min(n, len(values))]).mean())


def _factors(model: GPT2) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of a head's W_V and W_O."""
    d_model, d_head = model.config.d_model, model.config.d_head
    return (d_model, d_head), (d_head, d_model)


@dataclass(frozen=True, eq=False)
class CompositionScores:
    """`values[l1, h1, l2, h2]`: how much head l2.h2 reads of what head l1.h1 writes, in [0, 1]; 0 unless l1 < l2.

    `unrelated` = 1 / sqrt(d_model) is the root mean square score of a pair that reads and writes in unrelated (randomly
    rotated) directions, exactly. Only what lies above it speaks for composition.
    """

    values: Float[Tensor, "layer head layer head"]
    unrelated: float


@dataclass(frozen=True, eq=False)
class Compositions:
    """All three ways in which later heads read what earlier heads write."""

    q: CompositionScores
    k: CompositionScores
    v: CompositionScores

    def to_frame(self) -> "DataFrame":
        """A row for each pair and way: sender "L0H1", receiver "L1H2.k", sender_layer, sender_head, receiver_layer,
        receiver_head, input ("q", "k" or "v"), score, unrelated (what a pair without relation scores). Largest first; NaN,
        of heads whose weights are 0, last."""
        import pandas

        records = []
        for name, scores in [("q", self.q), ("k", self.k), ("v", self.v)]:
            n_layers, n_heads = scores.values.shape[:2]
            for l1, h1, l2, h2 in torch.cartesian_prod(*map(torch.arange, (n_layers, n_heads) * 2)).tolist():
                if l1 < l2:
                    ends = {"sender": head_label(l1, h1), "receiver": f"{head_label(l2, h2)}.{name}"}
                    where = {"sender_layer": l1, "sender_head": h1, "receiver_layer": l2, "receiver_head": h2}
                    score = {"input": name, "score": float(scores.values[l1, h1, l2, h2]), "unrelated": scores.unrelated}
                    records.append(ends | where | score)
        columns = ["sender", "receiver", "sender_layer", "sender_head", "receiver_layer", "receiver_head"]
        frame = pandas.DataFrame(records, columns=[*columns, "input", "score", "unrelated"])
        return frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)


def compositions(model: GPT2) -> Compositions:
    """`q_composition`, `k_composition` and `v_composition` of all pairs of heads, for a table."""
    return Compositions(q_composition(model), k_composition(model), v_composition(model))


def q_composition(model: GPT2) -> CompositionScores:
    """|OV1 @ QK2| / (|OV1| |QK2|), Frobenius norms: the later head's queries read what the earlier head writes."""
    return _composition(OV(model), QK(model))


def k_composition(model: GPT2) -> CompositionScores:
    """|OV1 @ QK2.T| / (|OV1| |QK2|): the later head's keys read what the earlier head writes."""
    return _composition(OV(model), QK(model).T)


def v_composition(model: GPT2) -> CompositionScores:
    """|OV1 @ OV2| / (|OV1| |OV2|): the later head's values read what the earlier head writes."""
    return _composition(OV(model), OV(model))


@torch.no_grad()
def _composition(earlier: FactoredMatrix, later: FactoredMatrix) -> CompositionScores:
    n_layers, n_heads, d_model, _ = earlier.shape
    # Rotations of the outer axes change no norm of a product, and without them these are d_head wide.
    left, right = earlier.collapse_l(), later.collapse_r()  # (layer, head, k, d_model), (layer, head, d_model, k)
    norms = earlier.norm()[:, :, None, None] * later.norm()
    scores = torch.zeros_like(norms)
    for layer in range(n_layers - 1):  # one matrix product for all pairs of a layer with the later ones
        products = left[layer].flatten(0, 1) @ right[layer + 1 :].permute(2, 0, 1, 3).flatten(1)
        squares = products.square().unflatten(1, (n_layers - 1 - layer, n_heads, -1)).unflatten(0, (n_heads, -1)).sum((1, -1))
        scores[layer, :, layer + 1 :] = squares.sqrt() / norms[layer, :, layer + 1 :]
    return CompositionScores(scores, 1 / math.sqrt(d_model))
