"""The drawn parts of a neuron's page: histogram, effects on logits, curves over training. Inline SVG, no script needed."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from interp_gpt2.views.html import tag
from interp_gpt2.views.svg import Chart, Line, draw, tick_texts, ticks

if TYPE_CHECKING:
    from interp_gpt2.analysis.neuron_history import LogitEffect, NeuronHistory, NeuronRecord

_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 10, 42


def number(value: float) -> str:
    """At least two decimals, at least two significant digits, a true minus sign; "–" for what is not known."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-5:
        text = f"{size:.1e}"
    else:
        text = f"{size:,.{2 if size >= 0.0995 or not size else 1 - math.floor(math.log10(size))}f}"
    return f"−{text}" if value < 0 else text


def share(value: float) -> str:
    """A share of all in per cent, without rounding some to none or to all."""
    if 0 < value < 0.0005:
        return "<0.1 %"
    if 0.9995 < value < 1:
        return ">99.9 %"
    return f"{100 * value:.1f}".removesuffix(".0") + " %"


def histogram(record: "NeuronRecord") -> Markup:
    """How many tokens had which activation; heights are logarithmic, so that the rare strong ones are seen."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    base, top = _TOP + height, math.log10(1 + max(record.counts))
    low, high = record.edges[0], record.edges[-1]

    def x(value: float) -> float:
        return round(_LEFT + width * (value - low) / (high - low), 1)

    def y(count: float) -> float:
        return round(base - height * math.log10(1 + count) / top, 1)

    said = "Histogram of activations"
    parts = [tag("title", {}, said)]
    for count in [0, *(10**k for k in range(12) if 10**k <= max(record.counts))]:
        parts.append(tag("line", {"class": "grid", "x1": _LEFT, "x2": _WIDTH - _RIGHT, "y1": y(count), "y2": y(count)}))
        parts.append(tag("text", {"class": "tick", "x": _LEFT - 6, "y": y(count) + 4, "text-anchor": "end"}, f"{count:,}"))
    for i, count in enumerate(record.counts):
        if count:
            left, right = x(record.edges[i]), x(record.edges[i + 1])
            where = {
                "x": left,
                "y": y(count),
                "width": round(max(right - left - 0.6, 0.8), 1),
                "height": round(base - y(count), 1),
            }
            between = f"{number(record.edges[i])} to {number(record.edges[i + 1])}: {count:,} tokens"
            parts.append(tag("rect", where, tag("title", {}, between)))
    if low < 0 < high:
        parts.append(tag("line", {"class": "zero", "x1": x(0), "x2": x(0), "y1": _TOP, "y2": base}))
    values = ticks(low, high, 6)
    for value, text in zip(values, tick_texts(values), strict=True):
        parts.append(
            tag("text", {"class": "tick", "x": x(value), "y": base + 17, "text-anchor": "middle"}, text.replace("-", "−"))
        )
    middle = _LEFT + width / 2
    parts.append(tag("text", {"class": "axis", "x": middle, "y": base + 36, "text-anchor": "middle"}, "activation"))
    upright = {"transform": f"translate(11 {_TOP + height / 2:g}) rotate(-90)", "text-anchor": "middle"}
    parts.append(tag("text", {"class": "axis", **upright}, "tokens"))
    where = {"class": "chart histogram", "viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "width": _WIDTH, "role": "img", "aria-label": said}
    # Not `svg.chart`'s own hovering: bars have titles.
    return tag("figure", {}, tag("svg", {**where, "data-frame": f"{_LEFT} {_WIDTH - _RIGHT} {low:g} {high:g}"}, *parts))


def effect_table(name: str, pairs: Sequence[tuple[int, float]], effect: "LogitEffect", labels: Sequence[str]) -> Markup:
    """Tokens with a bar each; promoted and suppressed ones share a scale, and a line stands where chance would reach."""
    scale = max([abs(size) for _, size in (*effect.promoted, *effect.suppressed)] + [effect.by_chance])
    rows = []
    for token, size in pairs:
        parts = []
        if scale > 0:
            length = round(100 * abs(size) / scale, 1)
            parts.append(tag("rect", {"class": "up" if size > 0 else "down", "width": length, "height": 10}))
            at = round(100 * effect.by_chance / scale, 1)
            parts.append(tag("line", {"class": "chance", "x1": at, "x2": at, "y1": 0, "y2": 10}))
        bar = tag("svg", {"viewBox": "0 0 100 10", "preserveAspectRatio": "none", "aria-hidden": "true"}, *parts)
        rows.append(tag("tr", {}, tag("th", {"scope": "row"}, labels[token]), tag("td", {}, number(size)), tag("td", {}, bar)))
    return tag("table", {"class": "effects"}, tag("caption", {}, name), tag("tbody", {}, *rows))


def history_charts(history: "NeuronHistory") -> Markup:
    """Two small charts on the same steps."""
    steps = [record.step for record in history.records]

    def line(label: str, attribute: str, css: str) -> Line:
        values = [getattr(record, attribute) for record in history.records]
        return Line(label, steps, [value if math.isfinite(value) else None for value in values], css, dots=True, name=label)

    fires = Chart(
        "Share of tokens on which it fires", "step", "fires", [line("", "frequency", "c2")], ticks=steps, size=(420, 230)
    )
    likeness = [
        line("activations", "correlation", "c1"),
        line("input", "input_cosine", "c2"),
        line("output", "output_cosine", "c3"),
    ]
    title = f"Likeness to the last step's {history.kind}"
    like = Chart(title, "step", "likeness to the last", likeness, ticks=steps, size=(460, 230))
    return tag("div", {"class": "panels two"}, *(tag("figure", {}, draw(chart)) for chart in (fires, like)))
