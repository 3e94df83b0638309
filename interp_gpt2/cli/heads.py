"""`interp-gpt2 heads`: what every attention head does, in scores."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from interp_gpt2.cli.parse import UsageError, option

if TYPE_CHECKING:
    from pandas import DataFrame

    from interp_gpt2.analysis.sequences import Sequences
    from interp_gpt2.runs.run import Run

EXAMPLES = (
    "interp-gpt2 heads demo-induction",
    "interp-gpt2 heads demo-induction --step 1000",
    "interp-gpt2 heads demo-induction --all --csv heads.csv",
)

SHORT = {
    "previous_token": "previous",
    "duplicate_token": "duplicate",
    "induction": "induction",
    "first_token": "first",
    "entropy": "entropy",
}
MOST_HEADS = 48  # shown; beyond them, those that lead a score


@dataclass(frozen=True)
class Heads:
    """Scores of every head, each beside what a head attending evenly scores on the same tokens.

    previous, duplicate, induction and first are the attention that goes to the token before, to earlier occurrences of
    the current token, to what followed them, and to the first token (0 to 1); entropy is in nats. Measured on the run's
    held-out data, or on repeated random tokens where that is not on this machine.
    """

    source: Annotated[tyro.conf.Positional[str], option("RUN")]
    """A run, one of its checkpoints, or a model's directory."""
    step: Annotated[int | None, option("STEP")] = None
    """A checkpoint's step; the last one unless given."""
    all: bool = False
    """Every checkpoint: the best head of each score by step, and the phase change."""
    csv: Annotated[Path | None, option("FILE")] = None
    """Write the whole table to this file."""
    sequences: Annotated[int, option("N")] = 32
    """How many sequences to measure on."""

    def run(self) -> None:
        if self.all and self.step is not None:
            raise UsageError("--all is every step; leave out --step")
        if self.sequences < 1:
            raise UsageError("--sequences must be at least 1")
        if self.all:
            self._over_training()
        else:
            self._at_one_step()

    def _at_one_step(self) -> None:
        from interp_gpt2.analysis.attention_patterns import HeadScores
        from interp_gpt2.cli.where import open_model
        from interp_gpt2.errors import RunError

        opened = open_model(self.source, self.step)
        if self.csv is not None and opened.run is None:
            raise RunError("--csv writes a run's table, which names its steps; this is a single model")
        sequences = _sequences(opened.run, opened.model.config, self.sequences)
        rows = HeadScores(sequences.inputs)(opened.model)
        print(f"{opened.title}, on {sequences.are}\n")
        print(scores_table(rows))
        if self.csv is not None:
            from interp_gpt2.sweeps import save_rows, sweep

            frame = sweep(opened.run, HeadScores(sequences.inputs), steps=[opened.step], workers=1)
            print(f"\nwrote {save_rows(frame, self.csv)}")

    def _over_training(self) -> None:
        from interp_gpt2.analysis.attention_patterns import HeadScores
        from interp_gpt2.cli.where import find_run
        from interp_gpt2.sweeps import attempt_sweep, save_rows

        run, _ = find_run(self.source)
        sequences = _sequences(run, run.config, self.sequences)
        swept = attempt_sweep(run, HeadScores(sequences.inputs))
        frame = swept.complete() if swept.frame.empty else swept.frame
        print(f"{run.name}: the best head by step, on {sequences.are}\n")
        print(best_by_step(frame))
        print(f"\n{textwrap.fill(_phase_change(frame), 80)}")
        if self.csv is not None:
            print(f"wrote {save_rows(frame, self.csv)}")
        swept.complete()  # a checkpoint that could not be read is told last, and by the exit code


def scores_table(rows: list[dict]) -> str:
    """A line for each head, one for the uniform head, and the best head of each score."""
    from interp_gpt2.cli.tables import table

    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        scores.setdefault(row.get("label", "uniform"), {})[row["metric"].removesuffix("_uniform")] = row["value"]
    uniform = scores.pop("uniform")
    best = {metric: max(scores, key=lambda head: scores[head][metric]) for metric in SHORT}
    shown = scores if len(scores) <= MOST_HEADS else {head: scores[head] for head in scores if head in best.values()}
    lines = [[head, *(f"{values[metric]:.3f}" for metric in SHORT)] for head, values in shown.items()]
    lines.append(["uniform", *(f"{uniform[metric]:.3f}" for metric in SHORT)])
    lines.append(["best", *(best[metric] for metric in SHORT)])
    text = table(["", *SHORT.values()], lines)
    hidden = len(scores) - len(shown)
    return text + (f"\n({hidden} heads that lead no score are not shown; --csv FILE has them)" if hidden else "")


def best_by_step(frame: "DataFrame") -> str:
    """A line for each step, with the highest value of each score and its head; a last one for the uniform head."""
    from interp_gpt2.analysis.development import best_head_curve
    from interp_gpt2.cli.tables import table

    metrics = [metric for metric in SHORT if metric != "entropy"]  # the most spread head is no finding
    curves = [best_head_curve(frame, metric) for metric in metrics]
    lines = []
    for i, step in enumerate(curves[0].steps):
        lines.append([f"{step:,}", *(f"{curve.values[i]:.3f} {curve.heads[i]}" for curve in curves)])
    lines.append(["uniform", *(f"{curve.uniform[-1]:.3f}     " for curve in curves)])
    return table(["step", *(SHORT[metric] for metric in metrics)], lines)


def _phase_change(frame: "DataFrame") -> str:
    from interp_gpt2.analysis.development import MIN_RISE, best_head_curve
    from interp_gpt2.analysis.phase_changes import detect
    from interp_gpt2.errors import AnalysisError

    try:
        curve = best_head_curve(frame, "induction")
        return f"induction: {detect(curve.steps, curve.values, curve.uniform, MIN_RISE).verdict}"
    except AnalysisError as error:
        return f"induction: no phase change can be told: {error}"


def _sequences(run: "Run | None", config: object, n: int) -> "Sequences":
    """The run's held-out data; what can be said of any model where there is none."""
    from interp_gpt2.analysis.sequences import held_out, repeated_random
    from interp_gpt2.errors import DataError

    if run is None:
        return repeated_random(config, n)
    try:
        return held_out(run.source(), config.n_ctx, n)
    except DataError:
        return repeated_random(config, n)
