"""Where the tasks of a sweep run: in this process, in processes of its own, or on any concurrent.futures Executor."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext

import torch

from interp_gpt2.analysis.rows import Analysis
from interp_gpt2.errors import AnalysisError
from interp_gpt2.sweeps.stacking import run_stacked, worth_asking
from interp_gpt2.sweeps.tasks import Failure, Task, failure, outcome, run_tasks

SPAWN_SECONDS = 3.0  # a fresh process importing torch: 2 to 3 s of CPU
DEATHS = 2  # of pools, after which checkpoints are tried one at a time, to know which of them kills its process
_MOST = 8  # tasks handed over at once; within them a worker reads ahead


def compute(tasks: list[Task], workers: int | Executor | None, stack: bool = False) -> list[Failure]:
    """Run the tasks, and say what failed. `workers` and `stack` as in `sweep`."""
    if isinstance(workers, Executor):
        return _on(workers, tasks)
    if workers is not None and workers < 1:
        raise AnalysisError(f"workers={workers}; a sweep needs at least one process")
    importable = all(_importable(analysis) for analysis, _ in tasks[0].wanted)
    if workers is not None and workers > 1 and not importable:
        raise AnalysisError("the analysis is defined at a prompt or in a notebook, where other processes cannot import it; "
                            "put it in a file, or pass workers=1")  # fmt: skip
    failures: list[Failure] = []
    if workers is None:
        began = time.monotonic()
        failures = run_tasks(tasks[:1])
        workers = worth(time.monotonic() - began, len(tasks) - 1) if importable else 1
        tasks = tasks[1:]
    if not tasks or any(failed.stops_all for failed in failures):
        return failures
    if workers > 1:
        return failures + _in_processes(tasks, min(workers, len(tasks)))
    return failures + (run_stacked(tasks) if stack and worth_asking(tasks) else run_tasks(tasks))


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


# ---------------------------------------------------------------------------------------------------------------------
# An executor that somebody else owns


def _on(executor: Executor, tasks: list[Task]) -> list[Failure]:
    """Raises AnalysisError when the executor breaks: it cannot be made anew here."""
    try:
        return sorted(_submitted(executor, tasks, 32, []), key=lambda failed: failed.step)
    except BrokenExecutor as error:
        done = sum(not task.missing() for task in tasks)
        raise AnalysisError(
            f"the executor broke ({error}); {done} of {len(tasks)} checkpoints were finished and are kept: the same sweep on a "
            "new executor goes on from there"
        ) from error


def _submitted(executor: Executor, tasks: Sequence[Task], pieces: int, failures: list[Failure]) -> list[Failure]:
    """Run the tasks, add to `failures` what failed, return it. Raises BrokenExecutor if the executor does not survive them."""
    size = min(max(len(tasks) // pieces, 1), _MOST)
    parts = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    futures: dict[Future, Sequence[Task]] = {}
    broken: BrokenExecutor | None = None
    try:
        for part in parts:
            futures[executor.submit(run_tasks, part)] = part
        for future in as_completed(futures):
            error = outcome(future)
            if isinstance(error, BrokenExecutor):
                broken = error
            elif error is None:
                failures += future.result()
            else:  # such as Dask's KilledWorker
                failures += [failure(task.step, None, error) for task in futures[future] if task.missing()]
            if any(failed.stops_all for failed in failures):
                break
    finally:  # Ctrl-C or a full disk: what waits is dropped, what runs is finished by the executor's own end
        for future in futures:
            future.cancel()
    if broken is not None:
        raise broken
    return failures


# ---------------------------------------------------------------------------------------------------------------------
# Processes of our own


def _in_processes(tasks: list[Task], workers: int) -> list[Failure]:
    """Failures, after all tasks have run. When a process dies the pool is made anew; what was finished is on disk.

    A pool that dies again has a checkpoint in it that kills: then one process takes one at a time, and it is named.
    """
    failures: list[Failure] = []
    left, deaths = list(tasks), 0
    needs_script = any(type(analysis).__module__ == "__main__" for analysis, _ in tasks[0].wanted)
    while left:
        alone = deaths >= DEATHS
        try:
            with _pool(1 if alone else workers, needs_script) as pool:
                return _submitted(pool, left, len(left) if deaths else 4 * workers, failures)
        except BrokenExecutor as error:
            deaths += 1
            told = {failed.step for failed in failures}
            before, left = left, [task for task in left if task.missing() and task.step not in told]
            if needs_script and len(left) == len(before):
                raise AnalysisError(
                    "a worker process of the sweep died before it finished anything. It may have run out of memory (pass fewer "
                    "workers), or the script, which holds the analysis and is therefore imported by each new process, lacks "
                    "`if __name__ == '__main__':` around its work"
                ) from error
            if alone and left:
                why = AnalysisError("the process that computed it died; it may have run out of memory")
                failures.append(failure(left.pop(0).step, None, why))
    return failures


@contextmanager
def _pool(workers: int, needs_script: bool) -> Iterator[ProcessPoolExecutor]:
    spawn = multiprocessing.get_context("spawn")  # a fork of a process whose torch has run threads can hang
    script = nullcontext() if needs_script else _without_the_script()
    with one_thread_each(), script, ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin_worker) as executor:
        yield executor


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
