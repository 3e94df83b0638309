"""Line charts as inline SVG: small, sharp, readable in light and dark, and the same bytes for the same numbers.

Colours are CSS classes (`c1` ... `c4`, `s0` ... `s7` for a sequence, `rest` for what should stay in the background), so a
chart follows the page's theme. Lines and rules are labelled directly, at the right; nothing needs a legend. The
numbers ride along in data-x and data-y, where the page's script finds them for hovering and for switching the step axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from interp_gpt2.views.html import tag

STEPS_LOG, STEPS_LINEAR, LINEAR = "steps", "linear-steps", "linear"
LINE_HEIGHT = 14.0  # of a label, in SVG units, which are pixels when the chart is shown at its natural width
CHAR_WIDTH = 7.0  # of the label font, estimated generously: no font is at hand to measure


@dataclass(frozen=True)
class Line:
    """One curve. None in `y` is a gap. `low` and `high` draw a band, or a bar where a single point has them; `dots` marks
    the points; `name` is what hovering says."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    css: str = "rest"
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    dots: bool = False
    name: str = ""


@dataclass(frozen=True)
class Rule:
    """A horizontal reference line at `y`, with a band of plus and minus one `stderr`."""

    label: str
    y: float
    stderr: float | None = None
    css: str = "rule"


@dataclass(frozen=True)
class Window:
    """A shaded interval of x, with a line at `mark`."""

    low: float
    high: float
    mark: float


@dataclass(frozen=True)
class Chart:
    """What to draw. `x_scale` is STEPS_LOG (log(1 + step)) or STEPS_LINEAR, between which the page can switch, or LINEAR.

    Charts stacked on one axis share their `x_range` and `margins` (left, right); all but the lowest are drawn with
    `x_axis=False`. Without `y_axis` heights are places, not numbers.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    rules: Sequence[Rule] = ()
    window: Window | None = None
    ticks: Sequence[float] = ()
    x_scale: str = STEPS_LOG
    y_range: tuple[float, float] | None = None
    size: tuple[int, int] = (860, 340)
    x_range: tuple[float, float] | None = None
    margins: tuple[float, float] | None = None
    x_axis: bool = True
    y_axis: bool = True


@dataclass(frozen=True)
class _Frame:
    """Where numbers go on the page: the plot's rectangle and the ranges it shows."""

    left: float
    top: float
    right: float
    bottom: float
    x_max: float
    x_min: float
    y_min: float
    y_max: float
    log: bool

    def x(self, value: float) -> float:
        def scale(v: float) -> float:
            return math.log1p(v) if self.log else v

        low, high = scale(self.x_min), scale(self.x_max)
        return self.left + (self.right - self.left) * (scale(value) - low) / ((high - low) or 1.0)

    def y(self, value: float) -> float:
        share = (value - self.y_min) / ((self.y_max - self.y_min) or 1.0)
        return self.bottom - (self.bottom - self.top) * min(max(share, -0.01), 1.01)


def draw(chart: Chart) -> Markup:
    """The chart as one `<svg>`, with its title as the accessible name."""
    frame = _frame(chart)
    width, height = chart.size
    corners = (frame.left, frame.right, frame.x_min, frame.x_max, frame.top, frame.bottom)
    body = [
        tag("title", {}, chart.title),
        *_window(chart, frame),
        *(_y_axis(chart, frame) if chart.y_axis else []),
        *_x_axis(chart, frame),
        *(part for line in chart.lines for part in _line(line, frame)),
        *(_rule(rule, frame) for rule in chart.rules),
        *_labels(chart, frame),
    ]
    return tag(
        "svg",
        {
            "class": "chart",
            "viewBox": f"0 0 {width} {height}",
            "width": width,
            "role": "img",
            "aria-label": chart.title,
            "data-frame": " ".join(f"{v:g}" for v in corners),
            "data-axis": chart.x_scale,
            "data-xname": chart.x_label,
        },
        *body,
    )


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], about as many as asked for."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / max(about, 1)))
    choices = [_multiples(low, high, power * m) for m in (1, 2, 5, 10)]
    return min(choices, key=lambda values: abs(len(values) - about))


def _multiples(low: float, high: float, step: float) -> list[float]:
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """The values as an axis says them: thousands separated, all with as many decimals as any of them needs."""
    decimals = max((len(f"{value:.6f}".rstrip("0").split(".")[1]) for value in values), default=0)
    return [f"{value:,.{decimals}f}" for value in values]


def _frame(chart: Chart) -> _Frame:
    width, height = chart.size
    labels = [line.label for line in chart.lines] + [rule.label for rule in chart.rules]
    margin = max((len(_short(label, chart)) for label in labels), default=0) * CHAR_WIDTH + 14
    xs = [x for line in chart.lines for x in line.x] or [0.0, 1.0]
    x_min, x_max = chart.x_range or (min(xs) if chart.x_scale == LINEAR else 0.0, max(xs))
    low, high = chart.y_range or _y_range(chart)
    top, bottom = 12, height - (44 if chart.x_axis else 8)
    left = 26 + 6.4 * max(map(len, tick_texts(_y_ticks(low, high, bottom - top))), default=0)
    left, right = chart.margins or (left, max(margin, 18))
    return _Frame(
        left=left,
        top=top,
        right=width - right,
        bottom=bottom,
        x_min=x_min,
        x_max=x_max,
        y_min=low,
        y_max=high,
        log=chart.x_scale == STEPS_LOG,
    )


def _y_range(chart: Chart) -> tuple[float, float]:
    drawn = [values for line in chart.lines for values in (line.y, line.low, line.high) if values is not None]
    values = [y for ys in drawn for y in ys if y is not None] + [rule.y for rule in chart.rules]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    pad = 0.05 * (high - low) or 0.5
    return low - pad, high + pad


def _window(chart: Chart, frame: _Frame) -> list[Markup]:
    if chart.window is None:
        return []
    low, high = max(chart.window.low, frame.x_min), min(chart.window.high, frame.x_max)
    x, right, mark = frame.x(low), frame.x(high), frame.x(chart.window.mark)
    height = frame.bottom - frame.top
    return [
        tag(
            "rect",
            {
                "class": "window",
                "x": round(x, 1),
                "y": frame.top,
                "width": round(right - x, 1),
                "height": height,
                "data-x": f"{low:g} {high:g}",
            },
        ),
        _vertical("window-mark", mark, frame.top, frame.bottom, chart.window.mark),
    ]


def _y_ticks(low: float, high: float, height: float) -> list[float]:
    return ticks(low, high, max(2, round(height / 38)))


def _vertical(css: str, x: float, top: float, bottom: float, value: float) -> Markup:
    x = round(x, 1)
    return tag("line", {"class": css, "x1": x, "x2": x, "y1": top, "y2": bottom, "data-x": f"{value:g}"})


def _y_axis(chart: Chart, frame: _Frame) -> list[Markup]:
    parts = []
    values = _y_ticks(frame.y_min, frame.y_max, frame.bottom - frame.top)
    for value, text in zip(values, tick_texts(values), strict=True):
        y = round(frame.y(value), 1)
        parts.append(tag("line", {"class": "grid", "x1": frame.left, "x2": frame.right, "y1": y, "y2": y}))
        parts.append(tag("text", {"class": "tick", "x": frame.left - 6, "y": y + 4, "text-anchor": "end"}, text))
    middle = (frame.top + frame.bottom) / 2
    if chart.y_label:
        where = {"class": "axis", "x": 11, "y": middle, "text-anchor": "middle", "transform": f"rotate(-90 11 {middle:g})"}
        parts.append(tag("text", where, chart.y_label))
    return parts


def _x_axis(chart: Chart, frame: _Frame) -> list[Markup]:
    base = frame.bottom
    parts = [tag("line", {"class": "base", "x1": frame.left, "x2": frame.right, "y1": base, "y2": base})]
    parts += [_vertical("checkpoint", frame.x(x), base, base + 5, x) for x in chart.ticks]
    if not chart.x_axis:
        return parts
    linear = ticks(frame.x_min, frame.x_max, max(2, round((frame.right - frame.left) / 64)))
    powers = [0.0] + [10.0**k for k in range(12) if 10.0**k <= frame.x_max]
    if chart.x_scale != LINEAR:
        parts.append(_x_ticks("on-log", powers, frame))
        parts.append(_x_ticks("on-linear", linear, frame))
    else:
        parts.append(_x_ticks("always", linear, frame))
    middle = (frame.left + frame.right) / 2
    return [*parts, tag("text", {"class": "axis", "x": middle, "y": base + 38, "text-anchor": "middle"}, chart.x_label)]


def _x_ticks(css: str, values: list[float], frame: _Frame) -> Markup:
    texts = [
        tag(
            "text",
            {
                "class": "tick",
                "x": round(frame.x(value), 1),
                "y": frame.bottom + 20,
                "text-anchor": "middle",
                "data-x": f"{value:g}",
            },
            text,
        )
        for value, text in zip(values, tick_texts(values), strict=True)
    ]
    return tag("g", {"class": css}, *texts)


def _rule(rule: Rule, frame: _Frame) -> Markup:
    y = round(frame.y(rule.y), 1)
    parts = []
    if rule.stderr:
        top, bottom = frame.y(rule.y + rule.stderr), frame.y(rule.y - rule.stderr)
        band = {
            "class": "band",
            "x": frame.left,
            "width": frame.right - frame.left,
            "y": round(top, 1),
            "height": max(round(bottom - top, 1), 0.5),
        }
        parts.append(tag("rect", band))
    parts.append(tag("line", {"class": "stroke", "x1": frame.left, "x2": frame.right, "y1": y, "y2": y}))
    return tag("g", {"class": rule.css}, *parts)


def _line(line: Line, frame: _Frame) -> list[Markup]:
    parts = []
    if line.low is not None and line.high is not None:
        parts.append(_band(line, frame))
    for run in _runs(line):
        points = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in run]
        shared = {
            "class": "stroke",
            "data-x": " ".join(f"{x:g}" for x, _ in run),
            "data-y": " ".join(f"{y:.4g}" for _, y in run),
            "data-name": line.name or line.label,
            "points": " ".join(points),
        }
        parts.append(tag("polyline", shared))
        if line.dots or len(run) == 1:
            parts += [
                tag("circle", {"cx": p.split(",")[0], "cy": p.split(",")[1], "r": "2.4", "data-x": f"{x:g}"})
                for p, (x, _) in zip(points, run, strict=True)
            ]
    return [tag("g", {"class": line.css}, *parts)]


def _runs(line: Line) -> list[list[tuple[float, float]]]:
    """The unbroken stretches of a line between its gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _band(line: Line, frame: _Frame) -> Markup:
    ends = [
        (x, low, high)
        for x, low, high in zip(line.x, line.low or (), line.high or (), strict=True)
        if low is not None and high is not None
    ]
    if len(ends) == 1:
        ((x, low, high),) = ends
        return _vertical("bar", frame.x(x), round(frame.y(high), 1), round(frame.y(low), 1), x)
    edge = [(x, high) for x, _, high in ends] + [(x, low) for x, low, _ in reversed(ends)]
    points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in edge)
    return tag("polygon", {"class": "band", "points": points, "data-x": " ".join(f"{x:g}" for x, _ in edge)})


def _labels(chart: Chart, frame: _Frame) -> list[Markup]:
    """Names at the right, each at the height of what it names, pushed apart where they would overlap."""
    wanted = []
    for line in chart.lines:
        runs = _runs(line)
        if line.label and runs:
            wanted.append((frame.y(runs[-1][-1][1]), line.label, line.css))
    wanted += [(frame.y(rule.y), rule.label, rule.css) for rule in chart.rules if rule.label]
    wanted.sort(key=lambda item: item[0])
    heights = spread([y for y, _, _ in wanted], frame.top, frame.bottom)
    parts = []
    for (y, label, css), at in zip(wanted, heights, strict=True):
        if abs(y - at) > 5:
            path = f"{frame.right:.1f},{y:.1f} {frame.right + 8:.1f},{at:.1f}"
            parts.append(tag("g", {"class": css}, tag("polyline", {"class": "leader", "points": path})))
        where = {"class": f"label {css}", "x": round(frame.right + 11, 1), "y": round(at + 4, 1)}
        parts.append(tag("text", where, _short(label, chart), tag("title", {}, label)))
    return parts


def _short(label: str, chart: Chart) -> str:
    """`label`, cut where it would take more than two fifths of the chart's width."""
    most = int(0.4 * chart.size[0] / CHAR_WIDTH)
    return label if len(label) <= most else label[: most - 1] + "…"


def spread(wanted: list[float], top: float, bottom: float, gap: float = LINE_HEIGHT) -> list[float]:
    """Sorted heights moved as little as needed to lie `gap` apart and, where they fit, within [top, bottom].

    Neighbours that collide form a block centred on their mean wish (pool adjacent violators), so the order is kept.
    """
    blocks: list[list[float]] = []  # [sum of wishes for the block's first label, count]
    for index, y in enumerate(wanted):
        blocks.append([y - index * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    starts = [total / count for total, count in blocks for _ in range(int(count))]
    last = bottom - (len(wanted) - 1) * gap
    return [min(max(start, top), max(last, top)) + index * gap for index, start in enumerate(starts)]
