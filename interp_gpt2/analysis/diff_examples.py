"""Where two models differ, by example: for a head, the queries whose attention moved most; for a neuron, its peaks in each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.attention_patterns import head_label
from interp_gpt2.analysis.neuron_history import check_neurons, neuron_activations
from interp_gpt2.analysis.neuron_probing import Context, top_contexts
from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.analysis.weight_distance import check_same_shape
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

Keys = tuple[tuple[int, int, float], ...]

_BATCH_TOKENS = 1024
_KEYS = 3


@dataclass(frozen=True)
class PatternChange:
    """A query whose attention moved. `tokens` end at it.

    `distance` is the total variation between the two models' attention there, in [0, 1]. `before` and `after` are the keys that
    got most attention in each: (position in the window, token, weight).
    """

    document: int
    position: int
    tokens: tuple[int, ...]
    distance: float
    before: Keys
    after: Keys


@dataclass(frozen=True)
class NeuronChange:
    """The places where a neuron is most active in one model and in the other, each with its own activations."""

    before: tuple[Context, ...]
    after: tuple[Context, ...]


@torch.no_grad()
def pattern_examples(
    a: GPT2, b: GPT2, windows: Windows, heads: Sequence[tuple[int, int]], k: int = 3, width: int = 24
) -> dict[str, tuple[PatternChange, ...]]:
    """For each (layer, head), by its label, the query whose attention moved most in each of the `k` documents with the largest.

    Only queries that see more than themselves; `width` tokens are kept of each. The patterns of some 1,024 tokens exist at a
    time. Raises AnalysisError for models of different shapes or a head they do not have.
    """
    check_same_shape(a, b)
    for model in (a, b):
        require_eval(model)
    _check_heads(a, heads)
    names = [f"blocks.{layer}.attn.pattern" for layer in sorted({layer for layer, _ in heads})]
    found: dict[str, list[PatternChange]] = {head_label(*head): [] for head in heads}
    size = max(1, _BATCH_TOKENS // windows.tokens.shape[1])
    for start in range(0, len(windows.tokens), size):
        some = range(start, min(start + size, len(windows.tokens)))
        caches = [model.run_with_cache(windows.tokens[some].to(model.device), names)[1] for model in (a, b)]
        for layer, head in heads:
            patterns = [cache["pattern", layer][:, head].float().cpu() for cache in caches]  # (window, query, key)
            found[head_label(layer, head)] += [
                change
                for window, before, after in zip(some, *patterns, strict=True)
                for change in _largest(windows, window, before, after, width)
            ]
    return {label: _most(changes, k) for label, changes in found.items()}


def _check_heads(model: GPT2, heads: Sequence[tuple[int, int]]) -> None:
    n_layers, n_heads = model.config.n_layers, model.config.n_heads
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise AnalysisError(f"there is no head {head} in layer {layer}: the models have {n_layers} layers of {n_heads} heads")


def _largest(
    windows: Windows, window: int, before: Float[Tensor, "query key"], after: Float[Tensor, "query key"], width: int
) -> list[PatternChange]:
    """The query of one window that moved most; none where no query sees another token."""
    length = int(windows.lengths[window])
    if length < 2:
        return []
    apart = (before - after).abs().sum(-1)[:length] / 2
    query = 1 + int(apart[1:].argmax())
    tokens = windows.tokens[window, : query + 1]
    keys = (_keys(pattern[query, : query + 1], tokens) for pattern in (before, after))
    shown = tuple(tokens[-width:].tolist())
    return [PatternChange(int(windows.documents[window]), query, shown, float(apart[query]), *keys)]


def _keys(attention: Float[Tensor, "key"], tokens: Int[Tensor, "key"]) -> Keys:
    order = attention.sort(descending=True, stable=True).indices[:_KEYS].tolist()
    return tuple((key, int(tokens[key]), float(attention[key])) for key in order)


def _most(changes: list[PatternChange], k: int) -> tuple[PatternChange, ...]:
    """The largest of each document, the largest documents first."""
    by_document: dict[int, PatternChange] = {}
    for change in sorted(changes, key=lambda change: (-change.distance, change.document)):
        by_document.setdefault(change.document, change)
    return tuple(by_document.values())[:k]


def neuron_examples(
    a: GPT2, b: GPT2, windows: Windows, neurons: Sequence[tuple[int, int]], k: int = 3, width: int = 24
) -> dict[str, NeuronChange]:
    """For each (layer, neuron), by its label, the `k` documents on which it is most active in `a`, and those in `b`.

    Raises AnalysisError for models of different shapes or a neuron they do not have.
    """
    check_same_shape(a, b)
    check_neurons(a, neurons)
    if not neurons:
        return {}
    sides = []
    for model in (a, b):
        contexts = []
        for values in neuron_activations(model, windows, neurons):
            placed = torch.zeros(windows.tokens.shape)
            placed[windows.real] = values
            contexts.append(top_contexts(placed, windows, k, width))
        sides.append(contexts)
    labels = (f"L{layer}N{neuron}" for layer, neuron in neurons)
    return {label: NeuronChange(*both) for label, *both in zip(labels, *sides, strict=True)}
