"""Attention patterns to look at: every head as a thumbnail, one enlarged, tokens that show what they attend to."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from interp_gpt2.errors import AnalysisError
from interp_gpt2.views.arrays import as_array
from interp_gpt2.views.html import View, json_script, tag


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
    moves through training. Weights are shown to 1/255. Raises AnalysisError as `pack_attention` does.
    """
    data = pack_attention(labels, patterns, steps, notes)
    rows = min(data.shape[1] * 90, 560)
    return View(title, data, attention_fragment(data), height=760 + rows)


def attention_fragment(data: AttentionData) -> Markup:
    """The view as HTML for a page made by `document`."""
    script = tag("noscript", {}, "The attention view needs JavaScript.")
    return tag("div", {"class": "attention", "data-view": "attention"}, json_script(asdict(data)), script)
