"""A circuit for a paper: the drawing of `views.circuit` as a matplotlib figure; `views.figures.save_picture` writes it."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from interp_gpt2.views.circuit import (
    LINE,
    NODE_HEIGHT,
    PORTS,
    CircuitData,
    Plan,
    keys_of,
    pack_circuit,
    plan_of,
    port_of,
    route,
    sign_of,
    summary,
    target_of,
)
from interp_gpt2.views.sheet import COLOURS, COLUMN, GREY, PAGE, SMALL, cut, sheet, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from interp_gpt2.causal.circuit import Circuit

SIGNS = {"more": COLOURS[1], "less": COLOURS[0], "plain": GREY}
DASHES = {"": "-", "q": (0, (2, 2)), "k": (0, (5, 2)), "v": "-"}
_LARGEST, _LEAST = 7 / 12, SMALL / 12  # points for a unit of the drawing, whose letters are 12 high
_CHAR = 7.4  # the width of a letter, in units: matplotlib's font is wider than a browser's
_INK = "#1d1f22"


@styled
def circuit_figure(circuit: "Circuit", title: str = "Circuit", scores: str = "score") -> "Figure":
    """Heads and MLPs layer by layer, from the embeddings up: blue edges have a score above 0, orange ones below, the width is
    its size, and dashes say whether a head reads as its query or its key.

    One column wide, or two; wider where some row has more nodes than two columns have room for at 6 points. `scores` says
    what the scores are. Raises AnalysisError as `pack_circuit` does.
    """
    data = pack_circuit(circuit, cut(scores, 130, 7, "text"))
    plan = plan_of(data)
    lines = 1 + max(line for _, _, line in keys_of(data, plan.width, plan.largest, _CHAR))
    plan = replace(plan, height=plan.legend + LINE * lines)
    scale = _scale(plan)
    width, height = scale * plan.width / 72, scale * plan.height / 72
    figure = sheet(width, height, f"{title}: {summary(data)}")
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, height / figure.get_figheight()))
    axes.set(xlim=(0, plan.width), ylim=(plan.height, 0))
    axes.axis("off")
    _bands(axes, data, plan, scale)
    for edge in sorted(data.edges, key=lambda edge: abs(edge["score"] or 0)):  # the strongest on top
        _edge(axes, edge, plan, scale)
    for node in data.nodes:
        _node(axes, node["node"], data, plan, scale)
    _legend(axes, data, plan, scale)
    return figure


def _scale(plan: Plan) -> float:
    for target in (COLUMN, PAGE):
        if (scale := 72 * target / plan.width) >= _LEAST:
            return min(scale, _LARGEST)
    return _LEAST


def _bands(axes: "Axes", data: CircuitData, plan: Plan, scale: float) -> None:
    from matplotlib.patches import Rectangle

    for top, label in zip(plan.tops, data.row_labels, strict=True):
        axes.add_patch(Rectangle((0, top - 5), plan.width, NODE_HEIGHT + 10, facecolor="#f3f3ef", linewidth=0, zorder=0))
        short = label.replace("layer ", "L")
        axes.text(8, top + NODE_HEIGHT / 2, short, va="center", fontsize=max(SMALL, 11 * scale), color=GREY)


def _edge(axes: "Axes", edge: dict[str, Any], plan: Plan, scale: float) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners: list[tuple[float, float]] = []
    codes: list[int] = []
    for command, numbers in route(edge, plan):
        if command == "C":
            corners += [numbers[:2], numbers[2:4], numbers[4:]]
            codes += [Path.CURVE4] * 3
        else:
            corners.append((corners[-1][0], numbers[0]) if command == "V" else numbers)
            codes.append(Path.LINETO if command == "V" else Path.MOVETO)
    look = {"edgecolor": SIGNS[sign_of(edge["score"])], "linestyle": DASHES[port_of(edge)], "alpha": 0.85, "capstyle": "butt"}
    patch = PathPatch(Path(corners, codes), facecolor="none", linewidth=scale * plan.stroke(edge["score"]), zorder=1, **look)
    patch.set_gid(edge["edge"])
    axes.add_patch(patch)


def _node(axes: "Axes", label: str, data: CircuitData, plan: Plan, scale: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    box = plan.layout.boxes[label]
    middle, top = plan.x(plan.layout.of(label)), plan.tops[box.row]
    corners = 14 if label in ("embed", "logits") else 6 if label.startswith("L") else 0.1
    shape = f"round,pad=0,rounding_size={corners}"
    at = (middle - box.width / 2, top)
    axes.add_patch(FancyBboxPatch(at, box.width, NODE_HEIGHT, shape, facecolor="white", edgecolor=_INK, linewidth=0.6, zorder=2))
    ports = {port_of(edge) for edge in data.edges if target_of(edge) == label} - {""}
    middle_y = top + (NODE_HEIGHT / 3 if ports else NODE_HEIGHT / 2)
    where = {"ha": "center", "va": "center_baseline", "zorder": 3}
    axes.text(middle, middle_y, label, fontsize=max(SMALL, 12 * scale), color=_INK, **where)
    for name in ports:
        axes.text(middle + PORTS[name], top + NODE_HEIGHT * 0.8, name, fontsize=SMALL, color=GREY, **where)


def _legend(axes: "Axes", data: CircuitData, plan: Plan, scale: float) -> None:
    for (sign, port, text), x, line in keys_of(data, plan.width, plan.largest, _CHAR):
        y = plan.legend + LINE * line
        if sign:
            axes.plot([x, x + 28], [y, y], color=SIGNS[sign], linestyle=DASHES[port], linewidth=2.5 * scale, label="_key")
        where = {"va": "center", "fontsize": max(SMALL, 12 * scale), "color": GREY, "parse_math": False}
        axes.text(x + (34 if sign else 0), y, text, **where)
