"""A run over training: one sweep, a panel for each analysis, all on the same steps, and when each curve changed phase."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from interp_gpt2.analysis.development import MIN_RISE
from interp_gpt2.analysis.head_weights import HeadComposition, HeadCopying
from interp_gpt2.analysis.phase_changes import detect
from interp_gpt2.analysis.registry import analysis_named
from interp_gpt2.analysis.representations import SimilarityTo
from interp_gpt2.analysis.rows import Analysis
from interp_gpt2.analysis.sequences import held_out
from interp_gpt2.analysis.weight_spectra import WeightDistance
from interp_gpt2.errors import AnalysisError, DataError
from interp_gpt2.report import panels, schema
from interp_gpt2.report.inputs import spread_steps
from interp_gpt2.report.subject import Subject
from interp_gpt2.sweeps import attempt_sweep

if TYPE_CHECKING:
    from pandas import DataFrame

SLOW_STEPS = 12
SIMILARITY_SEQUENCES = 16


@dataclass(frozen=True)
class Kind:
    """A panel: what makes its analysis for a run, what makes it of the rows, and whether its curves are dated."""

    panel: Callable[[panels.Measured], schema.Panel]
    analysis: Callable[[Subject], Analysis] | None = None  # None: the registered one of that name, on the run's own data
    dated: bool = True
    least_rise: float | None = None  # the smallest change that counts; a fifth of the curve's range unless given
    slow: bool = False  # seconds a checkpoint: only when asked for by name


KINDS = {
    "loss_by_position": Kind(panels.loss),
    "in_context_learning": Kind(panels.in_context_learning),
    "loss_by_token_class": Kind(panels.token_classes),
    "ngram_agreement": Kind(panels.ngram_agreement, dated=False),
    "head_scores": Kind(panels.heads, lambda subject: subject.head_analysis, least_rise=MIN_RISE),
    "head_composition": Kind(panels.composition, lambda _: HeadComposition()),
    "head_copying": Kind(panels.copying, lambda _: HeadCopying()),
    "settling_depth": Kind(panels.settling_depth),
    "lens_by_layer": Kind(panels.lens, dated=False),
    "tuned_lens": Kind(panels.tuned_lens, dated=False, slow=True),
    "similarity_to": Kind(panels.similarity, lambda subject: _similarity_to_the_end(subject), dated=False),
    "weight_distance": Kind(panels.weight_distance, lambda subject: _distance_from_the_start(subject), dated=False),
    "neuron_activity": Kind(panels.neurons, dated=False),
    "learning_coefficient": Kind(panels.learning_coefficient, dated=False, slow=True),
}
SLOW = tuple(name for name, kind in KINDS.items() if kind.slow)


def collect_development(subject: Subject) -> schema.Development:
    """Every panel that the run can have; of the slow ones those that the subject names, at up to 12 steps.

    Raises AnalysisError if there is none, and as `sweep` does for a checkpoint that cannot be read.
    """
    steps = subject.measured
    made, skipped = {}, {}
    for name, kind in KINDS.items():
        if kind.slow and name not in subject.also:
            skipped[name] = f"takes long: `interp-gpt2 report {subject.called} --also {name}`"
            continue
        at = spread_steps(steps, SLOW_STEPS) if kind.slow else steps
        try:
            made[name] = (_analysis(subject, name), at)
        except (AnalysisError, DataError) as refusal:
            skipped[name] = str(refusal)
    tables = _swept(subject, made, skipped)
    drawn = []
    for name, table in tables.items():
        try:
            drawn.append(KINDS[name].panel(panels.Measured(table, steps)))
        except AnalysisError as refusal:
            skipped[name] = str(refusal)
    if not drawn:
        raise AnalysisError("; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    return schema.Development(
        command=subject.section_command("development"),
        measured_on=_measured_on(subject),
        steps=steps,
        panels=drawn,
        changes=[change for panel in drawn if KINDS[panel.name].dated for change in _changes(panel, steps)],
        skipped=skipped,
    )


def _analysis(subject: Subject, name: str) -> Analysis:
    make = KINDS[name].analysis
    return make(subject) if make else analysis_named(name, subject.source, subject.n_ctx)


def _similarity_to_the_end(subject: Subject) -> Analysis:
    sequences = held_out(subject.source, subject.n_ctx, SIMILARITY_SEQUENCES)
    return SimilarityTo.step(subject.run, subject.steps[-1], sequences.inputs)


def _distance_from_the_start(subject: Subject) -> Analysis:
    if subject.steps[0] != 0:
        raise AnalysisError("there is no checkpoint at step 0 to measure a distance from")
    return WeightDistance.from_initialisation(subject.run)


def _swept(
    subject: Subject, made: dict[str, tuple[Analysis, list[int]]], skipped: dict[str, str]
) -> dict[str, "DataFrame"]:
    """The rows of each analysis, one load a checkpoint. What an analysis refuses goes to `skipped`; a checkpoint is an error."""
    tables = {}
    for at in {tuple(steps): None for _, steps in made.values()}:
        names = [name for name, (_, steps) in made.items() if tuple(steps) == at]
        swept = attempt_sweep(subject.run, [made[name][0] for name in names], at, subject.workers)
        of_analyses = [one for one in swept.failures if one.analysis is not None]
        refused = {one.analysis: str(one.error) for one in of_analyses if isinstance(one.error, AnalysisError)}
        if any(one.analysis not in refused for one in swept.failures):
            swept.complete()
        skipped |= {name: refused[made[name][0].name] for name in names if made[name][0].name in refused}
        for name in names:
            if name not in skipped:
                tables[name] = swept.frame[swept.frame["analysis"] == made[name][0].name]
    return {name: tables[name] for name in KINDS if name in tables}


def _changes(panel: schema.Panel, steps: list[int]) -> list[schema.Change]:
    return [_dated(panel, one, steps) for one in panel.lines if not one.is_yardstick]


def _dated(panel: schema.Panel, curve: schema.PanelLine, steps: list[int]) -> schema.Change:
    silent = schema.Change(panel.title, curve.label, None, None, None, None, "it is not known at every step")
    if any(value is None for value in curve.values):
        return silent
    try:
        found = detect(steps, curve.values, least_rise=KINDS[panel.name].least_rise)
    except AnalysisError as refusal:
        return replace(silent, reason=str(refusal))
    if found.change is None or found.step_interval is None:
        return replace(silent, reason=found.reason.strip("()"))
    change, interval = found.change, list(found.step_interval)
    return replace(
        silent, step=change.step, interval=interval, width=change.width, rise=change.rise, reason=found.reason
    )


def _measured_on(subject: Subject) -> str:
    try:
        name = subject.source.name
    except DataError:
        return subject.head_sequences.are
    return f"held-out sequences of {name}, the same at every step"
