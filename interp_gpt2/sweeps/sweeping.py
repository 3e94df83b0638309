"""`sweep`, and `attempt_sweep` for whoever wants what worked beside what failed."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from interp_gpt2.analysis.registry import analysis_of_run
from interp_gpt2.analysis.rows import Analysis
from interp_gpt2.errors import AnalysisError, CheckpointError, ConversionError, InterpGPT2Error, RunError
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps.executors import compute
from interp_gpt2.sweeps.results import result_of
from interp_gpt2.sweeps.tables import table_of
from interp_gpt2.sweeps.tasks import Failure, Kind, Task, failure

if TYPE_CHECKING:
    from pandas import DataFrame

    from interp_gpt2.data.source import Source

_TOLD = 4  # failures in full; of the others, the steps


@dataclass(frozen=True, eq=False)
class Swept:
    """What came of a sweep: the rows of all that worked, and what did not, of how many checkpoints."""

    frame: "DataFrame"
    failures: tuple[Failure, ...]
    steps: tuple[int, ...]
    unreached: tuple[int, ...] = ()

    @property
    def error(self) -> InterpGPT2Error | None:
        """All failures in one error of the first one's kind, naming steps and analyses; None if there were none."""
        if not self.failures:
            return None
        failed = sorted({one.step for one in self.failures})
        told = "; ".join(str(one) for one in self.failures[:_TOLD])
        if beyond := sorted({one.step for one in self.failures[_TOLD:]} - {one.step for one in self.failures[:_TOLD]}):
            told += f"; also steps {', '.join(map(str, beyond))}"
        kept = len(self.steps) - len(failed) - len(self.unreached)
        stopped = f" ({len(self.unreached)} were not tried)" if self.unreached else ""
        first = self.failures[0].error
        error = (type(first) if isinstance(first, InterpGPT2Error) else AnalysisError)(
            f"{len(failed)} of {len(self.steps)} checkpoints failed{stopped}, {kept} finished and are kept: {told}"
        )
        error.__cause__ = first
        return error

    def complete(self) -> "DataFrame":
        """The table. Raises `error` if anything failed."""
        if (error := self.error) is not None:
            raise error
        return self.frame


def sweep(
    run: Run,
    analysis: Analysis | str | Sequence[Analysis | str],
    steps: Iterable[int] | None = None,
    workers: int | Executor | None = None,
    store: Path | str | None = None,
    *,
    executor: Executor | None = None,
    data: "Source | None" = None,
    stack: bool = False,
) -> "DataFrame":
    """Rows of one or several analyses at `steps` of a run (None: all of them), each checkpoint loaded once.

    Columns are COLUMNS, null where not applicable; rows are sorted by step, within a step as the analyses gave them,
    whatever the workers. An analysis may be a name of the registry; it then reads `data` (None: what the run was trained on).
    `workers`: a number of processes of one thread each; 1 is this process with its own threads (sums may then round
    otherwise); None measures the first checkpoint here and starts processes when the rest would take longer than starting
    them. `executor`: any concurrent.futures Executor instead, whose workers see this machine's files under the same paths:
    threads, processes, `client.get_executor()` of dask.distributed. `stack`: where this process sweeps 64 checkpoints or more
    of a tiny model, take several at a time if that is measured to be faster (values then agree to 1e-4). `store`: the folder
    for results, `run.results` unless given.

    Raises RunError for a step the run does not have, before any compute. When a checkpoint cannot be read or an
    analysis fails, the others are finished and kept first; the error then names each step and analysis.
    """
    return attempt_sweep(run, analysis, steps, workers, store, executor=executor, data=data, stack=stack).complete()


def attempt_sweep(
    run: Run,
    analysis: Analysis | str | Sequence[Analysis | str],
    steps: Iterable[int] | None = None,
    workers: int | Executor | None = None,
    store: Path | str | None = None,
    *,
    executor: Executor | None = None,
    data: "Source | None" = None,
    stack: bool = False,
) -> Swept:
    """`sweep`, with the rows of all that worked also where something failed; raises only for what cannot be begun."""
    if executor is not None and workers is not None:
        raise AnalysisError("workers= and executor= are two answers to one question; pass one of them")
    chosen = _known_steps(run, steps)
    analyses = _checked(run, analysis, data)
    where = workers if executor is None else executor
    folder = run.results if store is None else Path(store)
    if isinstance(where, Executor):  # whose workers may have another working directory
        run, folder = replace(run, path=run.path.absolute()), folder.absolute()
    tasks, failures = _tasks(run, analyses, chosen, folder)
    kind = kind_of(run, [task.step for task in tasks])
    tasks = [replace(task, kind=kind) for task in tasks]
    missing = [task for task in tasks if task.missing()]
    others = [] if kind is None else _of_other_kinds([task for task in tasks if task not in missing])
    tasks = [task for task in tasks if task.step not in {one.step for one in others}]
    failures += others + (compute(missing, where, stack) if missing else [])
    rows = {task.step: [(analysis.name, result.read()) for analysis, result in task.wanted] for task in tasks}
    told = {one.step for one in failures}
    unreached = tuple(step for step, found in rows.items() if step not in told and any(kept is None for _, kept in found))
    frame = table_of(run, [(step, name, kept) for step, found in rows.items() for name, kept in found if kept is not None])
    return Swept(frame, tuple(sorted(failures, key=lambda one: one.step)), tuple(chosen), unreached)


def _tasks(run: Run, analyses: tuple[Analysis, ...], steps: list[int], folder: Path) -> tuple[list[Task], list[Failure]]:
    """A task for each step whose checkpoint says what it is, and a failure for each of the others."""
    prints = [analysis.fingerprint for analysis in analyses]
    tasks, failures = [], []
    for step in steps:
        try:
            stamp = run.checkpoint_stamp(step)
            checkpoint = run.checkpoint_hash(step)
        except (CheckpointError, ConversionError, RunError) as error:  # the last: it was deleted meanwhile
            failures.append(failure(step, None, error))
            continue
        wanted = [(one, result_of(folder, step, checkpoint, one, digest)) for one, digest in zip(analyses, prints, strict=True)]
        tasks.append(Task(run, step, tuple(wanted), stamp))
    return tasks, failures


def _of_other_kinds(tasks: list[Task]) -> list[Failure]:
    """A failure for each whose rows are known, from a sweep of that step by itself, and are of another model than this run's."""
    failures = []
    for task in tasks:
        try:
            task.kind.refuse_other(task.run, task.step, task.run.config_at(task.step))
        except (CheckpointError, ConversionError, RunError) as error:
            failures.append(failure(task.step, None, error))
    return failures


def kind_of(run: Run, steps: list[int]) -> Kind | None:
    """What the last of the steps that can be read says the run's models are."""
    for step in reversed(steps):
        try:
            return Kind(step, run.config_at(step), run.tokenizer_sha256_at(step))
        except (CheckpointError, ConversionError, RunError):
            continue
    return None


def _checked(run: Run, analysis: Analysis | str | Sequence[Analysis | str], data: "Source | None") -> tuple[Analysis, ...]:
    given = tuple(analysis) if isinstance(analysis, (list, tuple)) else (analysis,)
    if not given:
        raise AnalysisError("there is no analysis to sweep")
    named = any(isinstance(one, str) for one in given)
    if data is not None and not named:
        raise AnalysisError("data= is what analyses given by name read; these hold their own, so leave it out")
    source = run.source() if named and data is None else data
    kind = kind_of(run, run.steps) if named else None
    n_ctx = 0 if not named else kind.config.n_ctx if kind is not None else run.config.n_ctx  # which says what is wrong
    analyses = tuple(analysis_of_run(one, run, source, n_ctx) if isinstance(one, str) else one for one in given)
    for one in analyses:
        if not isinstance(one, Analysis):
            raise AnalysisError(
                "a sweep takes an Analysis, a frozen dataclass that holds what it reads (interp_gpt2.analysis.rows), not a "
                f"{type(one).__name__}; "
                "stored rows are found again by what it holds, which a function does not show"
            )
    return analyses


def _known_steps(run: Run, steps: Iterable[int] | None) -> list[int]:
    if steps is None:
        chosen = list(run.steps)
    else:
        chosen = sorted(set(steps))
        if unknown := [step for step in chosen if step not in run.steps]:
            has, lacks = ", ".join(map(str, run.steps)), ", ".join(map(str, unknown))
            raise RunError(f"{run.name} has no checkpoint at step {lacks}; it has {has or 'none'}")
    if not chosen:
        raise RunError(f"{run.name} has no checkpoints to sweep")
    return chosen
