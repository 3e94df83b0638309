"""Figures for a paper: one column wide or two, vector output, colour-blind safe, their numbers saved beside them.

Every function takes plain arrays (tensors, numpy or lists) and returns a matplotlib Figure, 3.4 inches wide (one column of a
two-column paper) or, where the data need more, up to 7.0 (both); text is never below 6 points. `save` writes it with a CSV of
what was drawn. Token text is drawn as it is: matplotlib would read `$\\frac{$` as mathematics and fail.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from interp_gpt2.errors import AnalysisError
from interp_gpt2.views.arrays import as_array
from interp_gpt2.views.sheet import (
    COLOURS,
    COLUMN,
    GREY,
    PAGE,
    SMALL,
    STYLE,
    TOKENS,
    cut,
    drawable,
    label_ends,
    one_panel,
    sheet,
    steps_axis,
    styled,
    token_ticks,
    upright,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from interp_gpt2.views.lens import LensData

__all__ = [
    "COLOURS", "COLUMN", "GREY", "PAGE", "STYLE", "attention_pattern", "curves", "head_scores", "ladder", "lens_table",
    "loss_curve", "probe_heat_map", "save", "save_picture",
]  # fmt: skip

STATISTICS = {
    "probability": "probability of the next token",
    "rank": "rank of the next token",
    "kl": "KL(final || lens), nats",
    "entropy": "entropy, nats",
}
TALLEST = 8.5  # inches: what a page has room for


@styled
def loss_curve(
    steps: Sequence[int],
    loss: Float[Any, "step"],
    references: Mapping[str, float] | None = None,
    window: tuple[float, float] | None = None,
    title: str = "Validation loss",
) -> "Figure":
    """Loss in nats by step on an axis that shows step 0 and powers of ten, the references as labelled lines.

    The steps are marked as points; `window` (first and last step of a phase change) is shaded.
    """
    figure, axes = one_panel(COLUMN, 2.3, title)
    values = as_array(loss)
    axes.plot(steps, values, color=COLOURS[1], marker=".", markersize=3, label="loss")
    labels = {"loss": (float(values[-1]), COLOURS[1])}
    for name, value in (references or {}).items():
        axes.axhline(value, color=GREY, linestyle="--", linewidth=0.8, label=drawable(name))
        labels[name] = (value, GREY)
    steps_axis(axes, steps, window)
    axes.set_ylabel("nats per token")
    label_ends(axes, labels)
    return figure


def head_scores(
    steps: Sequence[int],
    scores: Float[Any, "head step"],
    labels: Sequence[str],
    uniform: float,
    title: str = "Induction score",
    unit: str = "attention",
    window: tuple[float, float] | None = None,
) -> "Figure":
    """A score of every head by step, beside the uniform head's; see `curves`."""
    return curves(steps, scores, labels, ("uniform head", uniform), title, unit, window)


@styled
def curves(
    steps: Sequence[int],
    values: Float[Any, "curve step"],
    labels: Sequence[str],
    yardstick: tuple[str, float],
    title: str,
    unit: str,
    window: tuple[float, float] | None = None,
) -> "Figure":
    """One curve a label by step; the four that end highest in colour and by name, the named yardstick dashed.

    The title carries the yardstick. For an even step axis: `figure.axes[0].set_xscale("linear")`. Raises AnalysisError
    if a row does not have a value for every step.
    """
    values = as_array(values)
    if values.shape != (len(labels), len(steps)):
        raise AnalysisError(f"values of shape {values.shape} do not fit {len(labels)} curves and {len(steps)} steps")
    name, level = yardstick
    figure, axes = one_panel(COLUMN, 2.3, f"{title} ({name} {level:.2f})")
    leaders = list(np.argsort(-values[:, -1], kind="stable")[: len(COLOURS)])
    named = {}
    for i, label in enumerate(labels):
        colour = COLOURS[leaders.index(i)] if i in leaders else "#b5b9be"
        weight = {"zorder": 2 + (i in leaders), "linewidth": 1.3 if i in leaders else 0.7}
        axes.plot(steps, values[i], label=drawable(label), color=colour, **weight)
        if i in leaders:
            named[label] = (float(values[i, -1]), colour)
    axes.axhline(level, color=GREY, linestyle="--", linewidth=0.8, label=drawable(name), zorder=4)
    steps_axis(axes, steps, window)
    axes.set_ylabel(cut(unit, 130, 8, "text"), parse_math=False)
    if level >= 0 and not (values < 0).any():  # else nothing may be cut off below
        axes.set_ylim(bottom=0)
    label_ends(axes, {**named, name.removesuffix(" head"): (level, GREY)})
    return figure


@styled
def ladder(
    curves: Mapping[str, tuple[Sequence[float], Float[Any, "row"]]],
    references: Mapping[str, float] | None = None,
    title: str = "What each part buys",
) -> "Figure":
    """Validation losses of models in their order, each `name: (tokens, loss)` from its first tokens on.

    From the plainest, dark, to the last, light, with each model's last loss beside its name. A row at 0 tokens, where all
    models know as little, is left out. Raises AnalysisError for a curve with nothing else.
    """
    from matplotlib import colormaps

    figure, axes = one_panel(COLUMN, 2.7, title)
    labels = {}
    for i, (name, (tokens, loss)) in enumerate(curves.items()):
        rows = [(n, value) for n, value in zip(tokens, as_array(loss), strict=True) if n > 0]
        if not rows:
            raise AnalysisError(f"the curve {name!r} has no loss after any tokens")
        colour = colormaps["viridis"](0.8 * i / max(1, len(curves) - 1))
        axes.plot(*zip(*rows, strict=True), color=colour, marker=".", markersize=3, label=drawable(name))
        labels[f"{name} {rows[-1][1]:.2f}"] = (float(rows[-1][1]), colour)
    for name, level in (references or {}).items():
        axes.axhline(level, color=GREY, linestyle="--", linewidth=0.8, label=drawable(name))
        labels[f"{name} (counted) {level:.2f}"] = (level, GREY)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}")
    axes.set(xlabel="tokens, millions", ylabel="validation loss, nats per token")
    label_ends(axes, labels, gap=0.055)
    return figure


@styled
def attention_pattern(pattern: Float[Any, "query key"], labels: Sequence[str], title: str = "Attention") -> "Figure":
    """One head's attention: rows are queries, columns keys, viridis from 0 to 1, the future left blank.

    Of more tokens than a page has room to name, every second or n-th is named. Raises AnalysisError if the pattern is not
    square in the number of labels.
    """
    values = as_array(pattern).astype(float)
    if values.shape != (len(labels), len(labels)):
        raise AnalysisError(f"a pattern of shape {values.shape} does not fit {len(labels)} labels; expected (query, key)")
    side = min(PAGE, max(COLUMN, 0.1 * len(labels) + 0.95))
    figure, axes = one_panel(side, side * 0.86, title)
    draw_pattern(axes, values, labels, 72 * (side - 1.1) / len(labels))
    figure.colorbar(axes.get_images()[0], ax=axes, label="attention", shrink=0.8)
    return figure


def draw_pattern(axes: "Axes", values: Float[np.ndarray, "query key"], labels: Sequence[str], room: float) -> None:
    """A pattern with its tokens, `room` points a token."""
    axes.imshow(np.where(np.tri(len(labels), dtype=bool), values, np.nan), vmin=0, vmax=1, label="attention")
    token_ticks(axes.xaxis, labels, 90, room)
    token_ticks(axes.yaxis, labels, 0, room)
    axes.set(xlabel="key", ylabel="query")


@styled
def lens_table(data: "LensData", step: int | None = None, statistic: str = "probability", title: str = "") -> "Figure":
    """The logit lens at one step (default: the last): the top token of each layer and position, coloured by a statistic.

    `statistic` is "probability", "rank", "kl" or "entropy"; `data` comes from `pack_lens` or a view's `.packed`. A long
    sequence goes on in the next row of the figure; one that fills a page is drawn without words. Raises AnalysisError for a
    statistic or a step that is not there.
    """
    if statistic not in STATISTICS:
        raise AnalysisError(f"no statistic {statistic!r}; choose one of {', '.join(STATISTICS)}")
    if step is not None and step not in data.steps:
        raise AnalysisError(f"no lens at step {step}; there is one at {', '.join(map(str, data.steps))}")
    at = len(data.steps) - 1 if step is None else data.steps.index(step)
    words = [[data.words[top[0]] for top in layer] for layer in data.top[at]]
    width, per, n_rows, height = _lens_size(data, words)
    room = 72 * (width - 1.05) / per
    figure = sheet(width, n_rows * height + 0.3, title or f"Logit lens, step {data.steps[at]:,}: {STATISTICS[statistic]}")
    values, norm = np.array(getattr(data, statistic)[at], dtype=float), _lens_norm(data, at, statistic)
    grid = figure.subplots(n_rows, squeeze=False)[:, 0]
    for row, axes in enumerate(grid):
        part = slice(row * per, (row + 1) * per)
        image = _lens_panel(axes, values[:, part], data.tokens[part], (part.start, per, room), norm, statistic)
        token_ticks(axes.yaxis, data.layers, 0)
        if room >= 8:
            _lens_words(axes, image, [line[part] for line in words], part.start, room)
    grid[-1].set_xlabel("token")
    figure.supylabel("read at", fontsize=8)
    figure.colorbar(image, ax=list(grid), aspect=18, shrink=min(1.0, 1.6 / (n_rows * height)))
    return figure


def _lens_size(data: "LensData", words: list[list[str]]) -> tuple[float, int, int, float]:
    """Width of the figure, positions in a row of it, rows, and the height of one."""
    n, drawn = len(data.tokens), {word for line in words for word in line}
    cell = max(8.0, 3 + max(min(30.0, width_of(cut(word, 44), SMALL, "tokens")) for word in drawn))
    height = 0.15 * len(data.layers) + 0.25
    for width in (COLUMN, PAGE):
        n_rows = math.ceil(n / max(1, int(72 * (width - 1.05) / cell)))
        if n_rows == 1 or (width == PAGE and n_rows * height < TALLEST):
            return width, math.ceil(n / n_rows), n_rows, height
    return PAGE, n, 1, height + 0.5  # its labels are upright


def _lens_norm(data: "LensData", at: int, statistic: str) -> Any:
    from matplotlib.colors import Normalize, SymLogNorm

    if statistic == "rank":
        return SymLogNorm(1, vmin=0, vmax=max(data.d_vocab - 1, 1))
    known = [value for layer in getattr(data, statistic)[at] for value in layer if value is not None]
    return Normalize(0, 1 if statistic == "probability" else max([*known, 1e-9]))


def _lens_panel(
    axes: "Axes", values: np.ndarray, tokens: Sequence[str], place: tuple[int, int, float], norm: Any, statistic: str
) -> Any:
    """Layers by the positions from the first of `place` on; its others are how many fit a row, and the points of each."""
    start, per, room = place
    extent = (start - 0.5, start + values.shape[1] - 0.5, -0.5, values.shape[0] - 0.5)
    cmap = "viridis_r" if statistic == "rank" else "viridis"  # rank 0 is the best and the brightest
    image = axes.imshow(values, cmap=cmap, aspect="auto", origin="lower", label=statistic, norm=norm, extent=extent)
    axes.set_xlim(start - 0.5, start + per - 0.5)
    token_ticks(axes.xaxis, tokens, 0 if room >= 14 else upright(tokens), room, start)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return image


def _lens_words(axes: "Axes", image: Any, words: list[list[str]], start: int, room: float) -> None:
    """The top token in each cell, in the ink that can be read there."""
    values = np.ma.filled(image.get_array().astype(float), np.nan)
    shades = image.cmap(image.norm(np.nan_to_num(values)))
    for (layer, column), value in np.ndenumerate(values):
        dark = np.isfinite(value) and shades[layer, column, :3] @ (0.299, 0.587, 0.114) < 0.5
        ink = {"color": "white" if dark else "black", "ha": "center", "va": "center", "fontsize": SMALL}
        axes.text(start + column, layer, cut(words[layer][column], room - 1), family=TOKENS, parse_math=False, **ink)


@styled
def probe_heat_map(
    accuracy: Float[Any, "step layer"],
    steps: Sequence[int],
    layers: Sequence[str],
    majority: float,
    title: str = "Probe accuracy",
) -> "Figure":
    """Accuracy less the majority baseline, layers by steps, in a diverging map centred on no gain; the accuracy as text.

    The title carries the baseline. Raises AnalysisError if the shape does not fit.
    """
    values = as_array(accuracy).astype(float)
    if values.shape != (len(steps), len(layers)):
        raise AnalysisError(f"accuracy of shape {values.shape} does not fit {len(steps)} steps and {len(layers)} layers")
    width = min(PAGE, max(COLUMN, 0.34 * len(steps) + 1.2))
    room = 72 * (width - 1.2) / len(steps)
    figure, axes = one_panel(width, 0.22 * len(layers) + 0.95, f"{title} (majority {majority:.2f})")
    gain = values.T - majority
    most = max(np.nanmax(np.abs(gain)), 1e-9)
    image = axes.imshow(gain, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", origin="lower", label="gain over majority")
    for (layer, column), value in np.ndenumerate(gain if room >= 15 else []):
        colour = "white" if abs(value) > 0.6 * most else "black"
        axes.text(column, layer, f"{value + majority:.2f}", ha="center", va="center", fontsize=6, color=colour)
    token_ticks(axes.xaxis, [f"{step:,}" for step in steps], 90, room)
    token_ticks(axes.yaxis, layers, 0)
    axes.set(xlabel="step", ylabel="read at")
    figure.colorbar(image, ax=axes, label="accuracy − majority")
    return figure


@styled
def save(figure: "Figure", path: str | Path) -> tuple[Path, Path]:
    """Write the figure (PDF, SVG or PNG, by its suffix) and, beside it, a CSV of every number drawn; return both paths.

    The CSV is read back from the picture, so the two cannot differ: columns panel, series, x, y, value. The same
    figure gives the same bytes.
    """
    path = save_picture(figure, path)
    numbers = path.with_suffix(".csv")
    with open(numbers, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["panel", "series", "x", "y", "value"])
        for panel, axes in enumerate(figure.axes):
            writer.writerows([panel, *row] for row in _drawn(axes))
    return path, numbers


@styled
def save_picture(figure: "Figure", path: str | Path) -> Path:
    """Write the figure alone, for results that have a fuller table than what is drawn."""
    path = Path(path)
    dated = {".pdf": "CreationDate", ".svg": "Date"}.get(path.suffix)
    figure.savefig(path, bbox_inches="tight", dpi=300, metadata={dated: None} if dated else None)
    return path


def _drawn(axes: "Axes") -> list[list[Any]]:
    """What an axes shows: (series, x, y, value) of every labelled line and image."""
    rows: list[list[Any]] = []
    for line in axes.get_lines():
        if line.get_label().startswith("_"):
            continue
        follows_x, _ = line.get_transform().contains_branch_seperately(axes.transData)
        xs, ys = (line.get_xdata(), line.get_ydata()) if follows_x else ([""], line.get_ydata()[:1])
        rows += [[line.get_label(), x, y, ""] for x, y in zip(xs, ys, strict=True)]
    for image in axes.get_images():
        if image.get_label().startswith("_"):
            continue
        # not the labels that are shown: some are cut or left out, and of panels that share an axis the inner ones show none
        columns, lines = (
            [f"{at:.0f} {name}" for at, name in zip(axis.get_majorticklocs(), axis.get_major_formatter().whole, strict=True)]
            for axis in (axes.xaxis, axes.yaxis)
        )
        for (row, column), value in np.ndenumerate(np.ma.filled(image.get_array().astype(float), np.nan)):
            if np.isfinite(value):
                rows.append([image.get_label(), columns[column], lines[row], value])
    return rows
