"""The training loop: one update after another, each a pure function of the config and the step.

At the boundary after step s the weights have been updated s times. There a row of metrics is written if one is due, then a
checkpoint if one is due; whatever interrupts training, the directory is always that of the last boundary with a checkpoint.
"""

import gc
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from interp_gpt2.data.source import NAMED_SOURCES, Source
from interp_gpt2.errors import DivergenceError, RunError
from interp_gpt2.memory import keep_freed_memory
from interp_gpt2.runs.metrics import append_metrics
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import create_run, run_lock
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.disk import DiskNeeded, check_disk, disk_needed
from interp_gpt2.training.distributed import Processes, joined
from interp_gpt2.training.divergence import diverged, finite_weights
from interp_gpt2.training.events import Finished, Logged, Notice, Progress, Started, silent
from interp_gpt2.training.machine import Machine, cpu_threads, frozen_garbage
from interp_gpt2.training.mirrors import mirrored
from interp_gpt2.training.online import Online
from interp_gpt2.training.record import run_settings
from interp_gpt2.training.saving import Saver
from interp_gpt2.training.schedule import learning_rate
from interp_gpt2.training.signals import Interrupted, StopRequest, stop_requests
from interp_gpt2.training.speed import flops_facts
from interp_gpt2.training.update import Updates, new_updates, source_of
from interp_gpt2.training.validation import bytes_per_token, validation_loss


def train(
    config: TrainConfig, run_dir: Path | str, resume: bool = False, overwrite: bool = False, progress: Progress = silent
) -> Run:
    """Train as `config` says into the run directory `run_dir`, and return the finished run.

    A new run refuses a directory that exists, unless `overwrite`. With `resume` it goes on from the newest checkpoint that
    is whole and can be resumed from, bit for bit as if it had never stopped as long as versions, device and threads are the
    same (a Notice says when they are not); the config must be the same too, only `n_steps` may grow.

    Under `torchrun` every process calls this with the same arguments and takes its share (distributed.py): only the first
    one writes and tells of progress, and `run_dir` must be one directory for all.

    Ctrl-C or SIGTERM finishes the step, writes a checkpoint to resume from and raises Interrupted. Raises RunError for a
    directory that cannot be used, DivergenceError when a loss or gradient is not finite, ConfigError, DataError,
    AnalysisError for an online analysis that cannot be made, ProcessLostError when another process has ended.
    """
    if resume and overwrite:
        raise RunError("resume and overwrite exclude each other: one continues the run, the other deletes it")
    with stop_requests() as stop, joined(config.device) as group:
        return _train_in(group, config, run_dir, resume, overwrite, progress, stop)


def _train_in(
    group: Processes, config: TrainConfig, run_dir: Path | str, resume: bool, overwrite: bool, progress: Progress,
    stop: StopRequest,
) -> Run:  # fmt: skip
    """Apart from `train`, so that the model is out of reach when the group ends: see `joined`."""
    with group.first_on_each_machine():
        source = source_of(config)
    config = _resolved(config, source)
    online = Online.of(config, source)
    machine = Machine.for_config(config, group)
    source = source.to_device(machine.device) if config.resident else source
    keep_freed_memory()
    gpus = [machine.device] if machine.device.type == "cuda" else []
    with cpu_threads(machine.threads), torch.random.fork_rng(gpus):  # dropout must not disturb the caller's generators
        needed = disk_needed(config, source, Path(run_dir).expanduser(), overwrite)
        check_disk(needed, Path(run_dir))
        updates = new_updates(config, source, machine)
        _check_windows(updates)
        run = _opened(run_dir, updates, resume, overwrite)
        with _writing(run, updates, progress) as told:
            trainer = Trainer(run, updates, online, stop, told)
            with trainer.saver, frozen_garbage():
                trainer.train_from(trainer.restore() if resume else 0, needed)
    return run


def _check_windows(updates: Updates) -> None:
    """Raises DataError for a text that is shorter than a window, training's or held out, before there is a run."""
    updates.batch_of(0)
    next(iter(updates.source.validation(updates.config.model.n_ctx, 1)))


def _opened(run_dir: Path | str, updates: Updates, resume: bool, overwrite: bool) -> Run:
    """The run to write, made by the first process unless it goes on."""
    config, source, processes = updates.config, updates.source, updates.processes
    processes.agree(0)  # nobody looks at what was there before any more
    if processes.first and not resume:
        settings = run_settings(config, source, updates.machine) | {"flops": flops_facts(config, updates.machine)}
        create_run(run_dir, settings, source.tokenizer, overwrite)
    processes.agree(0)
    return Run(run_dir)


@contextmanager
def _writing(run: Run, updates: Updates, progress: Progress) -> Iterator[Progress]:
    """Be the one that writes the run, and tells of it; in other processes than the first, be silent."""
    if not updates.processes.first:
        yield silent
        return
    with run_lock(run.path), mirrored(updates.config.tracking, run, progress) as told:
        yield told


def _resolved(config: TrainConfig, source: Source) -> TrainConfig:
    """The config with its model sized to the tokenizer, and the path of a text in full, so that it is found again."""
    path = Path(config.data).expanduser()
    data = config.data if config.data in NAMED_SOURCES else str(path.resolve())
    return replace(config, data=data, model=replace(config.model, d_vocab=source.tokenizer.d_vocab))


class Trainer:
    """A model on its way through the steps of one run."""

    def __init__(self, run: Run, updates: Updates, online: Online, stop: StopRequest, progress: Progress) -> None:
        self.run, self.updates, self.online, self.stop, self.progress = run, updates, online, stop, progress
        self.config, self.source, self.model = updates.config, updates.source, updates.model
        self.optimizer, self.meter, self.guard = updates.optimizer, updates.meter, updates.guard
        self.processes = updates.processes
        self.saver = Saver(run, self.config, self.source, updates.machine, progress)
        self.pending: list[tuple[int, Tensor]] = []  # (step, loss, gradient norm and spike) not looked at yet
        self.last = (math.nan, math.nan)  # loss and gradient norm of the last update looked at
        self.online_seconds = 0.0

    @cached_property
    def bytes_per_token(self) -> float | None:
        """Of the held-out text, read once; None where there is no text."""
        return bytes_per_token(self.source, self.config.model.n_ctx)

    def restore(self) -> int:
        """Go back to the newest checkpoint that can be resumed from. Returns its step."""
        return self.saver.restore(self.model, self.optimizer, self.guard)

    def train_from(self, step: int, needed: DiskNeeded) -> None:
        """Every step from `step` to the last."""
        config, began = self.config, time.perf_counter()
        parts = self.updates.machine.micro_batch
        self.progress(Started(step, config.n_steps, config.model.n_params, config.tokens_per_step, needed, parts))
        self.model.train()
        self.meter.restart(step)
        # A resumed run may go on from a checkpoint of step 0. What one process writes, another may not see at once.
        if step == 0 and self.processes.from_first(not self.run.steps):
            self.boundary(0)
        while step < config.n_steps:
            self.pending.append((step + 1, self.updates(step)))
            step += 1
            self.boundary(step)
        self.saver.settle()
        self.processes.agree(0)  # to all of them the run is whole
        self.model.eval()
        self.progress(Finished(step, time.perf_counter() - began, self.online_seconds))

    # Between steps -----------------------------------------------------------------------------------------------------

    def boundary(self, step: int) -> None:
        """What is due after `step` updates: a row of metrics, analyses, a checkpoint, and stopping if that was asked for."""
        config, saver = self.config, self.saver
        saver.poll()
        evaluate = step == config.n_steps or step % config.eval_every == 0
        if evaluate or step % config.log_every == 0 or step in saver.scheduled:
            self.log(step, evaluate)
        self.look(step)
        stopping = self.processes.agree(self.stop.signum or 0)
        resumable = stopping > 0 or step in saver.resumable
        if resumable or step in saver.scheduled:
            self.save(step, resumable)
        if stopping:
            saver.settle()
            self.processes.agree(0)
            self.model.eval()
            raise Interrupted(stopping, step, self.run.checkpoint(step))

    def log(self, step: int, evaluate: bool) -> None:
        """Write a row of metrics: the batch of update `step` before it was made, and the model after it."""
        row = {"step": step, "tokens": step * self.config.tokens_per_step}
        if step > 0:
            loss, grad_norm = self.checked()
            row |= {"loss": loss, "lr": learning_rate(self.config, step - 1), "grad_norm": grad_norm}
        if self.guard is not None and self.guard.unlogged:
            row["skipped" if self.config.guard_action == "skip" else "spikes"] = self.guard.unlogged
            self.guard.unlogged = []
        row |= self.meter.row(step)
        if evaluate:
            row["val_loss"] = validation_loss(self.processes.whole(self.model), self.source, self.processes)
            if self.bytes_per_token:
                row["val_bits_per_byte"] = row["val_loss"] / math.log(2) / self.bytes_per_token
        if self.processes.first:
            append_metrics(self.run.path, row)
        self.progress(Logged(row))
        self.meter.restart(step)

    def look(self, step: int) -> None:
        """Analyse the model, and sample from it, where that is due."""
        config, last = self.config, step == self.config.n_steps
        analyse = bool(config.online) and (last or step % config.online_every == 0)
        sample = config.sample_tokens > 0 and step in self.saver.scheduled
        if not (analyse or sample):
            return
        if step > 0:
            self.checked()
        with self.meter.paused():
            model = self.processes.whole(self.model)
            if not self.processes.first:
                return
            for analysed in self.online.analyse(model, self.run, config, step) if analyse else []:
                self.online_seconds += analysed.seconds
                self.progress(analysed)
            if sample:
                self.online.sample(model, self.run, config, step)

    def checked(self) -> tuple[float, float]:
        """Loss and gradient norm of the last update. Raises DivergenceError if any since the last look was not finite.

        Looking waits for a GPU to finish, so it is done where a row or a checkpoint is written, not at every step.
        """
        if not self.pending:
            return self.last
        values = torch.stack([measured for _, measured in self.pending]).tolist()
        for (step, _), (loss, grad_norm, spike) in zip(self.pending, values, strict=True):
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise self.diverged(step, loss, grad_norm, logged=False)
            if spike:
                self.guard.unlogged.append(step)
                done = "left out" if self.config.guard_action == "skip" else "made all the same"
                self.progress(Notice(f"update {step} stands out and was {done}: loss {loss:.3f}, gradient norm {grad_norm:.3g}"))
        self.pending, self.last = [], (loss, grad_norm)
        return self.last

    def diverged(self, step: int, loss: float, grad_norm: float, logged: bool = True) -> DivergenceError:
        """The error to raise, once the first process has found where it began and written that down."""
        updates = self.updates.alone()
        error = DivergenceError(f"training diverged at step {step}; the first process says where")
        if self.processes.first:
            if not logged:
                append_metrics(self.run.path, {"step": step, "loss": loss, "grad_norm": grad_norm})
            self.saver.settle()
            error = diverged(self.run, updates, step, loss, grad_norm)
        self.processes.agree(0)
        return error

    def save(self, step: int, resumable: bool) -> None:
        """Write the checkpoint of `step`, once every loss up to it is known to be finite."""
        with self.meter.paused():
            if step > 0:
                measured = self.checked()
                if not finite_weights(self.model, self.processes):
                    raise self.diverged(step, *measured)
            self.saver.save(step, self.model, self.optimizer, resumable, self.guard)
            gc.collect(1)  # what piled up since collecting was suspended
