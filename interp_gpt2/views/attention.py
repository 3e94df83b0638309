"""Attention patterns to look at: every head as a thumbnail, one enlarged, tokens that show what they attend to."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from interp_gpt2.errors import AnalysisError
from interp_gpt2.views.arrays import as_array, storable
from interp_gpt2.views.html import json_script, tag
from interp_gpt2.views.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class AttentionData:
    """Patterns of every head at one or more steps, packed to one byte a weight: base64 of round(255 x weight).

    `shape` is (step, layer, head, query, key); `notes` says something of a head ("L1H0" -> "induction 0.71"); `first`
    names the head that is shown enlarged.
    """

    tokens: list[str]
    steps: list[int]
    shape: list[int]
    packed: str
    notes: dict[str, str]
    first: str

    def patterns(self) -> Float[np.ndarray, "step layer head query key"]:
        """The weights, each within 1/510 of what was packed."""
        levels = np.frombuffer(base64.b64decode(self.packed), dtype=np.uint8).reshape(self.shape)
        return levels.astype(np.float32) / 255


def pack_attention(
    labels: Sequence[str],
    patterns: Float[Any, "*step layer head query key"],
    steps: Sequence[int] = (),
    notes: Mapping[str, str] | None = None,
    first: str = "",
) -> AttentionData:
    """Patterns as the page and report.json hold them. `patterns` has a leading axis of steps exactly if `steps` are given.

    `first` defaults to the first head that has a note, else L0H0.
    Raises AnalysisError if the shapes do not fit the labels and steps, or a weight is not in [0, 1].
    """
    array = as_array(patterns)
    array = array if len(steps) else array[None]
    _check(array, labels, steps)
    notes = dict(notes or {})
    return AttentionData(
        tokens=list(labels),
        steps=[int(step) for step in steps] or [0],
        shape=list(array.shape),
        packed=base64.b64encode(np.rint(array * 255).astype(np.uint8).tobytes()).decode(),
        notes=notes,
        first=first or next(iter(notes), "L0H0"),
    )


def _check(array: np.ndarray, labels: Sequence[str], steps: Sequence[int]) -> None:
    n = len(labels)
    wanted = "(step, layer, head, query, key)" if len(steps) else "(layer, head, query, key)"
    if array.ndim != 5 or array.shape[-2:] != (n, n) or array.shape[0] != max(len(steps), 1) or 0 in array.shape:
        shape = array.shape if len(steps) else array.shape[1:]
        raise AnalysisError(
            f"patterns of shape {shape} do not fit {n} labels and {len(steps)} steps; expected {wanted} with query and key "
            f"of length {n}; for one sequence of a batch pass pattern[0]"
        )
    # Rounding in low precision may carry a weight just past 1.
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1.01:
        raise AnalysisError("attention weights must be finite and lie in [0, 1]; pass `pattern`, not `attn_scores`")


def attention_view(
    labels: Sequence[str],
    patterns: Float[Any, "*step layer head query key"],
    steps: Sequence[int] = (),
    notes: Mapping[str, str] | None = None,
    title: str = "Attention patterns",
) -> View:
    """Every head's attention on one sequence: thumbnails, one head enlarged, and the tokens as text.

    `labels` are the printable tokens; `patterns` rows are queries and columns keys, in [0, 1]; with `steps`, a slider
    moves through training. Weights are shown to 1/255, and `.data` has what is shown. Raises AnalysisError as
    `pack_attention` does.
    """
    data = pack_attention(labels, patterns, steps, notes)
    made = partial(attention_table, data), partial(_overview, data, title)
    return View(title, data, attention_fragment(data), *made, height=_height(data))


def _height(data: AttentionData) -> int:
    """In a notebook, as views/assets/attention.js lays it out: of few heads a layer, 150 pixels a row of them."""
    _, n_layers, n_heads = data.shape[:3]
    lines = math.ceil(sum(len(token) + 1 for token in data.tokens) / (90 if n_heads > 4 else 55))
    heads = n_layers * max(16, min(60, 440 // n_heads)) if n_heads > 4 else 150 * n_layers
    return 250 + 24 * lines + max(heads, 450 if n_heads > 4 else 640)


def _overview(data: AttentionData, title: str) -> "Figure":
    from interp_gpt2.views.stills import attention_overview

    return attention_overview(data, title=title)


def attention_table(data: AttentionData) -> "DataFrame":
    """A row for each weight of a query on a key that it can see: step, layer, head, the two positions and tokens."""
    import pandas

    queries, keys = np.tril_indices(len(data.tokens))
    weights = data.patterns()[..., queries, keys]  # (step, layer, head, pair)
    step, layer, head, pair = np.unravel_index(np.arange(weights.size), weights.shape)
    codes, words = pandas.factorize(
        np.array([*map(storable, data.tokens)], dtype=object)
    )  # of a million rows, each label is held once

    def tokens(at: np.ndarray) -> pandas.Categorical:
        return pandas.Categorical.from_codes(codes[at], categories=words)

    query, key = queries[pair], keys[pair]
    columns = {"step": np.array(data.steps)[step], "layer": layer, "head": head, "query": query, "query_token": tokens(query)}
    return pandas.DataFrame(columns | {"key": key, "key_token": tokens(key), "weight": weights.ravel()})


def attention_fragment(data: AttentionData) -> Markup:
    """The view as HTML for a page made by `document`."""
    script = tag("noscript", {}, "The attention view needs JavaScript.")
    return tag("div", {"class": "attention", "data-view": "attention"}, json_script(asdict(data)), script)
