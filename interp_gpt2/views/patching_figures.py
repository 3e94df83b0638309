"""Patching sweeps for a paper; `views.figures.save` writes them with their numbers."""

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_gpt2.views.figures import COLUMN, GREY, STYLE, token_ticks
from interp_gpt2.views.patching import PatchingData, pack_patching

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from interp_gpt2.causal.result import PatchingResult

AXIS_NAMES = {"pos": "position", "dest_pos": "query position", "src_pos": "key position"}
LONGEST = 18  # letters of a label; the whole one is in the result


def patching_heat_map(result: "PatchingResult", title: str = "") -> "Figure":
    """Every cell of a patching result: 0 as the corrupted run, 1 as the clean one, in a diverging map.

    Blue towards the clean run and red towards the corrupted one, centred on no effect: 0 for denoising, 1 for noising. Two
    axes are one panel, layers from below; three are a panel for each layer (or type). Hatched cells had nothing to patch,
    cells with × were not done. The title says what was patched and carries the metric of both runs and the number of pairs;
    `title` stands before it. Raises AnalysisError for a result of more than three axes, with how to take a part of it.
    """
    from matplotlib import rc_context

    data = pack_patching(result)
    with rc_context(STYLE | {"hatch.linewidth": 0.4}):
        return _drawn(data, title)


def _drawn(data: PatchingData, title: str) -> "Figure":
    from matplotlib.figure import Figure

    n_panels, n_rows, n_columns = map(len, data.labels)
    labels = [[_cut(label) for label in along] for along in data.labels]
    beside = min(n_panels, max(1, 30 // max(n_columns, 4)))
    down = math.ceil(n_panels / beside)
    height, foot = 0.095 if n_panels > 1 else 0.17, 0.055 * max(map(len, labels[2]))
    across = max(COLUMN, (0.1 if n_panels > 1 else 0.16) * n_columns * beside + 0.3 * beside + 0.9)
    head = "\n".join(line for text in (title, *data.headline) if text for line in textwrap.wrap(text, int(across * 18)))
    tall = down * (max(0.45, height * n_rows) + 0.26) + foot + 0.14 * head.count("\n") + 0.65
    figure = Figure(figsize=(across, tall), layout="constrained")
    grid = figure.subplots(down, beside, squeeze=False, sharex=True, sharey=True)
    for index, axes in enumerate(grid.flat):
        if index >= n_panels:
            axes.remove()
            continue
        image = _panel(axes, data, index, labels)
        if n_panels > 1:
            axes.set_title(f"{data.axes[0]} {labels[0][index]}", fontsize=7, parse_math=False)
    for column in range(beside):  # of panels that share an axis, the lowest in each column shows its labels
        lowest = grid[(n_panels - 1 - column) // beside, column]
        lowest.tick_params(labelbottom=True)
        lowest.set_xlabel(AXIS_NAMES.get(data.axes[2], data.axes[2]))
    for row in grid[:, 0]:
        row.set_ylabel(AXIS_NAMES.get(data.axes[1], data.axes[1]))
    figure.suptitle(head, x=0.01, ha="left", fontsize=STYLE["axes.titlesize"], parse_math=False)
    bar = figure.colorbar(image, ax=figure.axes, shrink=min(1.0, 1.6 / (tall - foot)), aspect=18)
    bar.set_label("0 corrupted\n1 clean", fontsize=7)
    bar.ax.axhline(data.base, color="black", linewidth=0.6)
    if note := _note(data):
        figure.supxlabel(note, x=0.01, ha="left", fontsize=6, color=GREY)
    return figure


def _panel(axes: "Axes", data: PatchingData, index: int, labels: list[list[str]]) -> Any:
    values = np.array(data.values[index], dtype=float)
    from_below = data.axes[1] == "layer"
    image = axes.imshow(
        values, cmap="RdBu", vmin=data.base - data.limit, vmax=data.base + data.limit, aspect="auto",
        label=" ".join(("normalised", data.axes[0], data.labels[0][index])).strip(),
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
    token_ticks(axes.xaxis, labels[2], 90 if max(map(len, labels[2])) > 2 else 0)
    token_ticks(axes.yaxis, labels[1], 0)
    return image


def _note(data: PatchingData) -> str:
    skipped, undone = np.array(data.skipped).sum(), sum(value is None for value in np.ravel(data.values))
    notes = [f"hatched: nothing to patch ({skipped:,} cells)"] if skipped else []
    return "; ".join(notes + ([f"×: not done ({undone:,} cells)"] if undone else []))


def _cut(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
