"""Figures for a paper: one column wide, vector output, colour-blind safe, their numbers saved beside them.

Every function takes plain arrays (tensors, numpy or lists) and returns a matplotlib Figure; `save` writes it with a CSV
of what was drawn. Token text is drawn as it is: matplotlib would read `$\\frac{$` as mathematics and fail.
"""

import csv
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from interp_gpt2.errors import AnalysisError
from interp_gpt2.views.arrays import as_array
from interp_gpt2.views.svg import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from interp_gpt2.views.lens import LensData

COLUMN = 3.4  # inches, one column of a two-column paper
COLOURS = ("#c4500b", "#0567ab", "#00825f", "#9a4b93")
GREY = "#6d737b"
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "interp_gpt2",
    "pdf.fonttype": 42,
}
STATISTICS = {
    "probability": "probability of the next token",
    "rank": "rank of the next token",
    "kl": "KL(final || lens), nats",
    "entropy": "entropy, nats",
}


def _styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """`draw` under STYLE, which is undone afterwards: a library must not restyle its user's figures."""

    @functools.wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Any:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
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
    figure, axes = _axes(COLUMN, 2.3, title)
    values = as_array(loss)
    axes.plot(steps, values, color=COLOURS[1], marker=".", markersize=3, label="loss")
    labels = {"loss": (float(values[-1]), COLOURS[1])}
    for name, value in (references or {}).items():
        axes.axhline(value, color=GREY, linestyle="--", linewidth=0.8, label=name)
        labels[name] = (value, GREY)
    _steps_axis(axes, steps, window)
    axes.set_ylabel("nats per token")
    _label_ends(axes, labels)
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


@_styled
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
    figure, axes = _axes(COLUMN, 2.3, f"{title} ({name} {level:.2f})")
    leaders = list(np.argsort(-values[:, -1], kind="stable")[: len(COLOURS)])
    named = {}
    for i, label in enumerate(labels):
        colour = COLOURS[leaders.index(i)] if i in leaders else "#b5b9be"
        axes.plot(steps, values[i], color=colour, label=label, zorder=2 + (i in leaders), linewidth=1.3 if i in leaders else 0.7)
        if i in leaders:
            named[label] = (float(values[i, -1]), colour)
    axes.axhline(level, color=GREY, linestyle="--", linewidth=0.8, label=name, zorder=4)
    _steps_axis(axes, steps, window)
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    _label_ends(axes, {**named, name.removesuffix(" head"): (level, GREY)})
    return figure


@_styled
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

    figure, axes = _axes(COLUMN * 1.25, 2.9, title)
    labels = {}
    for i, (name, (tokens, loss)) in enumerate(curves.items()):
        rows = [(n, value) for n, value in zip(tokens, as_array(loss), strict=True) if n > 0]
        if not rows:
            raise AnalysisError(f"the curve {name!r} has no loss after any tokens")
        colour = colormaps["viridis"](0.8 * i / max(1, len(curves) - 1))
        axes.plot(*zip(*rows, strict=True), color=colour, marker=".", markersize=3, label=name)
        labels[f"{name} {rows[-1][1]:.2f}"] = (float(rows[-1][1]), colour)
    for name, level in (references or {}).items():
        axes.axhline(level, color=GREY, linestyle="--", linewidth=0.8, label=name)
        labels[f"{name} (counted) {level:.2f}"] = (level, GREY)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}")
    axes.set(xlabel="tokens, millions", ylabel="validation loss, nats per token")
    _label_ends(axes, labels, gap=0.055)
    return figure


@_styled
def attention_pattern(pattern: Float[Any, "query key"], labels: Sequence[str], title: str = "Attention") -> "Figure":
    """One head's attention: rows are queries, columns keys, viridis from 0 to 1, the future left blank.

    Raises AnalysisError if the pattern is not square in the number of labels.
    """
    values = as_array(pattern).astype(float)
    if values.shape != (len(labels), len(labels)):
        raise AnalysisError(f"a pattern of shape {values.shape} does not fit {len(labels)} labels; expected (query, key)")
    side = max(COLUMN, 0.1 * len(labels) + 0.8)
    figure, axes = _axes(side, side * 0.88, title)
    image = axes.imshow(np.where(np.tri(len(labels), dtype=bool), values, np.nan), vmin=0, vmax=1, label="attention")
    token_ticks(axes.xaxis, labels, 90)
    token_ticks(axes.yaxis, labels, 0)
    axes.set(xlabel="key", ylabel="query")
    figure.colorbar(image, ax=axes, label="attention", shrink=0.8)
    return figure


@_styled
def lens_table(data: "LensData", step: int | None = None, statistic: str = "probability", title: str = "") -> "Figure":
    """The logit lens at one step (default: the last): the top token of each layer and position, coloured by a statistic.

    `statistic` is "probability", "rank", "kl" or "entropy"; `data` comes from `pack_lens` or a view's `.data`. Raises
    AnalysisError for a statistic or a step that is not there.
    """
    from matplotlib.colors import SymLogNorm

    if statistic not in STATISTICS:
        raise AnalysisError(f"no statistic {statistic!r}; choose one of {', '.join(STATISTICS)}")
    if step is not None and step not in data.steps:
        raise AnalysisError(f"no lens at step {step}; there is one at {', '.join(map(str, data.steps))}")
    at = -1 if step is None else data.steps.index(step)
    values = np.array(getattr(data, statistic)[at], dtype=float)
    title = title or f"Logit lens, step {data.steps[at]:,}: {STATISTICS[statistic]}"
    figure, axes = _axes(max(COLUMN, 0.26 * len(data.tokens) + 1), 0.24 * len(data.layers) + 1.0, title)
    cmap = "viridis_r" if statistic == "rank" else "viridis"  # rank 0 is the best and the brightest
    image = axes.imshow(values, cmap=cmap, aspect="auto", origin="lower", label=statistic)
    if statistic == "rank":
        image.set_norm(SymLogNorm(1, vmin=0, vmax=data.d_vocab - 1))
    else:
        image.set_clim(0, 1 if statistic == "probability" else None)
    for (layer, position), value in np.ndenumerate(values):
        share = np.nan_to_num(image.norm(value), nan=0.0) if np.isfinite(value) else 1.0
        light = (1 - share if statistic == "rank" else share) > 0.6 or not np.isfinite(value)
        word = data.words[data.top[at][layer][position][0]]
        ink = {"color": "black" if light else "white", "ha": "center", "va": "center", "fontsize": 7}
        axes.text(position, layer, word, family="monospace", parse_math=False, **ink)
    token_ticks(axes.xaxis, data.tokens, 0 if max(map(len, data.tokens)) == 1 else 90)
    token_ticks(axes.yaxis, data.layers, 0)
    axes.set(xlabel="token", ylabel="read at")
    figure.colorbar(image, ax=axes)
    return figure


@_styled
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
    width = max(COLUMN, 0.34 * len(steps) + 1.2)
    figure, axes = _axes(width, 0.26 * len(layers) + 1.1, f"{title} (majority {majority:.2f})")
    gain = values.T - majority
    most = max(np.nanmax(np.abs(gain)), 1e-9)
    image = axes.imshow(gain, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", origin="lower", label="gain over majority")
    for (layer, column), value in np.ndenumerate(gain):
        colour = "white" if abs(value) > 0.6 * most else "black"
        axes.text(column, layer, f"{value + majority:.2f}", ha="center", va="center", fontsize=6, color=colour)
    token_ticks(axes.xaxis, [f"{step:,}" for step in steps], 90)
    token_ticks(axes.yaxis, layers, 0)
    axes.set(xlabel="step", ylabel="read at")
    figure.colorbar(image, ax=axes, label="accuracy − majority")
    return figure


@_styled
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


@_styled
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
        # not the labels that are shown: of panels that share an axis, the inner ones show none
        names = [axis.get_major_formatter().format_ticks(axis.get_majorticklocs()) for axis in (axes.xaxis, axes.yaxis)]
        for (row, column), value in np.ndenumerate(np.ma.filled(image.get_array().astype(float), np.nan)):
            if np.isfinite(value):
                rows.append([image.get_label(), f"{column} {names[0][column]}", f"{row} {names[1][row]}", value])
    return rows


def _axes(width: float, height: float, title: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, parse_math=False)
    return figure, axes


def _steps_axis(axes: "Axes", steps: Sequence[int], window: tuple[float, float] | None) -> None:
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, max(steps))
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if window:
        axes.axvspan(*window, color="#d69e14", alpha=0.17, linewidth=0)


def _label_ends(axes: "Axes", labels: Mapping[str, tuple[float, str]], gap: float = 0.075) -> None:
    """Names at the right of the axes, at the height of what they name, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    ordered = sorted(labels.items(), key=lambda item: item[1][0])
    heights = spread([(value - low) / (high - low) for _, (value, _) in ordered], 0.0, 1.0, gap=gap)
    for (name, (_, colour)), height in zip(ordered, heights, strict=True):
        where = {"transform": axes.transAxes, "va": "center", "fontsize": 7, "color": colour}
        axes.text(1.02, height, name, parse_math=False, **where)


def token_ticks(axis: Any, labels: Sequence[str], rotation: float) -> None:
    axis.set_ticks(range(len(labels)))
    axis.set_ticklabels(labels, rotation=rotation, family="monospace", fontsize=6, parse_math=False)
    axis.set_tick_params(length=0)
