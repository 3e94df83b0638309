"""Several runs side by side, each in a process of its own."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from interp_gpt2.errors import InterpGPT2Error, RunError
from interp_gpt2.runs.run import Run
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.events import Event
from interp_gpt2.training.loop import train
from interp_gpt2.training.signals import Interrupted, stop_requests


@dataclass(frozen=True)
class Job:
    """One call of `train`, and the name its progress is reported under."""

    name: str
    config: TrainConfig
    run_dir: Path
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class _Done:
    """The last message of a process: what `train` raised, if it did."""

    error: InterpGPT2Error | Interrupted | None = None


@dataclass
class _Worker:
    job: Job
    process: BaseProcess
    messages: Connection
    done: _Done | None = None
    asked_to_stop: bool = False


def run_all(
    jobs: Sequence[Job], max_workers: int | None = None, progress: Callable[[str, Event], None] = lambda name, event: None
) -> list[Run]:
    """Train every job, `max_workers` at a time (default: one for each core), and return the runs in the jobs' order.

    A job that does not say how many threads it wants gets an equal share of the cores. An error in one leaves the others
    to finish; then it is raised, with the job's name. Ctrl-C or SIGTERM stops all as it stops `train`, each with a
    checkpoint, and raises Interrupted; a second Ctrl-C stops them at once.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    max_workers = max_workers or cores
    threads = max(1, cores // min(max_workers, len(jobs) or 1))
    waiting = [replace(job, config=replace(job.config, threads=job.config.threads or threads)) for job in jobs]
    workers: list[_Worker] = []
    with stop_requests() as stop:
        try:
            while True:
                active = [worker for worker in workers if worker.done is None]
                while waiting and stop.signum is None and len(active) < max_workers:
                    active.append(_start(waiting.pop(0)))
                    workers.append(active[-1])
                if not active:
                    break
                if stop.signum is not None:
                    _ask_to_stop(active)
                ready = wait([worker.messages for worker in active], timeout=0.2)  # returns in time to see a stop request
                for worker in active:
                    if worker.messages in ready:
                        _receive(worker, progress)
        finally:
            for worker in workers:
                if worker.done is None:
                    worker.process.kill()
                worker.process.join()
    _raise_failures(workers)
    if stop.signum is not None:
        raise Interrupted(stop.signum)
    return [Run(job.run_dir) for job in jobs]


def _start(job: Job) -> _Worker:
    spawn = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pool
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_work, args=(job, sender), name=job.name)
    with _interrupts_ignored():  # inherited: Ctrl-C in a terminal reaches every process of it, and we pass it on in order
        process.start()
    sender.close()  # so that the pipe ends when the process does
    return _Worker(job, process, receiver)


def _work(job: Job, messages: Connection) -> None:
    """What the process does. An error that is not meant for the user leaves by its traceback and exit code 1."""
    try:
        train(job.config, job.run_dir, job.resume, job.overwrite, messages.send)
        messages.send(_Done())
    except (InterpGPT2Error, Interrupted) as error:
        messages.send(_Done(error))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ask_to_stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        if not worker.asked_to_stop:
            worker.process.terminate()
            worker.asked_to_stop = True


def _receive(worker: _Worker, progress: Callable[[str, Event], None]) -> None:
    try:
        message = worker.messages.recv()
    except EOFError:
        worker.process.join()
        code = worker.process.exitcode
        # A process that had not begun to train yet is ended by the request to stop itself.
        worker.done = _Done(None if worker.asked_to_stop else RunError(f"its process ended with exit code {code}"))
        return
    if isinstance(message, _Done):
        worker.done = message
    else:
        progress(worker.job.name, message)


def _raise_failures(workers: Sequence[_Worker]) -> None:
    """Raise the first error as what it is, with the names of all jobs that failed."""
    errors = [(worker.job.name, worker.done.error) for worker in workers if worker.done is not None and worker.done.error]
    failures = [(name, error) for name, error in errors if isinstance(error, InterpGPT2Error)]
    if failures:
        raise type(failures[0][1])("; ".join(f"{name}: {error}" for name, error in failures)) from failures[0][1]
    for worker in workers:
        if worker.done is not None and worker.done.error and not worker.asked_to_stop:
            raise worker.done.error  # somebody else stopped this one process
