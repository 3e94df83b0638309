"""Line charts: numbers land where they should, labels never overlap, gaps stay gaps."""

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from interp_gpt2.views.svg import LINE_HEIGHT, LINEAR, STEPS_LINEAR, Chart, Line, Rule, Window, draw, spread, tick_texts, ticks

CHART = Chart("title", "step", "loss", [Line("a", [0, 1, 10, 100], [4.0, 3.0, 2.0, 1.0], "c1")], size=(400, 300))


def parsed(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(str(draw(chart)))


def points(chart: Chart) -> list[list[tuple[float, float]]]:
    lines = [node for node in parsed(chart).iter("polyline") if "data-y" in node.attrib]
    return [[tuple(map(float, point.split(","))) for point in node.get("points").split()] for node in lines]


def test_a_linear_chart_is_the_straight_line_it_was_given() -> None:
    chart = replace(CHART, lines=[Line("a", [0, 5, 10], [0.0, 0.5, 1.0])], x_scale=LINEAR)
    ((x0, y0), (x1, y1), (x2, y2)) = points(chart)[0]
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert x0 < x2
    assert y0 > y2  # up is more


def test_a_logarithmic_step_axis_spaces_powers_of_ten_evenly_and_shows_step_0() -> None:
    chart = replace(CHART, lines=[Line("a", [0, 9, 99, 999], [0.0, 1.0, 2.0, 3.0])])
    xs = [x for x, _ in points(chart)[0]]
    gaps = [b - a for a, b in pairwise(xs)]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.11)
    linear = [x for x, _ in points(replace(chart, x_scale=STEPS_LINEAR))[0]]
    assert linear[1] - linear[0] < 0.02 * (linear[3] - linear[0])


def test_a_missing_value_breaks_the_line_instead_of_being_drawn() -> None:
    line = Line("a", [0, 1, 2, 3, 4], [1.0, 2.0, None, 4.0, 5.0])
    assert [len(run) for run in points(replace(CHART, lines=[line]))] == [2, 2]


def test_the_numbers_ride_along_for_the_page_to_find() -> None:
    (line,) = [node for node in parsed(CHART).iter("polyline") if "data-y" in node.attrib]
    assert line.get("data-x") == "0 1 10 100"
    assert line.get("data-y") == "4 3 2 1"
    assert line.get("data-name") == "a"


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    lines = [Line(f"line {i}", [0, 1], [1.0, 1.0 + i / 100]) for i in range(6)]
    labels = [node for node in parsed(replace(CHART, lines=lines)).iter("text") if "label" in node.get("class")]
    heights = sorted(float(node.get("y")) for node in labels)
    assert len(heights) == 6
    assert all(b - a >= LINE_HEIGHT - 0.2 for a, b in pairwise(heights))


def test_labels_move_no_more_than_they_must() -> None:
    assert spread([10.0, 50.0, 90.0], 0, 100) == [10.0, 50.0, 90.0]
    assert spread([50.0, 50.0], 0, 100) == [50 - LINE_HEIGHT / 2, 50 + LINE_HEIGHT / 2]
    assert spread([99.0, 100.0], 0, 100) == [100 - LINE_HEIGHT, 100.0]


def test_a_long_name_is_cut_in_the_chart_and_whole_when_hovered() -> None:
    chart = replace(CHART, rules=[Rule("x" * 500, 2.0)])
    (label,) = [node for node in parsed(chart).iter("text") if node.text and node.text.startswith("xx")]
    assert len(label.text) < 40
    assert label.find("title").text == "x" * 500
    assert max(x for x, _ in points(chart)[0]) > 150  # the plot keeps most of the width


def test_a_window_that_runs_past_the_last_step_is_cut_there() -> None:
    (box,) = [n for n in parsed(replace(CHART, window=Window(50, 500, 90))).iter("rect") if n.get("class") == "window"]
    right = float(box.get("x")) + float(box.get("width"))
    assert right == pytest.approx(max(x for x, _ in points(CHART)[0]), abs=0.2)


def test_ticks_are_round_and_written_alike() -> None:
    assert ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 2600, 5) == [0, 500, 1000, 1500, 2000, 2500]
    assert ticks(3, 3, 5) == [3]
    assert tick_texts([0, 0.5, 1]) == ["0.0", "0.5", "1.0"]
    assert tick_texts([0, 1000, 2000]) == ["0", "1,000", "2,000"]


@pytest.mark.parametrize("lines", [[], [Line("a", [], [])], [Line("a", [5], [2.0])], [Line("a", [0, 1], [None, None])]])
def test_a_chart_of_almost_nothing_is_still_a_chart(lines: list[Line]) -> None:
    assert "nan" not in re.sub("title", "", str(draw(replace(CHART, lines=lines))))
