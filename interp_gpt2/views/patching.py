"""What a patching sweep found, to look at: a cell for every patch, blue towards the clean run, red towards the corrupted one.

White, or the page's own colour, is no effect: 0 for denoising, whose base is the corrupted run, and 1 for noising.
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from interp_gpt2.errors import AnalysisError
from interp_gpt2.views.arrays import as_array, as_list, storable
from interp_gpt2.views.html import json_script, tag
from interp_gpt2.views.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from interp_gpt2.causal.result import PatchingResult

LEAST_LIMIT = 0.1  # of the colours: less than a tenth of the way between the two runs stays pale


@dataclass(frozen=True)
class PatchingData:
    """A result in plain lists, as the page holds it: (panel, row, column), with axes of one for those that it lacks.

    `axes` name the three ("" for one that is not there), `labels` what stands along each. `values` are normalised, 0 as
    corrupted and 1 as clean, None where a cell was not done; `low` and `high` their 95 % interval over pairs, None for a
    single pair. `skipped`: nothing was to be computed. `base` is what no effect is, `limit` how far from it colours reach.
    """

    axes: list[str]
    labels: list[list[str]]
    values: list[list[list[float | None]]]
    low: list[list[list[float | None]]] | None
    high: list[list[list[float | None]]] | None
    skipped: list[list[list[bool]]]
    base: float
    limit: float
    clean: float
    corrupted: float
    n_pairs: int
    metric: str
    headline: list[str]
    complete: bool


def pack_patching(result: "PatchingResult") -> PatchingData:
    """The result as the page holds it: positions along the columns, panels along the first of three axes.

    Numbers are rounded to 4 significant digits. Raises AnalysisError for a result of more than three axes.
    """
    order, axes = _places(result.axes)
    shape = [len(result.labels[axis]) if axis else 1 for axis in axes]

    def placed(values: Any) -> np.ndarray:
        return as_array(values).transpose(order).reshape(shape)

    values, (low, high) = placed(result.normalised), result.interval
    base = 0.0 if result.direction == "denoising" else 1.0
    several = result.n_pairs > 1
    return PatchingData(
        axes=axes,
        labels=[list(result.labels[axis]) if axis else [""] for axis in axes],
        values=as_list(values),
        low=as_list(placed(low)) if several else None,
        high=as_list(placed(high)) if several else None,
        skipped=placed(result.skipped.all(-1)).tolist(),
        base=base,
        limit=max([LEAST_LIMIT, *np.abs(values[np.isfinite(values)] - base).tolist()]),
        clean=float(result.clean.mean()),
        corrupted=float(result.corrupted.mean()),
        n_pairs=result.n_pairs,
        metric=result.metric,
        headline=headline(result),
        complete=result.complete,
    )


def _places(axes: tuple[str, ...]) -> tuple[list[int], list[str]]:
    """In which order a result's axes are (panel, row, column), and the names of the three."""
    if len(axes) > 3:
        raise AnalysisError(
            f"a result along {', '.join(axes)} has more axes than a picture; draw a part of it, such as "
            f"result.at({axes[0]!r}, 0).at({axes[1]!r}, 0)"
        )
    positions = [axis for axis in axes if axis in ("pos", "src_pos", "dest_pos")]
    last = (positions or list(axes))[-1:] if len(axes) > 1 else []
    placed = [axis for axis in axes if axis not in last] + last
    names = [""] * (2 - len(placed) + len(last)) + placed + ([] if last else [""])
    return [axes.index(axis) for axis in placed], names


def headline(result: "PatchingResult") -> list[str]:
    """What was patched how, and the two runs that all numbers lie between."""
    pieces = "clean pieces into the corrupted run" if result.direction == "denoising" else "corrupted pieces into the clean run"
    pairs = "1 pair" if result.n_pairs == 1 else f"{result.n_pairs:,} pairs"
    return [
        f"{result.hook_point}, {result.direction} ({pieces})",
        f"{result.metric}: {result.clean.mean():.3g} clean, {result.corrupted.mean():.3g} corrupted; {pairs}",
    ]


def patching_view(result: "PatchingResult", title: str = "") -> View:
    """Every cell of a patching result as a coloured number; under the mouse or the focus its value with its interval.

    Layers by positions, layers by heads or any other two axes as one table; of three, one at a time is shown whole, with
    a thumbnail for each, by layer or by head as a menu chooses. Arrow keys move among the cells. Hatched cells had
    nothing to patch, cells with × were not done. Raises AnalysisError as `pack_patching` does.
    """
    data = pack_patching(result)
    rows = len(data.labels[1]) + (4 if data.axes[0] else 0)
    rows += 4 * any(len(label.split(" ", 1)[-1]) > 5 for label in data.labels[2])  # labels that stand upright
    made = partial(_table, result), partial(_heat_map, result, title)
    return View(title or f"Patching {result.hook_point}", data, patching_fragment(data), *made, height=min(330 + 25 * rows, 900))


def _table(result: "PatchingResult") -> "DataFrame":
    labels = {axis: tuple(map(storable, along)) for axis, along in result.labels.items()}
    texts = {"metric": storable(result.metric), "hook_point": storable(result.hook_point)}
    return replace(result, labels=labels, **texts).to_frame()


def _heat_map(result: "PatchingResult", title: str) -> "Figure":
    from interp_gpt2.views.patching_figures import patching_heat_map

    return patching_heat_map(result, title)


def patching_fragment(data: PatchingData) -> Markup:
    """The view as HTML for a page made by `document`."""
    script = tag("noscript", {}, "The patching view needs JavaScript.")
    said = tag("p", {"class": "note"}, ". ".join(data.headline) + ".")
    return tag("div", {"class": "patching", "data-view": "patching"}, said, json_script(asdict(data)), script)
