"""The stack of panels: charts one above the other on a single axis of steps, and when each curve changed phase."""

from dataclasses import replace

from markupsafe import Markup

from interp_gpt2.report.pictures import HEAD_COLOURS, Table, cell, change_window, responsive, shade, step_scale
from interp_gpt2.report.schema import Change, Development, Panel, Report
from interp_gpt2.report.words import count
from interp_gpt2.views.svg import Chart, Line

WIDE, NARROW = (72.0, 196.0), (52.0, 118.0)  # margins, the same for every panel: the axes lie under each other
HEIGHT = 128
ROW = 19  # of the dates


def panel_figure(panel: Panel, section: Development, report: Report) -> Markup:
    """One panel, without an axis of its own: the last of the stack has it."""
    curves = [one for one in panel.lines if not one.is_yardstick]
    lines = [
        Line(one.label, section.steps, one.values, "rule dashed", name=f"{panel.title}: {one.label}")
        for one in panel.lines
        if one.is_yardstick
    ]
    for i, one in enumerate(curves):
        css = f"s{shade(i, len(curves))}" if panel.ordered else HEAD_COLOURS[i % len(HEAD_COLOURS)]
        lines.append(Line(one.label, section.steps, one.values, css, one.low, one.high, name=f"{panel.title}: {one.label}"))
    return _stacked(Chart(f"{panel.title} by step", "step", panel.unit, lines, size=(860, HEIGHT)), section, report)


def dates_figure(section: Development, report: Report) -> Markup:
    """Each curve that changed phase as a dot at its step, with its 95 % interval, the earliest on top; under it the axis.

    The ticks are the steps that were measured.
    """
    found = dated(section)
    lines = []
    for i, change in enumerate(found):
        y, name = float(len(found) - 1 - i), f"{change.panel}: {change.curve}"
        lines.append(Line("", change.interval, [y, y], "c2 interval", name=name))
        alone = sum(other.panel == change.panel for other in section.changes) == 1
        label = f"{change.panel if alone else change.curve} {count(change.step)}"
        lines.append(Line(label, [change.step], [y], "c2", dots=True, name=name))
    chart = Chart(
        title="When each curve changed phase",
        x_label="step",
        y_label="",
        lines=lines,
        ticks=section.steps,
        y_range=(-0.7, len(found) - 0.3),
        size=(860, 56 + ROW * len(found)),
        y_axis=False,
    )
    return _stacked(chart, section, report, x_axis=True)


def dated(section: Development) -> list[Change]:
    """The curves that changed phase, the earliest first."""
    return sorted((change for change in section.changes if change.step is not None), key=lambda change: change.step)


def dates_table(section: Development) -> Table:
    """Every curve that was asked, those that changed phase first."""
    silent = [change for change in section.changes if change.step is None]
    rows = []
    for change in [*dated(section), *silent]:
        numbers = ["–"] * 4
        if change.step is not None:
            low, high = change.interval
            numbers = [count(change.step), f"{count(low)} to {count(high)}", count(change.width), f"{change.rise:+.3f}"]
        rows.append([f"{change.panel}: {change.curve}", *numbers, change.reason])
    return Table("phase-changes", ["curve", "step", "95 %", "width", "rise", "evidence"], rows)


def panel_table(panel: Panel, section: Development) -> Table:
    """Rows are steps, columns curves, the yardsticks last."""
    lines = sorted(panel.lines, key=lambda one: one.is_yardstick)
    rows = [[count(step), *(cell(one.values[i]) for one in lines)] for i, step in enumerate(section.steps)]
    return Table(panel.name, ["step", *(one.label for one in lines)], rows)


def _stacked(chart: Chart, section: Development, report: Report, x_axis: bool = False) -> Markup:
    wide = replace(
        chart,
        window=change_window(report.phase_change),
        x_scale=step_scale(report),
        x_range=(0.0, float(section.steps[-1] or 1)),
        margins=WIDE,
        x_axis=x_axis,
    )
    return responsive(wide, replace(wide, size=(420, chart.size[1]), margins=NARROW))
