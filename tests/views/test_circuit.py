"""A drawn circuit: every edge from its sender to its receiver's port, with its sign, size and input, and no other text."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from interp_gpt2.causal.circuit import Circuit, greedy_edges, writers
from interp_gpt2.causal.graph import Graph
from interp_gpt2.errors import AnalysisError
from interp_gpt2.views.circuit import MOST_EDGES, NODE_HEIGHT, circuit_svg, circuit_view, drawing, pack_circuit
from interp_gpt2.views.html import printable

SVG = "{http://www.w3.org/2000/svg}"
GRAPH = Graph(n_layers=3, n_heads=4)
SCORES = {"embed -> L0H1.v": 2.0, "L0H1 -> L1H0.k": -4.0, "embed -> L1H0.q": 1.0, "L1H0 -> mlp 1": 0.0, "L1H0 -> logits": -1.0}


def scored(labels: dict[str, float] = SCORES, graph: Graph = GRAPH) -> Circuit:
    scores = torch.zeros(graph.exists.shape)
    for label, score in labels.items():
        scores[graph.index(label)] = score
    return Circuit(graph, Circuit.of_edges(graph, labels).kept, scores)


def large(n: int = 200) -> Circuit:
    graph = Graph(12, 12)
    draw = torch.Generator().manual_seed(0)
    hot = torch.rand(len(graph.senders) + 1, generator=draw) ** 6  # a few nodes have most of the strong edges
    hot[0] = hot[-1] = 1
    scores = torch.randn(graph.exists.shape, generator=draw) * hot[:-1, None] * hot[writers(graph)]
    return greedy_edges(graph, scores, n)


def parsed(circuit: Circuit) -> ElementTree.Element:
    return ElementTree.fromstring(circuit_svg(circuit))


def edges_of(svg: ElementTree.Element) -> dict[str, ElementTree.Element]:
    drawn = svg.find(f"{SVG}g[@class='edges']")
    return {path.find(f"{SVG}title").text.partition(":")[0]: path for path in drawn}


def boxes_of(svg: ElementTree.Element) -> dict[str, tuple[float, float, float]]:
    """Left, right and top of every node."""
    found = {}
    for node in svg.iter(f"{SVG}g"):
        if node.get("class") == "node":
            rect = node.find(f"{SVG}rect")
            x, width, top = (float(rect.get(name)) for name in ("x", "width", "y"))
            found[node.get("data-node")] = (x, x + width, top)
    return found


def points(path: ElementTree.Element) -> list[tuple[float, float]]:
    """Where an edge begins, turns and ends."""
    x = y = 0.0
    found = []
    for command, numbers in re.findall(r"([MCV])([^MCV]*)", path.get("d")):
        values = [float(number) for number in numbers.split()]
        x, y = (x, values[0]) if command == "V" else values[-2:]
        found.append((x, y))
    return found


@pytest.mark.parametrize("circuit", [scored(), large()], ids=["small", "large"])
def test_every_edge_runs_from_the_top_of_its_sender_to_the_port_of_its_receiver(circuit: Circuit) -> None:
    svg = parsed(circuit)
    drawn, boxes = edges_of(svg), boxes_of(svg)
    assert set(drawn) == set(circuit.labels)
    for edge in circuit.edges:
        (x, y), *_, (end_x, end_y) = points(drawn[edge.label])
        left, right, top = boxes[edge.sender.label]
        assert x == pytest.approx((left + right) / 2, abs=0.2)
        assert y == pytest.approx(top, abs=0.1)
        left, right, top = boxes[edge.receiver.writer.label]
        port = {"q": -15, "k": 0, "v": 15, None: 0}[edge.receiver.input]
        assert end_x == pytest.approx((left + right) / 2 + port, abs=0.2)
        assert end_y == pytest.approx(top + NODE_HEIGHT, abs=0.1)
        assert y > end_y  # upwards


def test_no_edge_passes_through_a_node_that_is_not_its_own() -> None:
    svg = parsed(large())
    for label, path in edges_of(svg).items():
        places = points(path)[1:-1]
        for left, right, top in boxes_of(svg).values():
            inside = [x for x, y in places if top - 6 <= y <= top + NODE_HEIGHT + 6 and left - 1 < x < right + 1]
            assert not inside, label


@pytest.mark.parametrize("circuit", [scored(), large(), large(30)], ids=["small", "large", "middling"])
def test_nodes_do_not_overlap_and_nothing_leaves_the_sheet(circuit: Circuit) -> None:
    svg = parsed(circuit)
    _, _, width, height = map(float, svg.get("viewBox").split())
    boxes = list(boxes_of(svg).values())
    for i, (left, right, top) in enumerate(boxes):
        assert 96 <= left < right <= width  # beside the rows' names
        assert 0 <= top <= height
        for other_left, other_right, other_top in boxes[:i]:
            assert top != other_top or right < other_left or other_right < left
    for text in svg.iter(f"{SVG}text"):
        assert 0 <= float(text.get("y")) <= height
        if text.get("class") == "legend":
            assert float(text.get("x")) + 6.6 * len(text.text) <= width


def test_colour_is_the_sign_width_the_size_and_dashes_the_input() -> None:
    drawn = edges_of(parsed(scored()))
    classes = {label: path.get("class").split() for label, path in drawn.items()}
    assert classes["embed -> L0H1.v"] == ["edge", "more", "v"]
    assert classes["L0H1 -> L1H0.k"] == ["edge", "less", "k"]
    assert classes["L1H0 -> mlp 1"] == ["edge", "plain"]
    widths = {label: float(path.get("stroke-width")) for label, path in drawn.items()}
    assert widths["L0H1 -> L1H0.k"] == 5
    assert widths["embed -> L0H1.v"] - 1 == pytest.approx(2 * (widths["embed -> L1H0.q"] - 1), abs=0.01)
    assert list(drawn)[-1] == "L0H1 -> L1H0.k"  # the strongest is drawn last, on top
    legend = [text.text for text in parsed(scored()).iter(f"{SVG}text") if text.get("class") == "legend"]
    assert legend == ["score > 0", "score < 0", "score 0", "into q", "into k", "into v", "widest: 4", "read upwards"]


def test_without_scores_there_is_neither_colour_nor_size_to_explain() -> None:
    circuit = replace(scored(), scores=None)
    svg = parsed(circuit)
    assert {path.get("stroke-width") for path in edges_of(svg).values()} == {"1.50"}
    legend = [text.text for text in svg.iter(f"{SVG}text") if text.get("class") == "legend"]
    assert legend == ["into q", "into k", "into v", "read upwards"]


def test_nodes_say_in_words_what_they_read_and_who_reads_them() -> None:
    said = {node.get("data-node"): node.get("aria-label") for node in parsed(scored()).iter(f"{SVG}g") if node.get("data-node")}
    assert said["L1H0"] == "L1H0: reads L0H1 as k (−4), embed as q (+1); is read by logits (−1), mlp 1 (+0)"
    assert said["embed"].startswith("embed: reads none; is read by L0H1.v (+2)")
    assert all(node.get("tabindex") == "0" for node in parsed(scored()).iter(f"{SVG}g") if node.get("data-node"))


def test_the_table_holds_every_edge_the_strongest_first() -> None:
    view = circuit_view(scored(), scores="EAP")
    cells = re.findall(r"<td>(.*?)</td>", str(view.fragment))
    assert cells[::2] == [
        "L0H1 -&gt; L1H0.k",
        "embed -&gt; L0H1.v",
        "embed -&gt; L1H0.q",
        "L1H0 -&gt; logits",
        "L1H0 -&gt; mlp 1",
    ]
    assert [edge["score"] for edge in view.packed.edges] == [row["score"] for row in scored().rows()]
    assert view.packed.row_labels == ["embeddings", "layer 0 heads", "layer 1 heads", "layer 1 MLP", "logits"]


def test_what_was_left_out_is_said() -> None:
    assert "2 more are left out" in str(circuit_view(Circuit(GRAPH, scored().kept, dropped=("a", "b"))).fragment)


def test_a_drawing_of_hostile_texts_is_still_an_svg_file(hostile_text: str) -> None:
    svg = circuit_svg(scored(), hostile_text, hostile_text)
    assert ElementTree.fromstring(svg).get("aria-label").startswith(printable(hostile_text))
    assert not re.search("<script|[\u202e\u2028\x00]", svg)


def test_the_file_needs_nothing_but_itself_and_is_the_same_bytes_twice() -> None:
    svg = circuit_svg(large())
    assert svg == circuit_svg(large())
    assert not re.search(r"url\(|@import|href|<script", svg)
    assert "prefers-color-scheme: dark" in svg
    assert str(drawing(pack_circuit(large()))) == str(drawing(pack_circuit(large())))


def test_a_node_in_focus_keeps_its_edges_and_the_rest_steps_back(watch, tmp_path) -> None:
    page = watch(circuit_view(scored()).save(tmp_path / "circuit.html")).page
    page.locator(".node[data-node='L0H1']").focus()
    kept = page.locator(".edges .edge.on").evaluate_all("edges => edges.map((edge) => edge.querySelector('title').textContent)")
    assert sorted(kept) == ["L0H1 -> L1H0.k: −4", "embed -> L0H1.v: +2"]
    assert page.locator(".said").inner_text() == "L0H1: reads embed as v (+2); is read by L1H0.k (−4)"
    page.keyboard.press("Escape")
    assert page.locator(".layered.chosen").count() == 0


def test_nothing_and_too_much_are_refused_with_what_to_do() -> None:
    with pytest.raises(AnalysisError, match="has 0"):
        circuit_view(Circuit.empty(GRAPH))
    with pytest.raises(AnalysisError, match="top_edges"):
        circuit_view(Circuit.full(Graph(12, 12)))
    assert MOST_EDGES >= 200
