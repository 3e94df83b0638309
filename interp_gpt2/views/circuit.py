"""A circuit to look at: its heads and MLPs layer by layer, from the embeddings at the bottom to the logits at the top.

An edge's colour is the sign of its score, its width grows with the score's size, and its dashes say which input of a head it
enters: q, k or v, whose ports stand in that order below the head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from interp_gpt2.errors import AnalysisError
from interp_gpt2.views.html import asset, tag
from interp_gpt2.views.layered import Box, Layout, Link, layered
from interp_gpt2.views.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interp_gpt2.causal.circuit import Circuit
    from interp_gpt2.causal.graph import Node

MOST_EDGES = 400  # beyond, nothing can be told apart
NODE_HEIGHT, GAP, LANE, MARGIN, LABELS = 30.0, 14.0, 7.0, 16.0, 96.0
PORTS = {"q": -15.0, "k": 0.0, "v": 15.0}
THINNEST, THICKEST = 1.0, 5.0
LINE, CHAR = 19.0, 6.6  # of the legend: its lines, and how wide a character is at most


@dataclass(frozen=True)
class CircuitData:
    """What is drawn, in words and plain numbers: nodes with their row, edges as `Circuit.rows` has them.

    `row_labels` name the rows, from the bottom; rows without a node are left out. `scores` says what the scores are.
    """

    nodes: list[dict[str, Any]]
    edges: list[dict[str, Any]]
    row_labels: list[str]
    n_edges_of_model: int
    dropped: list[str] = field(default_factory=list)
    scores: str = "score"


def pack_circuit(circuit: "Circuit", scores: str = "score") -> CircuitData:
    """A circuit as the page holds it. Raises AnalysisError for one without edges, or with more than can be told apart."""
    if not 0 < circuit.n_edges <= MOST_EDGES:
        raise AnalysisError(
            f"a drawing has 1 to {MOST_EDGES} edges; this circuit has {circuit.n_edges}"
            + ("; draw the strongest, top_edges(graph, scores, 100)" if circuit.n_edges else "")
        )
    ends = {node.writer for edge in circuit.edges for node in (edge.sender, edge.receiver)}
    ends |= {circuit.graph.senders[0], circuit.graph.receivers[-1]}
    names = sorted({_row(node) for node in ends})
    nodes = [{"node": node.label, "row": names.index(_row(node))} for node in sorted(ends, key=_place)]
    labels = [{0: "embeddings", 3: "logits"}.get(name[0]) or f"layer {name[1]} {('heads', 'MLP')[name[2]]}" for name in names]
    return CircuitData(nodes, circuit.rows(), labels, circuit.graph.n_edges, list(circuit.dropped), scores)


def _row(node: "Node") -> tuple[int, int, int]:
    """From the embeddings up: every layer's heads, and above them its MLP."""
    return ({"embed": 0, "logits": 3}.get(node.kind, 1), node.layer or 0, int(node.kind == "mlp"))


def _place(node: "Node") -> tuple[tuple[int, int, int], int]:
    return _row(node), node.head or 0


def circuit_view(circuit: "Circuit", title: str = "Circuit", scores: str = "score") -> View:
    """The circuit as a page: the drawing, whose nodes can be reached by Tab and show their edges, and all edges as a table.

    `scores` says what the scores are, for instance "EAP, logit difference". Raises AnalysisError as `pack_circuit` does.
    """
    data = pack_circuit(circuit, scores)
    made = circuit.to_frame, partial(_figure, circuit, title, scores)
    return View(title, data, circuit_fragment(data), *made, height=min(900, 260 + 64 * len(data.row_labels)))


def _figure(circuit: "Circuit", title: str, scores: str) -> "Figure":
    from interp_gpt2.views.circuit_figures import circuit_figure

    return circuit_figure(circuit, title, scores)


def circuit_fragment(data: CircuitData) -> Markup:
    """The view as HTML for a page made by `document`."""
    head = tag("tr", {}, *(tag("th", {"scope": "col"}, name) for name in ("edge", data.scores)))
    ranked = sorted(data.edges, key=lambda edge: -abs(edge["score"] or 0))
    rows = [tag("tr", {}, tag("td", {}, edge["edge"]), tag("td", {}, _said(edge["score"]))) for edge in ranked]
    table = tag("table", {"class": "numbers"}, tag("thead", {}, head), tag("tbody", {}, *rows))
    return tag(
        "div",
        {"class": "circuit", "data-view": "circuit"},
        tag("p", {"class": "note"}, summary(data)),
        tag("div", {"class": "drawing", "tabindex": "-1"}, drawing(data)),
        tag("p", {"class": "said note", "aria-live": "polite"}, "Point at a node, or reach it by Tab, to see its edges."),
        tag("details", {}, tag("summary", {}, f"All {len(data.edges)} edges"), tag("div", {"class": "scroll"}, table)),
    )


def circuit_svg(circuit: "Circuit", title: str = "Circuit", scores: str = "score") -> str:
    """The drawing as an SVG file that needs nothing but itself, light or dark as its reader's system is.

    Raises AnalysisError as `pack_circuit` does.
    """
    colours = asset("base.css").partition("* {")[0]
    style = Markup("<style>{}</style>").format(Markup(colours + asset("circuit.css")))
    return str(drawing(pack_circuit(circuit, scores), title, style)) + "\n"


def summary(data: CircuitData) -> str:
    """How many edges of how many, and what was left out."""
    left_out = f"; {len(data.dropped)} more are left out, on no path from embeddings to logits" if data.dropped else ""
    return f"{len(data.edges)} of {data.n_edges_of_model:,} edges{left_out}."


# The drawing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Where things are on the page: x by the layout, y by row, from the top."""

    layout: Layout
    tops: list[float]
    width: float
    height: float
    legend: float  # where it begins
    largest: float  # of the scores, in absolute value

    def x(self, at: float) -> float:
        return at + LABELS + (self.width - LABELS - self.layout.width) / 2

    def stroke(self, score: float | None) -> float:
        return 1.5 if not score else THINNEST + (THICKEST - THINNEST) * abs(score) / self.largest


def drawing(data: CircuitData, title: str = "Circuit", style: Markup | str = "") -> Markup:
    """The circuit as one `<svg>`; its style is views/assets/circuit.css, on the page or given."""
    plan = plan_of(data)
    edges = sorted(data.edges, key=lambda edge: abs(edge["score"] or 0))  # the strongest on top
    text = f"{title}: {summary(data)}"
    return tag(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "layered",
            "viewBox": f"0 0 {plan.width:.0f} {plan.height:.0f}",
            "width": f"{plan.width:.0f}",
            "height": f"{plan.height:.0f}",
            "role": "group",
            "aria-label": text,
        },
        style,
        tag("title", {}, text),
        *_bands(data, plan),
        tag("g", {"class": "edges"}, *(_edge(edge, plan) for edge in edges)),
        tag("g", {"class": "nodes"}, *(_node(node["node"], data, plan) for node in data.nodes)),
        *_legend(data, plan),
    )


def plan_of(data: CircuitData) -> Plan:
    boxes = [Box(node["node"], node["row"], 7.2 * len(node["node"]) + 22) for node in data.nodes]
    layout = layered(boxes, [_link(edge) for edge in data.edges], GAP, LANE)
    n_rows = len(data.row_labels)
    arriving = [0] * n_rows
    for edge in data.edges:
        arriving[layout.boxes[target_of(edge)].row] += 1
    y, tops = MARGIN, [0.0] * n_rows
    for row in reversed(range(n_rows)):
        tops[row] = y
        y += NODE_HEIGHT + 38 + min(34.0, 2.0 * arriving[row])  # room for what turns into this row from below
    width = max(layout.width + LABELS + 2 * MARGIN, 480)
    largest = max((abs(edge["score"] or 0) for edge in data.edges), default=0.0) or 1.0
    legend = tops[0] + NODE_HEIGHT + 32
    height = legend + LINE * (1 + max(line for _, _, line in keys_of(data, width, largest)))
    return Plan(layout, tops, width, height, legend, largest)


def _link(edge: dict[str, Any]) -> Link:
    return Link(edge["sender"], target_of(edge), sign_of(edge["score"]))


def target_of(edge: dict[str, Any]) -> str:
    return edge["receiver"].partition(".")[0]


def port_of(edge: dict[str, Any]) -> str:
    return edge["receiver"].partition(".")[2]


def sign_of(score: float | None) -> str:
    return "plain" if not score else "more" if score > 0 else "less"


def _said(score: float | None) -> str:
    return "" if score is None else f"{score:+.3g}".replace("-", "−")


def _bands(data: CircuitData, plan: Plan) -> list[Markup]:
    """A shade behind every row of nodes, with its name at the left."""
    parts = []
    for top, label in zip(plan.tops, data.row_labels, strict=True):
        where = {"class": "row", "x": 0.0, "y": top - 5, "width": plan.width, "height": NODE_HEIGHT + 10}
        parts.append(tag("rect", where))
        parts.append(tag("text", {"class": "row-label", "x": 8.0, "y": top + NODE_HEIGHT / 2 + 4}, label))
    return parts


def _edge(edge: dict[str, Any], plan: Plan) -> Markup:
    css = " ".join(part for part in ("edge", sign_of(edge["score"]), port_of(edge)) if part)
    ends = {"data-from": edge["sender"], "data-to": target_of(edge)}
    title = edge["edge"] + (f": {_said(edge['score'])}" if edge["score"] is not None else "")
    path = {"class": css, "d": _path(edge, plan), "stroke-width": f"{plan.stroke(edge['score']):.2f}", **ends}
    return tag("path", path, tag("title", {}, title))


def _path(edge: dict[str, Any], plan: Plan) -> str:
    return "".join(f"{command}{' '.join(f'{number:.1f}' for number in numbers)}" for command, numbers in route(edge, plan))


def route(edge: dict[str, Any], plan: Plan) -> list[tuple[str, tuple[float, ...]]]:
    """Up from the sender's top, straight through its lanes, into the receiver's port: SVG's M, C and V with their numbers."""
    layout = plan.layout
    x, y = plan.x(layout.of(edge["sender"])), plan.tops[layout.boxes[edge["sender"]].row]
    parts: list[tuple[str, tuple[float, ...]]] = [("M", (x, y))]
    stops = [(plan.x(at), plan.tops[row] + NODE_HEIGHT + 5, plan.tops[row] - 5) for row, at in layout.lanes(_link(edge))]
    target = target_of(edge)
    end = plan.tops[layout.boxes[target].row] + NODE_HEIGHT
    stops.append((plan.x(layout.of(target)) + PORTS.get(port_of(edge), 0.0), end, end))
    for to_x, bottom, top in stops:
        middle = (y + bottom) / 2
        parts.append(("C", (x, middle, to_x, middle, to_x, bottom)))
        if top != bottom:
            parts.append(("V", (top,)))
        x, y = to_x, top
    return parts


def _node(label: str, data: CircuitData, plan: Plan) -> Markup:
    box = plan.layout.boxes[label]
    middle, top = plan.x(plan.layout.of(label)), plan.tops[box.row]
    into = [edge for edge in data.edges if target_of(edge) == label]
    out = [edge for edge in data.edges if edge["sender"] == label]
    said = f"{label}: {_strongest(into, 'reads', _source)}; {_strongest(out, 'is read by', lambda edge: edge['receiver'])}"
    corners = 15 if label in ("embed", "logits") else 6 if label.startswith("L") else 0
    shape = {"x": round(middle - box.width / 2, 1), "y": top, "width": box.width, "height": NODE_HEIGHT, "rx": corners}
    ports = [
        tag("text", {"class": "port", "x": round(middle + offset, 1), "y": top + NODE_HEIGHT - 4, "text-anchor": "middle"}, name)
        for name, offset in PORTS.items()
        if any(port_of(edge) == name for edge in into)
    ]
    attributes = {"class": "node", "data-node": label, "tabindex": "0", "role": "img", "aria-label": said}
    text = {"x": round(middle, 1), "y": top + (14 if ports else NODE_HEIGHT / 2 + 4), "text-anchor": "middle"}
    return tag("g", attributes, tag("title", {}, said), tag("rect", shape), tag("text", text, label), *ports)


def _source(edge: dict[str, Any]) -> str:
    return edge["sender"] + (f" as {port_of(edge)}" if port_of(edge) else "")


def _strongest(edges: Sequence[dict[str, Any]], verb: str, name: Callable[[dict[str, Any]], str]) -> str:
    """The strongest edges of one side of a node, in words."""
    if not edges:
        return f"{verb} none"
    ranked = sorted(edges, key=lambda edge: -abs(edge["score"] or 0))
    shown = [name(edge) + (f" ({_said(edge['score'])})" if edge["score"] is not None else "") for edge in ranked[:6]]
    return f"{verb} " + ", ".join(shown) + (f" and {len(edges) - 6} more" if len(edges) > 6 else "")


def keys_of(data: CircuitData, width: float, largest: float, char: float = CHAR) -> list[tuple[tuple[str, str, str], float, int]]:
    """What is explained: (sign, port, text), where it begins and on which line; only what there is. `char`: a letter's width."""
    signs, ports = {sign_of(edge["score"]) for edge in data.edges}, {port_of(edge) for edge in data.edges}
    keys = [("more", "", f"{data.scores} > 0")] if "more" in signs else []
    keys += [("less", "", f"{data.scores} < 0")] if "less" in signs else []
    keys += [("plain", "", f"{data.scores} 0")] if len(signs) > 1 and "plain" in signs else []
    keys += [("plain", name, f"into {name}") for name in PORTS if name in ports]
    keys += [("", "", f"widest: {largest:.3g}")] if signs - {"plain"} else []
    x, line, placed = MARGIN, 0, []
    for key in [*keys, ("", "", "read upwards")]:
        needed = (34 if key[0] else 0) + char * len(key[2])
        if x > MARGIN and x + needed > width - MARGIN:
            x, line = MARGIN, line + 1
        placed.append((key, x, line))
        x += needed + 18
    return placed


def _legend(data: CircuitData, plan: Plan) -> list[Markup]:
    """What colour, width and dashes mean."""
    parts = []
    for (sign, port, text), x, line in keys_of(data, plan.width, plan.largest):
        y = plan.legend + LINE * line
        if sign:
            swatch = {"class": f"edge key {sign} {port}".strip(), "d": f"M{x:.1f} {y:.1f}h28", "stroke-width": "2.5"}
            parts.append(tag("path", swatch))
        parts.append(tag("text", {"class": "legend", "x": round(x + (34 if sign else 0), 1), "y": y + 4}, text))
    return parts
