"""What a report says in words: the verdict, in sentences that claim no more than was measured."""

import json
from typing import Any

from interp_gpt2.analysis.development import MIN_CHECKPOINTS
from interp_gpt2.report.schema import HeadFinding, Report

BECAME = 0.2  # above the uniform head, before "became an induction head" is said: the rise a phase change needs


def verdict(report: Report) -> str:
    """One or two sentences: the phase change, or that none was found, and the heads that stand behind it."""
    return f"{_change(report)}{_heads(report)}"


def change_sentence(report: Report) -> str:
    """Why no phase change was found, or an empty string if one was."""
    note = report.phase_change_note.rstrip(".") if report.phase_change is None else ""
    return f"Phase change: none; {note}." if note else ""


def loss_sentence(report: Report) -> str:
    """The last validation loss beside the lowest reference, or an empty string without a loss."""
    if report.loss is None:
        return ""
    curve, unit = report.loss.validation, report.data.unit
    ends = [i for i, loss in enumerate(curve.loss) if loss is not None and curve.steps[i] <= report.run.last_step]
    if not ends:
        return ""
    last = ends[-1]
    loss = with_error(curve.loss[last], curve.stderr[last] if curve.stderr else None)
    sentence = f"The {curve.label} loss at step {count(curve.steps[last])} is {loss} nats per {unit}"
    if not report.loss.references:
        return sentence + "."
    best = min(report.loss.references, key=lambda reference: reference.loss)
    gap = curve.loss[last] - best.loss
    side = "below" if gap < 0 else "above"
    return f"{sentence}, {abs(gap):.3f} {side} the lowest reference, {best.name} ({with_error(best.loss, best.stderr)})."


def _change(report: Report) -> str:
    change = report.phase_change
    if change is not None:
        low, high = change.step_interval
        return f"Changed phase at step {count(change.step)} (95 %: {count(low)} to {count(high)}; width {count(change.width)})"
    if "head_scores" in report.omitted:
        return "A phase change was not looked for: head scores were not computed."
    if len(report.run.checkpoints) < MIN_CHECKPOINTS:
        return "Whether it changed phase cannot be told."
    return "No phase change found."


def _heads(report: Report) -> str:
    induction, previous = report.heads.get("induction"), report.heads.get("previous_token")
    if induction is None:
        return "." if report.phase_change else ""
    if report.phase_change is None:
        return f" The highest induction score is that of {_scored(induction)}."
    what = "became an induction head" if _became(report, induction) else "has the highest induction score at the end"
    text = f": {induction.label} {what} ({_yardstick(induction)})"
    if previous is None:
        return text + "."
    # Whether one head feeds the other is a question for patching; its layer is all that is known here.
    below = int(previous.label[1:].split("H")[0]) < int(induction.label[1:].split("H")[0])
    where = ", in a layer below it" if below else ""
    return f"{text}. The strongest previous-token head is {previous.label} ({_yardstick(previous)}){where}."


def _became(report: Report, head: HeadFinding) -> bool:
    """Is this head's own score near the uniform head's until the change begins, and well above it at the end?"""
    change, section = report.phase_change, report.head_scores
    if head.score - head.uniform < BECAME or change is None:
        return False
    score = next((score for score in section.scores if score.name == "induction"), None) if section else None
    if score is None or head.label not in section.heads:
        return True
    own = score.values[section.heads.index(head.label)]
    before = [value for step, value in zip(section.steps, own, strict=True) if step < change.step - change.width / 2]
    return all(value is not None and value - score.uniform < BECAME for value in before)


def _scored(head: HeadFinding) -> str:
    return f"{head.label} ({_yardstick(head)})"


def _yardstick(head: HeadFinding) -> str:
    return f"{head.score:.2f}; a uniform head scores {head.uniform:.2f}"


def count(value: float) -> str:
    """A count or a step, thousands separated."""
    return f"{value:,.0f}"


def with_error(value: float | None, stderr: float | None) -> str:
    """A loss to three decimals, with its standard error if there is one."""
    if value is None:
        return "–"
    return f"{value:.3f} ± {stderr:.3f}" if stderr else f"{value:.3f}"


def sentence(text: str) -> str:
    """`text` with a capital letter and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def short_hash(value: Any) -> str | None:
    """The beginning of a hash, or None for what is none."""
    is_hash = isinstance(value, str) and len(value) >= 40 and set(value) <= set("0123456789abcdef")
    return value[:12] + "…" if is_hash else None


def fact(value: Any) -> str:
    """A setting or a count as a reader would write it; lists and nested settings as JSON."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
