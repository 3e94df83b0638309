"""One checkpoint is one task: read once, every analysis computed on it, each result on disk before the next begins.

A task may run in another process or on another machine, so it knows paths, not open things. While one computes, a thread
reads the next checkpoint: two models are in memory at a time.
"""

import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from interp_gpt2.analysis.rows import Analysis
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, CheckpointError, CheckpointWriteError, InterpGPT2Error
from interp_gpt2.model import GPT2
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps.results import Result, plain_row

_OF_TRAINING = {"dropout", "pos_init", "embed_std", "pos_std"}  # fields that two steps of one model may differ in


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be read (`analysis` is None), or an analysis that failed on it, and why."""

    step: int
    analysis: str | None
    error: BaseException

    def __str__(self) -> str:
        reason = str(self.error) if isinstance(self.error, InterpGPT2Error) else f"{type(self.error).__name__}: {self.error}"
        return f"step {self.step}: {'' if self.analysis is None else f'{self.analysis}: '}{reason}"

    @property
    def stops_all(self) -> bool:
        """Would the others fail likewise? A full disk is full for all of them."""
        return isinstance(self.error, CheckpointWriteError)


@dataclass(frozen=True)
class Kind:
    """What the models of a run have in common: the shape, and the tokenizer where one lies beside the model."""

    step: int
    config: GPT2Config
    tokenizer_sha256: str | None

    def refuse_other(self, run: Run, step: int, config: GPT2Config) -> None:
        """Raises CheckpointError for a model of another shape or with another tokenizer, naming both steps."""
        ours, theirs = _shape(self.config), _shape(config)
        if differing := [f"{name}={theirs[name]!r}, not {ours[name]!r}" for name in ours if ours[name] != theirs[name]]:
            raise CheckpointError(
                f"another model than at step {self.step} of {run.name} ({'; '.join(differing[:3])}); a run is one model at "
                "several steps, sweep the others by themselves"
            )
        found = run.tokenizer_sha256_at(step)
        if found is not None and self.tokenizer_sha256 is not None and found != self.tokenizer_sha256:
            raise CheckpointError(
                f"another tokenizer than at step {self.step} of {run.name}: its tokens mean something else; sweep the steps of "
                "each by themselves"
            )


def _shape(config: GPT2Config) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _OF_TRAINING}


@dataclass(frozen=True, eq=False)
class Task:
    """The analyses wanted of one checkpoint, and where each result is kept under its hash; `stamp` tells if it was replaced
    since. `kind` None: nothing to compare it with.
    """

    run: Run
    step: int
    wanted: tuple[tuple[Analysis, Result], ...]
    stamp: str
    kind: Kind | None = None

    def missing(self) -> list[tuple[Analysis, Result]]:
        """Those that have no result yet."""
        return [(analysis, result) for analysis, result in self.wanted if result.read() is None]

    def model(self) -> GPT2:
        """The checkpoint's model.

        Raises CheckpointError or ConversionError for one that is damaged, diverged, replaced meanwhile, or of another kind.
        """
        model = self.run.model(self.step)
        if self.run.checkpoint_stamp(self.step) != self.stamp:  # its rows would be kept under the hash of the one before
            raise CheckpointError(f"step {self.step} of {self.run.name} was replaced while it was swept; sweep it again")
        if self.kind is not None:
            self.kind.refuse_other(self.run, self.step, model.config)
        for name, weight in model.named_parameters():
            if not all(bound.isfinite() for bound in weight.aminmax()):  # either is NaN if a weight is
                raise CheckpointError(f"{name} is not finite: the model had diverged by then, and there is nothing to measure")
        return model


def run_tasks(tasks: Sequence[Task]) -> list[Failure]:
    """Do the tasks one after the other, and say what failed; the rest is on disk. A full disk ends it at once."""
    failures: list[Failure] = []
    # Threads also give a Future for each piece of work, so that whatever fails is told and nothing is swallowed.
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as computer:
        ahead = reader.submit(tasks[0].model)
        for task, following in zip(tasks, [*tasks[1:], None], strict=True):
            read, ahead = ahead, None
            if (error := read.exception()) is not None:
                failures.append(failure(task.step, None, error))
            ahead = None if following is None else reader.submit(following.model)
            if error is None:
                failures += analyse(task, read.result(), computer)
            if any(failed.stops_all for failed in failures):
                break
    return failures


def analyse(task: Task, model: GPT2, computer: Executor) -> list[Failure]:
    """Compute and keep what is missing of a task."""
    failures = []
    for analysis, result in task.missing():
        error = computer.submit(_keep, analysis, result, lambda analysis=analysis: analysis(model)).exception()
        if error is not None:
            failures.append(failure(task.step, analysis.name, error))
            if failures[-1].stops_all:
                break
    return failures


def _keep(analysis: Analysis, result: Result, compute: Callable[[], list]) -> None:
    with torch.no_grad():
        rows = compute()
    result.write([plain_row(row, analysis) for row in rows])


def failure(step: int, analysis: str | None, error: BaseException) -> Failure:
    """A failure that can be sent to another process: an error of another library's kind becomes one of ours, by name."""
    if not isinstance(error, InterpGPT2Error):
        if type(error).__module__ != "builtins":
            error = AnalysisError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
        error.add_note("".join(traceback.format_tb(error.__traceback__)))  # a traceback itself does not travel
    return Failure(step, analysis, error)


def outcome(future: Future) -> BaseException | None:
    """The exception of a finished future, also of one that was cancelled."""
    return AnalysisError("it was cancelled before it was done") if future.cancelled() else future.exception()
