"""What heads do by their weights, over training: copying scores and compositions of `circuits` for sweeps.

Nothing is read but the weights, so each checkpoint costs little; each score has what unrelated or random weights give.
"""

import math
from dataclasses import dataclass

import torch

from interp_gpt2.analysis.attention_patterns import head_label
from interp_gpt2.analysis.circuits import Compositions, CompositionScores, compositions, full_ov_copying_scores, ov_copying_scores
from interp_gpt2.analysis.rows import Analysis, Row
from interp_gpt2.analysis.untrained import untrained_like
from interp_gpt2.errors import AnalysisError
from interp_gpt2.folding import center_unembed, fold_layer_norm
from interp_gpt2.model import GPT2

MOST_PAIRS = 1024  # of heads whose every pair has a row; a 124M model has 9,504 pairs, of which the largest are kept


def folded(model: GPT2) -> GPT2:
    """The same predictions with the gains of layer norms in the weights, which then say by themselves what a head reads.

    The mean over the vocabulary is taken out of the unembedding: a head that raises all tokens alike raises none.
    """
    return center_unembed(fold_layer_norm(model) if model.config.layer_norm else model)


@dataclass(frozen=True, eq=False)
class HeadCopying(Analysis):
    """`full_ov_copying_scores` and `ov_copying_scores` for a sweep, with layer norms folded in.

    Rows "copying" (tokens to logits) and "ov_copying" (stream to stream) for each head, in [-1, 1]; beside each, for want of
    an interval, how far from 0 heads of random weights lie: "copying_random_std", measured between this model's embeddings,
    and "ov_copying_random_std" = 3 / (2 d_head); and "copying_highest_random", the largest of as many such heads as there are.
    """

    name: str = "head_copying"

    def __call__(self, model: GPT2) -> list[Row]:
        model = _with_heads(model)
        rows: list[Row] = []
        for metric, scores in (("copying", full_ov_copying_scores(model)), ("ov_copying", ov_copying_scores(model))):
            rows.append({"metric": f"{metric}_random_std", "value": _known(scores.random_std)})
            if scores.random_highest is not None:
                rows.append({"metric": f"{metric}_highest_random", "value": _known(scores.random_highest)})
            for layer, values in enumerate(scores.values.tolist()):
                rows += [{"metric": metric, **_head(layer, head), "value": _known(value)} for head, value in enumerate(values)]
        return rows


@dataclass(frozen=True, eq=False)
class HeadComposition(Analysis):
    """`compositions` for a sweep, with layer norms folded in: how much later heads read of what earlier ones write.

    "q_composition", "k_composition" and "v_composition": a row for each pair of heads, labelled "L0H1>L1H0", with the
    reading head's layer and head; where there are more than 1,024 pairs, for the largest 1,024 of each kind.
    "k_composition_max" and its like: for each reading head the largest over the heads before it, so that every head has a
    curve over training. In [0, 1]; "composition_unrelated" is the root mean square of pairs that read and write in unrelated
    directions. Of many pairs the largest lies above that by chance: "k_composition_max_untrained" is the same maximum in an
    untrained model, mean over the heads of each layer, and "composition_highest_untrained" its largest over all heads, of each
    kind ("q", "k", "v").
    """

    name: str = "head_composition"

    def __call__(self, model: GPT2) -> list[Row]:
        found, by_chance = compositions(_with_heads(model)), compositions(folded(untrained_like(model)))
        rows: list[Row] = [{"metric": "composition_unrelated", "value": found.q.unrelated}]
        for way in ("q", "k", "v"):
            rows += _pairs(way, found) + _largest(way, getattr(found, way))
            rows += _largest_by_chance(way, getattr(by_chance, way))
            largest = getattr(by_chance, way).values.nan_to_num(0)
            rows.append({"metric": "composition_highest_untrained", "label": way, "value": float(largest.max())})
        return rows


def _with_heads(model: GPT2) -> GPT2:
    if model.config.n_layers == 0:
        raise AnalysisError("a model of no layers has no heads to read")
    return folded(model)


def _head(layer: int, head: int) -> Row:
    return {"layer": layer, "head": head, "label": head_label(layer, head)}


def _known(value: float) -> float | None:
    """No number for a head whose weights are 0."""
    return None if math.isnan(value) else value


def _pairs(way: str, found: Compositions) -> list[Row]:
    scores = getattr(found, way).values
    n_layers = len(scores)
    later = torch.ones(n_layers, n_layers, dtype=torch.bool).triu(1)[:, None, :, None].expand(scores.shape).to(scores.device)
    pairs = later.nonzero()
    if len(pairs) > MOST_PAIRS:
        pairs = pairs[scores[later].nan_to_num(-1).topk(MOST_PAIRS).indices.sort().values]
    values = scores[tuple(pairs.T)].tolist()
    return [
        {
            "metric": f"{way}_composition",
            **_head(l2, h2),
            "label": f"{head_label(l1, h1)}>{head_label(l2, h2)}",
            "value": _known(value),
        }
        for (l1, h1, l2, h2), value in zip(pairs.tolist(), values, strict=True)
    ]


def _largest_by_chance(way: str, scores: CompositionScores) -> list[Row]:
    by_layer = scores.values.flatten(0, 1).amax(0).mean(1).tolist()
    return [
        {"metric": f"{way}_composition_max_untrained", "layer": layer, "value": value}
        for layer, value in enumerate(by_layer)
        if layer
    ]


def _largest(way: str, scores: CompositionScores) -> list[Row]:
    n_layers, n_heads = scores.values.shape[:2]
    largest = scores.values.flatten(0, 1).amax(0).tolist()
    return [
        {"metric": f"{way}_composition_max", **_head(layer, head), "value": _known(largest[layer][head])}
        for layer in range(1, n_layers)
        for head in range(n_heads)
    ]
