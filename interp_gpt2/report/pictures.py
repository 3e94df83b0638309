"""The report's charts and tables: which numbers go into which picture, and how they are named there."""

import math
from dataclasses import dataclass, replace

from markupsafe import Markup

from interp_gpt2.report.schema import (
    Context,
    HeadScore,
    HeadScores,
    Loss,
    LossByPosition,
    Neuron,
    PhaseChange,
    Probe,
    Probes,
    Report,
)
from interp_gpt2.report.words import count, with_error
from interp_gpt2.views.html import tag
from interp_gpt2.views.svg import LINEAR, STEPS_LINEAR, STEPS_LOG, Chart, Line, Rule, Window, draw

HEAD_COLOURS = ("c1", "c2", "c3", "c4")
SHADES = 8  # classes s0 ... s7 of the sequential colours, and a1 ... a8 of an activation
MAX_POINTS = 1000  # of a training curve; more would not be seen


@dataclass(frozen=True)
class Table:
    """A picture's numbers as text, and the name of the CSV file they are offered as."""

    name: str
    columns: list[str]
    rows: list[list[str]]


def responsive(chart: Chart, narrow: Chart) -> Markup:
    """A figure that shows `chart` on a wide page and `narrow` on a telephone: scaling one would shrink its text."""
    return tag(
        "figure",
        {},
        tag("div", {"class": "wide"}, draw(chart)),
        tag("div", {"class": "narrow"}, draw(narrow)),
    )


def loss_figure(loss: Loss, report: Report) -> Markup:
    """Training and validation loss by step, checkpoints as ticks below, references as labelled lines."""
    validation, train = loss.validation, loss.train
    last = next((y for y in reversed(validation.loss) if y is not None), None)
    lines = []
    if train is not None:
        stride = math.ceil(len(train.steps) / MAX_POINTS)
        lines.append(Line(train.label, train.steps[::stride], train.loss[::stride], css="train"))
    low, high = _band(validation.loss, validation.stderr)
    label = f"{validation.label} {with_error(last, None)}"
    lines.append(
        Line(label, validation.steps, validation.loss, "c2", low, high, dots=len(validation.steps) < 60, name=validation.label)
    )
    chart = Chart(
        title="Loss by training step",
        x_label="step",
        y_label=f"nats per {report.data.unit}",
        lines=lines,
        rules=[Rule(f"{r.name} {with_error(r.loss, r.stderr)}", r.loss, r.stderr) for r in loss.references],
        window=change_window(report.phase_change),
        ticks=report.run.checkpoints,
        x_scale=step_scale(report),
    )
    short = [replace(rule, label=r.name) for rule, r in zip(chart.rules, loss.references, strict=True)]
    names = [replace(line, label=line.name or line.label) for line in lines]
    return responsive(chart, replace(chart, lines=names, rules=short, size=(420, 300)))


def loss_table(loss: Loss) -> Table:
    """Validation loss at every step it was measured, the training loss of the same step if logged, then the references."""
    train = dict(zip(loss.train.steps, loss.train.loss, strict=True)) if loss.train else {}
    curve = loss.validation
    stderr = curve.stderr or [None] * len(curve.steps)
    rows = [
        [count(step), cell(value), cell(error), cell(train.get(step))]
        for step, value, error in zip(curve.steps, curve.loss, stderr, strict=True)
    ]
    rows += [[reference.name, cell(reference.loss), cell(reference.stderr), ""] for reference in loss.references]
    return Table("loss", ["step", curve.label, "standard error", loss.train.label if loss.train else "training"], rows)


def change_figure(change: PhaseChange) -> Markup:
    """What was measured, and the logistic that was fitted to it, on a linear axis of steps."""
    last = max(change.steps)
    grid = [last * i / 240 for i in range(241)]
    scale = change.width / (2 * math.log(9))
    fit = [change.low + (change.high - change.low) / (1 + math.exp(min(-(x - change.step) / scale, 700))) for x in grid]
    lines = [
        Line("fit", grid, fit, "c4", name="logistic fit"),
        Line("measured", change.steps, change.values, "c1 points", dots=True),
    ]
    chart = Chart(
        title="The phase change",
        x_label="step",
        y_label="score less uniform",
        lines=lines,
        window=change_window(change),
        x_scale=LINEAR,
        size=(860, 260),
    )
    return responsive(chart, replace(chart, size=(420, 240)))


def position_figure(section: LossByPosition, report: Report) -> Markup:
    """Loss at each position, one line a step from dark to bright, references dashed."""
    n = len(section.steps)
    lines = [
        Line(f"step {count(step)}", section.positions, loss, f"s{shade(i, n)}")
        for i, (step, loss) in enumerate(zip(section.steps, section.loss, strict=True))
    ]
    lines += [Line(r.name, section.positions, r.loss, "rule dashed") for r in section.references]
    chart = Chart("Loss by position", "position", f"nats per {report.data.unit}", lines, x_scale=LINEAR, size=(860, 320))
    return responsive(chart, replace(chart, size=(420, 300)))


def position_table(section: LossByPosition) -> Table:
    """Rows are positions, columns steps and references."""
    columns = [*(f"step {count(step)}" for step in section.steps), *(r.name for r in section.references)]
    series = [*section.loss, *(r.loss for r in section.references)]
    rows = [[str(position), *map(cell, values)] for position, *values in zip(section.positions, *series, strict=True)]
    return Table("loss-by-position", ["position", *columns], rows)


def head_colours(report: Report) -> dict[str, str]:
    """The heads that lead some score, each with one colour throughout the report."""
    labels = dict.fromkeys(finding.label for finding in report.heads.values())
    return dict(zip(labels, HEAD_COLOURS, strict=False))


def head_figure(score: HeadScore, section: HeadScores, report: Report) -> Markup:
    """One score of every head by step, its yardstick dashed. Heads that lead a score are coloured; of these, the one
    that leads this score and those that end well away from the uniform head are named, the others when hovered."""
    colours, span = head_colours(report), _attention_range(section)
    apart = 0.1 * (span[1] - span[0]) * (1 if score.unit == "attention" else score.uniform)
    leader = report.heads.get(score.name)
    lines = []
    for i, head in enumerate(section.heads):
        shown = head in colours
        low, high = (score.low[i], score.high[i]) if shown and score.low and score.high else (None, None)
        last = next((value for value in reversed(score.values[i]) if value is not None), score.uniform)
        named = (leader and head == leader.label) or (shown and abs(last - score.uniform) > apart)
        label = head if named else ""
        lines.append(Line(label, section.steps, score.values[i], colours.get(head, "rest"), low, high, name=head))
    lines.sort(key=lambda line: line.css != "rest")  # the leading heads last, on top
    if score.beside:
        lines.append(Line(score.yardstick, section.steps, score.beside, "rule dashed"))
    chart = Chart(
        title=f"{score.title} by head and step",
        x_label="step",
        y_label=score.unit,
        lines=lines,
        rules=[] if score.beside else [Rule(score.yardstick, score.uniform)],
        window=change_window(report.phase_change),
        x_scale=step_scale(report),
        y_range=span if score.unit == "attention" else None,
        size=(312, 216),
    )
    return tag("figure", {}, draw(chart))


def head_table(score: HeadScore, section: HeadScores) -> Table:
    """Rows are steps, columns heads, the yardstick last."""
    rows = [
        [count(step), *(cell(values[i]) for values in score.values), cell(score.uniform)]
        for i, step in enumerate(section.steps)
    ]
    return Table(f"heads-{score.name}", ["step", *section.heads, score.yardstick], rows)


def probe_figure(probe: Probe, section: Probes, report: Report) -> Markup:
    """AUROC by step, one line a layer from dark to bright, the best one with its interval; what needs no model dashed."""
    n = len(section.layers)
    best = max(range(n), key=lambda i: probe.auroc[-1][i] or 0.0)
    lines = []
    for i, layer in enumerate(section.layers):
        # One interval, at the last step: bands of every layer would hide the lines.
        before = [None] * (len(section.steps) - 1)
        low, high = ([*before, end[-1][i]] if end and i == best else None for end in (probe.low, probe.high))
        lines.append(Line(layer, section.steps, [row[i] for row in probe.auroc], f"s{shade(i, n)}", low, high, dots=True))
    rules = [
        Rule(f"{label} {value:.2f}", value)
        for label, value in (
            ("majority", probe.majority),
            ("this token", probe.current_token),
            ("last two", probe.last_two_tokens),
            ("shuffled", highest_shuffled(probe)),
        )
        if value is not None
    ]
    title, window = f"Probes for {probe.name}", change_window(report.phase_change)
    chart = Chart(title, "step", "AUROC", lines, rules, window, x_scale=step_scale(report), size=(460, 280))
    return tag("figure", {}, draw(chart))


def probed_over_time(probe: Probe) -> bool:
    """Whether there is more than one step to draw a line through."""
    return sum(any(value is not None for value in row) for row in probe.auroc) > 1


def last_step_table(section: Probes) -> Table:
    """Probes of one step only: rows are labels, columns what needs no model and then the layers."""
    rows = []
    for probe in (probe for probe in section.probes if not probed_over_time(probe)):
        at = next((i for i in reversed(range(len(section.steps))) if probe.auroc[i][0] is not None), -1)
        beside = (probe.majority, probe.current_token, probe.last_two_tokens, highest_shuffled(probe))
        rows.append([probe.name.replace("_", " "), count(section.steps[at]), *map(cell, beside), *map(cell, probe.auroc[at])])
    return Table("probes-last-step", ["label", "step", "majority", "this token", "last two", "shuffled", *section.layers], rows)


def highest_shuffled(probe: Probe) -> float | None:
    """The best that any probe reached on shuffled labels, at any layer and step."""
    values = [value for row in probe.shuffled or [] for value in row if value is not None]
    return max(values, default=None)


def probe_table(probe: Probe, section: Probes) -> Table:
    """Rows are steps, columns layers, then the same layers on shuffled labels."""
    columns = [*section.layers, *(f"{layer}, shuffled" for layer in section.layers if probe.shuffled)]
    rows = []
    for i, step in enumerate(section.steps):
        shuffled = probe.shuffled[i] if probe.shuffled else []
        rows.append([count(step), *map(cell, probe.auroc[i]), *map(cell, shuffled)])
    for name in ("majority", "current_token", "last_two_tokens"):
        rows.append([name.replace("_", " "), cell(getattr(probe, name)), *[""] * (len(columns) - 1)])
    return Table(f"probe-{probe.name.replace(' ', '-')}", ["step", *columns], rows)


def neuron_yardsticks(neuron: Neuron) -> str:
    """How sure the AUROC is, and what choosing among as many neurons gives by itself."""
    parts = [f"{neuron.low:.3f} to {neuron.high:.3f}"] if neuron.low is not None and neuron.high is not None else []
    parts += [f"shuffled labels {neuron.shuffled:.3f}"] if neuron.shuffled is not None else []
    return "; ".join([*parts, f"n = {count(neuron.n)}"])


def context_marks(context: Context, neuron: Neuron) -> Markup:
    """The tokens of a context, each coloured by its activation relative to the neuron's highest; the peak is underlined."""
    highest = max((a for c in neuron.contexts for a in c.activations), default=0.0)
    parts = []
    for i, (token, activation) in enumerate(zip(context.tokens, context.activations, strict=True)):
        level = math.floor(SHADES * max(activation, 0.0) / highest) if highest > 0 else 0
        classes = [f"a{level}"] * (level > 0) + ["peak"] * (i == context.peak)
        said = {"class": " ".join(classes) or None, "title": f"{activation:.3g}" if classes else None}
        parts.append(tag("span", said, token))
    return Markup("").join(parts)


def step_scale(report: Report) -> str:
    """The scale of every step axis: linear if a phase change lies where a logarithmic axis would press it flat."""
    late = report.phase_change is not None and report.phase_change.step > 0.1 * report.run.last_step
    return STEPS_LINEAR if late else STEPS_LOG


def cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def shade(index: int, n: int) -> int:
    return round(index * (SHADES - 1) / max(n - 1, 1))


def change_window(change: PhaseChange | None) -> Window | None:
    return None if change is None else Window(change.step - change.width / 2, change.step + change.width / 2, change.step)


def _band(
    values: list[float | None], stderr: list[float | None] | None
) -> tuple[list[float | None], list[float | None]] | tuple[None, None]:
    if stderr is None:
        return None, None
    pairs = list(zip(values, stderr, strict=True))
    known = [None not in pair for pair in pairs]
    low = [value - error if ok else None for (value, error), ok in zip(pairs, known, strict=True)]
    high = [value + error if ok else None for (value, error), ok in zip(pairs, known, strict=True)]
    return low, high


def _attention_range(section: HeadScores) -> tuple[float, float]:
    """One axis for all scores that are attention, from 0 to the first tenth above the highest, so that panels compare."""
    scores = [score for score in section.scores if score.unit == "attention"]
    highest = max([v for score in scores for row in score.values for v in row if v is not None], default=1.0)
    return 0.0, min(1.0, math.floor(highest * 10 + 1) / 10)
