"""The report's heads: every score of every head over training, what leads each, and whether induction changed phase."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp_gpt2.analysis.attention_patterns import METRICS, head_label
from interp_gpt2.errors import AnalysisError
from interp_gpt2.report import schema
from interp_gpt2.report.subject import Subject

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Told:
    """What a score is called, what it measures, its unit, and its yardstick: a metric of the same table, and its name."""

    title: str
    measures: str
    unit: str
    yardstick: str
    beside: str = "uniform"
    fewest_layers: int = 1


OF_PATTERNS = {
    "induction": ("Induction", "attention to the tokens that followed earlier occurrences of the current token", "attention"),
    "previous_token": ("Previous token", "attention to the token before the current one", "attention"),
    "duplicate_token": ("Duplicate token", "attention to earlier occurrences of the current token", "attention"),
    "first_token": ("First token", "attention to the first token of the sequence", "attention"),
    "entropy": ("Entropy", "spread of the attention over the tokens it can see", "nats"),
}
OF_WEIGHTS = {
    "copying": Told(
        "Copying",
        "by the head's weights: does it raise the logit of what it attends to? From -1 to 1",
        "weights",
        "copying_random_std",
        "random sd",
    ),
    **{
        f"{way}_composition_max": Told(
            f"{way.upper()}-composition",
            f"by weights: how much its {parts} read of what one earlier head writes",
            "weights",
            f"{way}_composition_max_untrained",
            "untrained",
            fewest_layers=2,
        )
        for way, parts in (("k", "keys"), ("q", "queries"), ("v", "values"))
    },
}


def collect_heads(subject: Subject) -> schema.HeadScores:
    """Every score of every head at each measured step. Raises AnalysisError for a model without heads."""
    config = subject.run.config
    of_patterns = of_the_patterns(subject)
    of_weights = [_of_weights(subject, name, told) for name, told in OF_WEIGHTS.items() if config.n_layers >= told.fewest_layers]
    return schema.HeadScores(
        command=subject.section_command("head_scores"),
        measured_on=subject.head_sequences.are,
        steps=subject.measured,
        heads=_labels(subject),
        scores=of_patterns + of_weights,
    )


def of_the_patterns(subject: Subject) -> list[schema.HeadScore]:
    """The scores that need patterns, beside the uniform head's."""
    table, heads, scores = subject.head_table, _labels(subject), []
    for name, (title, measures, unit) in OF_PATTERNS.items():
        uniform = table[table.metric == f"{name}_uniform"].iloc[0]
        values, low, high = (_by_head(table, name, heads, column) for column in ("value", "low", "high"))
        scores.append(schema.HeadScore(name, title, measures, unit, float(uniform.value), int(uniform.n), values, low, high))
    return scores


def _of_weights(subject: Subject, name: str, told: Told) -> schema.HeadScore:
    """A score of heads by their weights alone, its yardstick at each step; heads that cannot have it have None."""
    table = subject.weight_table
    beside = table[table.metric == told.yardstick].groupby("step").value.mean().reindex(subject.measured).tolist()
    return schema.HeadScore(
        name,
        told.title,
        told.measures,
        told.unit,
        uniform=float(beside[-1]),
        n=None,
        values=_by_head(table, name, _labels(subject)),
        yardstick=told.beside,
        beside=[float(value) for value in beside],
    )


def _labels(subject: Subject) -> list[str]:
    config = subject.run.config
    return [head_label(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]


def _by_head(table: "DataFrame", metric: str, heads: list[str], column: str = "value") -> list[list[float | None]]:
    rows = table[table.metric == metric].pivot(index="label", columns="step", values=column).reindex(heads)
    return [[None if math.isnan(value) else value for value in row] for row in rows.to_numpy(dtype=float).tolist()]


def findings(heads: list[str], scores: list[schema.HeadScore]) -> dict[str, schema.HeadFinding]:
    """At the last checkpoint, the head with most of each score of attention."""
    found = {}
    for score in scores:
        last = [values[-1] for values in score.values]
        if score.name in METRICS and score.unit == "attention":  # the most spread head is no finding
            best = int(np.argmax(last))
            found[score.name] = schema.HeadFinding(heads[best], last[best], score.uniform)
    return found


def notes_at_the_end(subject: Subject) -> tuple[dict[str, str], str]:
    """What the leading heads are, in words for beside their patterns, and which of them leads in induction."""
    found = findings(_labels(subject), of_the_patterns(subject))
    step = subject.steps[-1]
    told = {name: f"{OF_PATTERNS[name][0].lower()} {one.score:.2f} at step {step:,}" for name, one in found.items()}
    return {found[name].label: told[name] for name in reversed(told)}, found["induction"].label


def phase_change(subject: Subject) -> tuple[schema.PhaseChange | None, str]:
    """The induction score's rise, on its maximum over heads less the uniform head's; else why none was found."""
    try:
        curve, found = subject.induction, subject.detection
    except AnalysisError as refusal:
        return None, str(refusal)
    change = found.change
    if change is None or found.step_interval is None or found.width_interval is None:
        return None, found.reason.strip("()")
    if found.falling:
        return None, f"the highest induction score fell, by {-change.rise:.2f} at step {change.step:,.0f}"
    return schema.PhaseChange(
        step=change.step,
        width=change.width,
        rise=change.rise,
        low=change.low,
        high=change.high,
        resolution=change.resolution,
        step_interval=list(found.step_interval),
        width_interval=list(found.width_interval),
        bic_margin=found.growth.margin,
        p_walk=found.p_walk,
        steps=list(curve.steps),
        values=[value - uniform for value, uniform in zip(curve.values, curve.uniform, strict=True)],
        command=subject.section_command("head_scores"),
    ), ""
