"""Patching sweeps for a paper; `views.figures.save` writes them with their numbers."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_gpt2.views.patching import PatchingData, pack_patching
from interp_gpt2.views.sheet import COLUMN, GREY, PAGE, SMALL, cut, drawable, sheet, styled, token_ticks, upright, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from interp_gpt2.causal.result import PatchingResult

AXIS_NAMES = {"pos": "position", "dest_pos": "query position", "src_pos": "key position"}


@styled
def patching_heat_map(result: "PatchingResult", title: str = "") -> "Figure":
    """Every cell of a patching result: 0 as the corrupted run, 1 as the clean one, in a diverging map.

    Blue towards the clean run and red towards the corrupted one, centred on no effect: 0 for denoising, 1 for noising. Two
    axes are one panel, layers from below; three are a panel for each layer (or type). Hatched cells had nothing to patch,
    cells with × were not done. The title says what was patched and carries the metric of both runs and the number of pairs;
    `title` stands before it. One column wide, or up to two; of more columns than that names, every n-th is named. Raises
    AnalysisError for a result of more than three axes, with how to take a part of it.
    """
    from matplotlib import rc_context

    with rc_context({"hatch.linewidth": 0.4}):
        return _drawn(pack_patching(result), title)


def _drawn(data: PatchingData, title: str) -> "Figure":
    n_panels, n_rows, n_columns = map(len, data.labels)
    beside = min(n_panels, max(1, 30 // max(n_columns, 4)))
    down = math.ceil(n_panels / beside)
    margin = 0.9 + 0.3 * beside
    width = min(PAGE, max(COLUMN, (0.1 if n_panels > 1 else 0.16) * n_columns * beside + margin))
    room = 72 * (width - margin) / (n_columns * beside)
    foot = max(width_of(cut(label, 44), SMALL, "tokens") for label in data.labels[2]) / 72 if upright(data.labels[2]) else 0.1
    height = max(0.45, (0.1 if n_panels > 1 else 0.17) * n_rows) + (0.26 if n_panels > 1 else 0.05)
    figure = sheet(width, down * height + foot + 0.5, "\n".join(text for text in (title, *data.headline) if text))
    grid = figure.subplots(down, beside, squeeze=False, sharex=True, sharey=True)
    for index, axes in enumerate(grid.flat):
        if index >= n_panels:
            axes.remove()
            continue
        image = _panel(axes, data, index, room)
        if n_panels > 1:
            said = cut(f"{data.axes[0]} {data.labels[0][index]}", 72 * (width - margin) / beside, 7, "text")
            axes.set_title(said, fontsize=7, parse_math=False)
    for column in range(beside):  # of panels that share an axis, the lowest in each column shows its labels
        lowest = grid[(n_panels - 1 - column) // beside, column]
        lowest.tick_params(labelbottom=True)
        lowest.set_xlabel(_named(data.axes[2]), parse_math=False)
    for row in grid[:, 0]:
        row.set_ylabel(_named(data.axes[1]), parse_math=False)
    bar = figure.colorbar(image, ax=figure.axes, shrink=min(1.0, 1.4 / (down * height)), aspect=18)
    bar.set_label("0 corrupted\n1 clean", fontsize=7)
    bar.ax.axhline(data.base, color="black", linewidth=0.6)
    if note := _note(data):
        figure.supxlabel(note, x=0.05 / width, ha="left", fontsize=SMALL, color=GREY)
    return figure


def _named(axis: str) -> str:
    return AXIS_NAMES.get(axis) or cut(axis, 120, 8, "text")


def _panel(axes: "Axes", data: PatchingData, index: int, room: float) -> Any:
    values = np.array(data.values[index], dtype=float)
    from_below = data.axes[1] == "layer"
    image = axes.imshow(
        values, cmap="RdBu", vmin=data.base - data.limit, vmax=data.base + data.limit, aspect="auto",
        label=drawable(" ".join(("normalised", data.axes[0], data.labels[0][index])).strip()),
    )  # fmt: skip
    skipped, undone = np.array(data.skipped[index], dtype=bool), np.isnan(values)
    if skipped.any():
        from matplotlib.collections import PolyCollection

        corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
        squares = [corners + np.array([column, row]) for row, column in np.argwhere(skipped & ~undone)]
        axes.add_collection(PolyCollection(squares, facecolor="none", edgecolor="#b9bdc2", linewidth=0, hatch="/////"))
    rows, columns = np.nonzero(undone)
    axes.scatter(columns, rows, marker="x", s=9, linewidth=0.5, color=GREY)
    axes.set(xlim=(-0.5, values.shape[1] - 0.5), ylim=sorted((-0.5, values.shape[0] - 0.5), reverse=not from_below))
    token_ticks(axes.xaxis, data.labels[2], upright(data.labels[2]), room)
    token_ticks(axes.yaxis, data.labels[1], 0)
    return image


def _note(data: PatchingData) -> str:
    skipped, undone = np.array(data.skipped).sum(), sum(value is None for value in np.ravel(data.values))
    notes = [f"hatched: nothing to patch ({skipped:,} cells)"] if skipped else []
    return "; ".join(notes + ([f"×: not done ({undone:,} cells)"] if undone else []))
