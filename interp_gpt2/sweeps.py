"""An analysis over the checkpoints of a run: in parallel, kept as it goes, and one tidy table at the end.

    frame = sweep(run, InductionScores(tokens))
    frame = sweep(run, [heads, losses], steps=run.steps[::4], workers=8)

A result is a file under `<run>/sweeps/`, found again by the checkpoint's hash, the analysis's fingerprint and the code
that computes it. So a repeated sweep reads files, an interrupted one goes on where it stopped, and a changed analysis or
checkpoint is computed anew.
"""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp_gpt2.analysis.rows import ROW_KEYS, Analysis, Row
from interp_gpt2.errors import AnalysisError, InterpGPT2Error, RunError
from interp_gpt2.files import written_atomically
from interp_gpt2.runs.run import Run

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("run", "seed", "step", "tokens", "analysis", *ROW_KEYS)
_INTEGERS = ("seed", "step", "tokens", "layer", "head", "neuron", "position", "n")
_FLOATS = ("value", "low", "high")

SPAWN_SECONDS = 3.0  # a fresh process importing torch: 2 to 3 s of CPU


def sweep(
    run: Run,
    analysis: Analysis | Sequence[Analysis],
    steps: Iterable[int] | None = None,
    workers: int | Executor | None = None,
    store: Path | str | None = None,
) -> "DataFrame":
    """Rows of one or several analyses at `steps` of a run (None: all of them), each checkpoint loaded once.

    Columns are COLUMNS, null where not applicable; rows are sorted by step, within a step as the analyses gave them,
    whatever the workers. `workers`: a number of processes of one thread each; 1 is this process with its own threads
    (sums may then round otherwise); None measures the first checkpoint here and starts processes when the rest would
    take longer than starting them; or any concurrent.futures Executor that shares this machine's files.
    `store`: the folder for results, `<run>/sweeps` unless given.

    Raises RunError for a step the run does not have, before any compute. When a checkpoint cannot be read or an
    analysis fails, the others are finished and kept first; the error then names each step.
    """
    analyses = _checked(analysis)
    chosen = _known_steps(run, steps)
    tasks = _tasks(run, analyses, chosen, Path(run.path) / "sweeps" if store is None else Path(store))
    if missing := [task for task in tasks if task.missing()]:
        _compute(missing, workers)
    return _frame(run, tasks)


def save_rows(frame: "DataFrame", path: Path | str) -> Path:
    """Write a sweep's table as CSV or JSON records, by the name's ending, every float exactly; nulls are empty or null."""
    path = Path(path)
    if path.suffix == ".csv":
        text = frame.to_csv(index=False)
    elif path.suffix == ".json":
        text = json.dumps(frame.astype(object).where(frame.notna(), None).to_dict("records"), ensure_ascii=False, indent=1)
    else:
        raise AnalysisError(f"a table is saved as .csv or .json, not as {path.name!r}")
    with written_atomically(path) as file:
        file.write(text.encode())
    return path


def load_rows(path: Path | str) -> "DataFrame":
    """The table that `save_rows` wrote, with the column types of `sweep`."""
    import pandas

    text = Path(path).read_text("utf-8")
    if Path(path).suffix == ".json":
        records = json.loads(text)
    else:  # not by pandas, whose reader may miss a float by its last bit
        kinds = dict.fromkeys(COLUMNS, str) | dict.fromkeys(_INTEGERS, int) | dict.fromkeys(_FLOATS, float)
        rows = csv.DictReader(io.StringIO(text, newline=""))
        records = [{name: kinds[name](cell) if cell else None for name, cell in row.items()} for row in rows]
    return typed(pandas.DataFrame(records, columns=list(COLUMNS)))


# ---------------------------------------------------------------------------------------------------------------------
# One checkpoint is one task. It may run in another process, so it knows paths, not open things.


@dataclass(frozen=True)
class _Result:
    """The file that keeps one analysis's rows at one checkpoint, and what they must have been computed from."""

    path: Path
    key: dict[str, Any]

    def read(self) -> list[Row] | None:
        """The rows; None when there are none, or when the file is not as it was written."""
        try:
            stored = json.loads(self.path.read_bytes())
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None
        if not isinstance(stored, dict) or stored.get("key") != self.key or stored.get("sha256") != _digest(stored.get("rows")):
            return None
        return stored["rows"]

    def write(self, rows: list[Row]) -> None:
        with written_atomically(self.path) as file:
            file.write(json.dumps({"key": self.key, "sha256": _digest(rows), "rows": rows}).encode())


@dataclass(frozen=True)
class _Task:
    run_path: Path
    step: int
    wanted: tuple[tuple[Analysis, _Result], ...]

    def missing(self) -> list[tuple[Analysis, _Result]]:
        return [(analysis, result) for analysis, result in self.wanted if result.read() is None]


def _tasks(run: Run, analyses: tuple[Analysis, ...], steps: list[int], folder: Path) -> list[_Task]:
    prints = [analysis.fingerprint for analysis in analyses]
    shared = {"code": _code_hash(), "torch": str(torch.__version__)}
    tasks = []
    for step in steps:
        wanted = []
        for analysis, fingerprint in zip(analyses, prints, strict=True):
            of = {"step": step, "checkpoint": run.checkpoint_hash(step), "analysis": analysis.name, "fingerprint": fingerprint}
            key = of | shared
            name = "".join(c if c.isalnum() or c in "-_" else "_" for c in analysis.name)[:60]
            path = folder / f"{name}-{fingerprint[:12]}" / f"step-{step:08d}-{_digest(key)[:12]}.json"
            wanted.append((analysis, _Result(path, key)))
        tasks.append(_Task(Path(run.path), step, tuple(wanted)))
    return tasks


def _run_task(task: _Task) -> None:
    """Load a checkpoint once and write the rows of every analysis that has none; raise the first refusal at the end."""
    refused: InterpGPT2Error | None = None
    model = Run(task.run_path).model(task.step)
    for analysis, result in task.missing():
        try:
            with torch.no_grad():
                rows = analysis(model)
            plain = [plain_row(row, analysis) for row in rows]
        except InterpGPT2Error as error:
            refused = refused or type(error)(f"{analysis.name}: {error}")
        else:
            result.write(plain)
    if refused is not None:
        raise refused


def plain_row(row: Row, analysis: Analysis) -> Row:
    """A row of Python's own numbers and strings, without nulls, in the order of the columns."""
    if unknown := set(row) - set(ROW_KEYS):
        raise AnalysisError(f"{analysis.name} gives rows with unknown keys {sorted(unknown)}; a row has {', '.join(ROW_KEYS)}")
    values = {key: row[key].item() if hasattr(row[key], "item") else row[key] for key in ROW_KEYS if key in row}
    return {key: value for key, value in values.items() if value is not None}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def _code_hash() -> str:
    """SHA-256 of the sources that can turn a checkpoint into numbers: after an edit to the model, stored rows are stale."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(package.glob("*.py")), *sorted((package / "analysis").glob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Where the tasks run


def _compute(tasks: list[_Task], workers: int | Executor | None) -> None:
    """Run the tasks; when some fail, say so after the others have finished."""
    if isinstance(workers, Executor):
        return _report(_run_on(workers, tasks))
    if workers is not None and workers < 1:
        raise AnalysisError(f"workers={workers}; a sweep needs at least one process")
    importable = all(_importable(analysis) for analysis, _ in tasks[0].wanted)
    if workers is not None and workers > 1 and not importable:
        raise AnalysisError("the analysis is defined at a prompt or in a notebook, where other processes cannot import it; "
                            "put it in a file, or pass workers=1")  # fmt: skip
    outcomes: dict[int, Future] = {}
    if workers is None:
        began = time.monotonic()
        outcomes = _run_here(tasks[:1])
        workers = worth(time.monotonic() - began, len(tasks) - 1) if importable else 1
        tasks = tasks[1:]
    outcomes |= _run_here(tasks) if workers == 1 else _run_in_processes(tasks, min(workers, len(tasks)))
    _report(outcomes)


def worth(seconds: float, n_tasks: int) -> int:
    """How many processes to start for `n_tasks` of such a length: 1 where starting them costs more than it saves."""
    workers = min(n_cores(), n_tasks)
    alone = seconds * n_tasks
    return workers if workers > 1 and alone > SPAWN_SECONDS + alone / workers else 1


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _importable(analysis: Analysis) -> bool:
    """Whether a fresh process can find the class: one typed at a prompt or in a notebook has no file to import."""
    return type(analysis).__module__ != "__main__" or hasattr(sys.modules["__main__"], "__file__")


def _run_here(tasks: list[_Task]) -> dict[int, Future]:
    # A thread of its own gives each task a Future, so that a failure is told in the same way as from another process.
    with ThreadPoolExecutor(1) as executor:
        return _run_on(executor, tasks)


def _run_in_processes(tasks: list[_Task], workers: int) -> dict[int, Future]:
    spawn = multiprocessing.get_context("spawn")  # a fork of a process whose torch has run threads can hang
    needs_script = any(type(analysis).__module__ == "__main__" for analysis, _ in tasks[0].wanted)
    script = nullcontext() if needs_script else _without_the_script()
    with one_thread_each(), script, ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin_worker) as executor:
        try:
            return _run_on(executor, tasks)
        except BrokenProcessPool as error:
            raise AnalysisError(
                "a worker process of the sweep died; what was finished is kept. It may have run out of memory (pass fewer "
                "workers), or the script, which holds the analysis and is therefore imported by each new process, lacks "
                "`if __name__ == '__main__':` around its work"
            ) from error


@contextmanager
def _without_the_script() -> Iterator[None]:
    """Processes started in the block do not import the running script, which would sweep again unless it were guarded."""
    script = vars(sys.modules["__main__"])
    before = {name: script[name] for name in ("__file__", "__spec__") if name in script}
    script.pop("__file__", None)
    script["__spec__"] = None  # what multiprocessing looks at to find it
    try:
        yield
    finally:
        script.update(before)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started in the block compute with one thread: torch, and NumPy's and scikit-learn's BLAS.

    Two processes of two spinning threads each on two cores take many times as long as two of one.
    """
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _begin_worker() -> None:
    torch.set_num_threads(1)  # also where the script that each process imports first has loaded torch by itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: what is under way is finished and kept


def _run_on(executor: Executor, tasks: list[_Task]) -> dict[int, Future]:
    """A finished future for each step."""
    futures: dict[int, Future] = {}
    try:
        for task in tasks:
            futures[task.step] = executor.submit(_run_task, task)
        for future in futures.values():
            if isinstance(error := future.exception(), BrokenProcessPool):
                raise error
    except BaseException:  # Ctrl-C: what waits is dropped, what runs is finished by the executor's own end
        for future in futures.values():
            future.cancel()
        raise
    return futures


def _report(outcomes: dict[int, Future]) -> None:
    failures = {step: error for step, future in outcomes.items() if (error := future.exception()) is not None}
    if not failures:
        return
    first = next(iter(failures.values()))
    told = "; ".join(f"step {step}: {_told(error)}" for step, error in list(failures.items())[:4])
    if len(failures) > 4:
        told += f"; also steps {', '.join(map(str, list(failures)[4:]))}"
    kept = len(outcomes) - len(failures)
    kind = type(first) if isinstance(first, InterpGPT2Error) else AnalysisError
    raise kind(f"{len(failures)} of {len(outcomes)} checkpoints failed, {kept} finished and are kept: {told}") from first


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, InterpGPT2Error) else f"{type(error).__name__}: {error}"


# ---------------------------------------------------------------------------------------------------------------------
# What goes in and what comes out


def _checked(analysis: Analysis | Sequence[Analysis]) -> tuple[Analysis, ...]:
    analyses = tuple(analysis) if isinstance(analysis, (list, tuple)) else (analysis,)
    if not analyses:
        raise AnalysisError("there is no analysis to sweep")
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


def _frame(run: Run, tasks: list[_Task]) -> "DataFrame":
    import pandas

    records, name, seed = [], run.name, run.seed
    for task in tasks:
        where = {"run": name, "seed": seed, "step": task.step, "tokens": run.tokens_seen(task.step)}
        for analysis, result in task.wanted:
            records += [{**where, "analysis": analysis.name, **row} for row in result.read()]
    return typed(pandas.DataFrame(records, columns=list(COLUMNS)))


def typed(frame: "DataFrame") -> "DataFrame":
    kinds = {column: "Int64" if column in _INTEGERS else "float64" if column in _FLOATS else "string" for column in COLUMNS}
    return frame[list(COLUMNS)].astype(kinds)
