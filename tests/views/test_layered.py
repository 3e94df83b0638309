"""Where boxes and links go: apart, in few crossings, around what is between."""

from itertools import pairwise

import pytest
import torch

from interp_gpt2.views.layered import Box, Lane, Layout, Link, apart, layered

GAP, LANE = 10.0, 6.0


def random_graph(seed: int, n_rows: int = 6) -> tuple[list[Box], list[Link]]:
    draw = torch.Generator().manual_seed(seed)
    boxes = [Box(f"{row}-{i}", row, 40.0 + 5 * i) for row in range(n_rows) for i in range(1 + (3 * row + seed) % 4)]
    links = [
        Link(low.name, high.name, "ab"[int(torch.randint(0, 2, (), generator=draw))])
        for low in boxes
        for high in boxes
        if low.row < high.row and torch.rand((), generator=draw) < 0.3
    ]
    return boxes, links


def width(item: Box | Lane) -> float:
    return item.width if isinstance(item, Box) else LANE


def rows_of(layout: Layout) -> list[list[Box | Lane]]:
    rows = sorted({item.row for item in layout.x})
    return [sorted((item for item in layout.x if item.row == row), key=layout.x.get) for row in rows]


@pytest.mark.parametrize("seed", range(6))
def test_nothing_in_a_row_overlaps_and_everything_is_on_the_sheet(seed: int) -> None:
    layout = layered(*random_graph(seed), GAP, LANE)
    for row in rows_of(layout):
        for one, other in pairwise(row):
            assert layout.x[other] - layout.x[one] >= (width(one) + width(other)) / 2 + GAP - 1e-6
    assert min(layout.x[item] - width(item) / 2 for item in layout.x) == pytest.approx(0)
    assert max(layout.x[item] + width(item) / 2 for item in layout.x) == pytest.approx(layout.width)


@pytest.mark.parametrize("seed", range(6))
def test_a_link_has_a_lane_in_every_row_between_its_ends_shared_by_start_and_group(seed: int) -> None:
    boxes, links = random_graph(seed)
    layout = layered(boxes, links, GAP, LANE)
    named = {box.name: box for box in boxes}
    for link in links:
        between = list(range(named[link.start].row + 1, named[link.end].row))
        assert layout.lanes(link) == [(row, layout.x[Lane(link.start, link.group, row)]) for row in between]
    lanes = {Lane(link.start, link.group, row) for link in links for row, _ in layout.lanes(link)}
    assert lanes == {item for item in layout.x if isinstance(item, Lane)}


def test_links_that_need_not_cross_do_not() -> None:
    boxes = [Box(name, row, 30.0) for row, names in enumerate(["abcd", "wxyz"]) for name in names]
    ends = dict(zip("abcd", "zywx", strict=True))
    layout = layered(boxes, [Link(start, end) for start, end in ends.items()], GAP, LANE)
    starts = sorted("abcd", key=layout.of)
    assert sorted("wxyz", key=layout.of) == [ends[start] for start in starts]
    for start, end in ends.items():
        assert layout.of(start) == pytest.approx(layout.of(end))  # straight up


def test_a_long_link_runs_straight_beside_what_is_between() -> None:
    boxes = [Box("low", 0, 30.0), *(Box(f"m{row}", row, 30.0) for row in range(1, 5)), Box("high", 5, 30.0)]
    layout = layered(boxes, [Link("low", "high"), *(Link(a.name, b.name) for a, b in pairwise(boxes))], GAP, LANE)
    places = [x for _, x in layout.lanes(Link("low", "high"))]
    assert max(places) - min(places) < 2


def test_things_are_put_apart_with_the_least_squared_movement() -> None:
    from scipy.optimize import minimize

    assert apart([0.0, 100.0, 200.0], [30.0] * 3, [1.0] * 3, 10.0) == [0.0, 100.0, 200.0]
    assert apart([50.0, 50.0], [30.0, 50.0], [1.0, 1.0], 10.0) == [25.0, 75.0]
    assert apart([50.0, 50.0], [30.0, 30.0], [3.0, 1.0], 10.0) == [40.0, 80.0]  # the heavier moves less
    wishes, widths, pull = (
        [5.0, 3.0, 60.0, 50.0, 49.0, 200.0],
        [10.0, 20.0, 30.0, 10.0, 20.0, 10.0],
        [1.0, 2.0, 1.0, 3.0, 1.0, 1.0],
    )
    needed = [(a + b) / 2 + 4 for a, b in pairwise(widths)]
    best = minimize(
        lambda x: sum(w * (a - b) ** 2 for w, a, b in zip(pull, x, wishes, strict=True)),
        [0.0, 40.0, 80.0, 120.0, 160.0, 220.0],
        method="SLSQP",
        constraints=[{"type": "ineq", "fun": lambda x, i=i: x[i + 1] - x[i] - needed[i]} for i in range(5)],
    )
    assert apart(wishes, widths, pull, 4.0) == pytest.approx(best.x.tolist(), abs=0.01)


def test_the_same_graph_is_laid_out_the_same_and_nothing_at_all_is_a_layout_too() -> None:
    assert layered(*random_graph(1), GAP, LANE).x == layered(*random_graph(1), GAP, LANE).x
    assert layered([], [], GAP, LANE).width == 0
    assert layered([Box("a", 0, 30.0)], [], GAP, LANE).of("a") == 15
