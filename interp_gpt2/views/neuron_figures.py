"""A neuron's page as a table and as one still figure."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_gpt2.views.arrays import storable
from interp_gpt2.views.neuron_charts import number, share
from interp_gpt2.views.sheet import (
    COLOURS,
    GREY,
    PAGE,
    SMALL,
    TOKENS,
    cut,
    drawable,
    label_ends,
    sheet,
    steps_axis,
    styled,
    token_ticks,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from interp_gpt2.analysis.neuron_history import NeuronHistory, NeuronRecord
    from interp_gpt2.analysis.neuron_probing import Context

SHOWN = 8  # promoted tokens, and as many suppressed ones
_LINE = 0.14  # inches from one context to the next
_STATISTICS = (
    "n", "frequency", "mean", "std", "lowest", "highest", "effect_kurtosis", "effect_by_chance", "input_cosine",
    "output_cosine", "correlation",
)  # fmt: skip


def neuron_table(history: "NeuronHistory", labels: Sequence[str]) -> "DataFrame":
    """A row for each number of a neuron's page, by `step` and `part`.

    part "statistics": `name` and `value`. "histogram": the count of activations from `low` to `high`. "effects": of `token`,
    on its logit. "contexts": the activation at each `position` of a text, whose `name` is "top 1", "quantile 0.99", ...;
    `peak` where the context is about that position.
    """
    import pandas

    rows = [row for record in history.records for row in _rows(record, labels)]
    columns = ["step", "part", "name", "document", "position", "token", "peak", "low", "high", "value"]
    return pandas.DataFrame(rows, columns=columns).astype({"document": "Int64", "position": "Int64", "peak": "boolean"})


def _rows(record: "NeuronRecord", labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    effect = record.effect
    known = {"effect_kurtosis": effect.kurtosis, "effect_by_chance": effect.by_chance}
    for name in _STATISTICS:
        value = known[name] if name in known else getattr(record, name)
        yield {"step": record.step, "part": "statistics", "name": name, "value": value}
    for count, low, high in zip(record.counts, record.edges, record.edges[1:], strict=False):
        yield {"step": record.step, "part": "histogram", "name": "count", "low": low, "high": high, "value": count}
    for name, pairs in (("promoted", effect.promoted), ("suppressed", effect.suppressed)):
        for token, size in pairs:
            yield {"step": record.step, "part": "effects", "name": name, "token": storable(labels[token]), "value": size}
    for name, context in _named(record):
        start = context.position - context.peak
        for i, (token, activation) in enumerate(zip(context.tokens, context.activations, strict=True)):
            place = {
                "document": context.document,
                "position": start + i,
                "token": storable(labels[token]),
                "peak": i == context.peak,
            }
            yield {"step": record.step, "part": "contexts", "name": name, **place, "value": activation}


def _named(record: "NeuronRecord") -> list[tuple[str, "Context"]]:
    found = [(f"top {place}", context) for place, context in enumerate(record.top, 1)]
    return found + [(f"quantile {at.quantile:g}", at.context) for at in record.quantiles]


@styled
def neuron_figure(history: "NeuronHistory", labels: Sequence[str], title: str = "") -> "Figure":
    """The last step's histogram, effects on the logits and contexts, and over several steps the history; two columns wide.

    A context's tokens are darker the higher the activation; it is cut around its peak. Effects are beside the largest that a
    random direction of the same spread would have, dashed.
    """
    record = history.last
    several = len(history.records) > 1
    contexts = _named(record)
    text = _LINE * (len(contexts) + 1)
    n_shown = min(SHOWN, len(record.effect.promoted)) + min(SHOWN, len(record.effect.suppressed))
    upper = max(1.6, 0.115 * n_shown + 0.55)
    heights = [upper, *([1.5] if several else []), text]
    title = title or f"{history.kind.capitalize()} {history.label}"
    said = f"{title}: step {record.step:,}, {record.n:,} tokens; fires on {share(record.frequency)}"
    figure = sheet(PAGE, sum(heights) + 0.1, said)
    foot = text / figure.get_figheight()  # of the figure, for the contexts, which are set in points and not laid out
    figure.set_layout_engine("constrained", rect=(0, foot, 1, 1 - foot))
    grid = figure.add_gridspec(len(heights) - 1, 2, height_ratios=heights[:-1])
    _histogram(figure.add_subplot(grid[0, 0]), record)
    _effects(figure.add_subplot(grid[0, 1]), record, labels)
    if several:
        _history([figure.add_subplot(grid[1, column]) for column in (0, 1)], history)
    _contexts(figure.add_axes((0, 0, 1, foot)), contexts, labels)
    return figure


def _histogram(axes: "Axes", record: "NeuronRecord") -> None:
    edges = np.array(record.edges)
    axes.bar(edges[:-1], record.counts, width=np.diff(edges), align="edge", color=COLOURS[1], linewidth=0)
    axes.set_yscale("symlog", linthresh=1)
    axes.set(xlabel="activation", ylabel="tokens", xlim=(edges[0], edges[-1]), ylim=(0, None))
    if edges[0] < 0 < edges[-1]:
        axes.axvline(0, color=GREY, linestyle="--", linewidth=0.6)
    axes.set_title("Activations", fontsize=7)


def _effects(axes: "Axes", record: "NeuronRecord", labels: Sequence[str]) -> None:
    effect = record.effect
    pairs = [*effect.promoted[:SHOWN], *reversed(effect.suppressed[:SHOWN])]
    sizes = [size for _, size in pairs]
    axes.barh(range(len(pairs)), sizes, color=[COLOURS[1] if size > 0 else COLOURS[0] for size in sizes], height=0.7)
    for sign in (-1, 1):
        axes.axvline(sign * effect.by_chance, color=GREY, linestyle="--", linewidth=0.6)
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    token_ticks(axes.yaxis, [labels[token] for token, _ in pairs], 0)
    axes.set_xlabel("effect on the logit, per unit of activation")
    axes.set_title(f"What it writes (by chance up to {number(effect.by_chance)})", fontsize=7)


def _history(pair: list["Axes"], history: "NeuronHistory") -> None:
    steps = [record.step for record in history.records]
    look = {"marker": ".", "markersize": 3}
    pair[0].plot(steps, [record.frequency for record in history.records], color=COLOURS[1], label="frequency", **look)
    pair[0].set_ylabel("fires on")
    pair[0].set_ylim(0, 1.02)
    ends = {}
    for name, attribute, colour in (
        ("activations", "correlation", COLOURS[0]),
        ("input", "input_cosine", COLOURS[1]),
        ("output", "output_cosine", COLOURS[2]),
    ):
        values = [getattr(record, attribute) for record in history.records]
        if any(map(math.isfinite, values)):
            pair[1].plot(steps, values, color=colour, label=name, **look)
            ends[name] = (next(value for value in reversed(values) if math.isfinite(value)), colour)
    pair[1].axhline(0, color=GREY, linewidth=0.5)
    pair[1].set_ylabel("like the last step's")
    for axes in pair:
        steps_axis(axes, steps)
    label_ends(pair[1], ends, gap=0.14)


def _contexts(axes: "Axes", contexts: Sequence[tuple[str, "Context"]], labels: Sequence[str]) -> None:
    """A line a context, tokens side by side on the shade of their activation; the peak's is outlined."""
    from matplotlib.patches import Rectangle

    name_width, room = 62.0, 72 * PAGE - 4.0  # points
    highest = max((value for _, context in contexts for value in context.activations), default=0.0)
    axes.set(xlim=(0, 72 * PAGE), ylim=(len(contexts) - 0.2, -0.8))
    axes.axis("off")
    for row, (name, context) in enumerate(contexts):
        said = f"{name.removeprefix('quantile ')}  {number(context.activations[context.peak])}"
        axes.text(name_width - 6, row, said, fontsize=SMALL, ha="right", va="center", color=GREY)
        x = name_width
        for i, text in _around_peak(context, labels, room - name_width):
            width = width_of(text, SMALL, "tokens") + 1.5
            shade = max(context.activations[i], 0.0) / highest if highest > 0 else 0.0
            edge = {"edgecolor": "black" if i == context.peak else "none", "linewidth": 0.5}
            axes.add_patch(Rectangle((x, row - 0.44), width, 0.88, facecolor=(0.04, 0.27, 0.57, 0.75 * shade), **edge))
            ink = "white" if shade > 0.8 else "black"
            axes.text(x + 0.75, row, text, fontsize=SMALL, family=TOKENS, va="center", color=ink, parse_math=False)
            x += width


def _around_peak(context: "Context", labels: Sequence[str], room: float) -> list[tuple[int, str]]:
    """The tokens of a context that fit, the peak among them: what comes before it first, as that is what it saw."""
    texts = [cut(drawable(labels[token]), 90) for token in context.tokens]
    widths = [width_of(text, SMALL, "tokens") + 1.5 for text in texts]
    first = last = context.peak
    left = room - widths[first]
    while first > 0 and widths[first - 1] <= left:
        first -= 1
        left -= widths[first]
    while last + 1 < len(texts) and widths[last + 1] <= left:
        last += 1
        left -= widths[last]
    return [(i, texts[i]) for i in range(first, last + 1)]
