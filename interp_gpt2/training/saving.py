"""What training puts on disk at a boundary, and how it goes on from there.

Saving overlaps training: the state is copied to host memory, which takes milliseconds, and a thread hashes the copy and
forces it to disk. A checkpoint is told of (`Saved`) only when it is there, whole and under its name.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from interp_gpt2.data.source import Source
from interp_gpt2.errors import CheckpointWriteError, InterpGPT2Error
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import Contents, ResumeState, contents_of, load_resume, load_weights, write_checkpoint
from interp_gpt2.runs.durable import sync_file, write_errors_named
from interp_gpt2.runs.metrics import LOGS, truncate_metrics
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import DIVERGENCE, keep_resumable, rewind, rewrite_settings
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.distributed import ALONE, Processes
from interp_gpt2.training.events import Notice, Progress, Saved
from interp_gpt2.training.guard import Guard
from interp_gpt2.training.machine import Machine
from interp_gpt2.training.optimizer import (
    AnyOptimizer,
    blank_tensors,
    check_groups,
    optimizer_tensors,
    parameter_groups,
    restore_optimizer,
)
from interp_gpt2.training.record import check_resumable, differences
from interp_gpt2.training.schedule import anchor_steps, checkpoint_steps, resume_steps
from interp_gpt2.training.sharding import load_optimizer
from interp_gpt2.training.signals import Interrupted

NONE = -1  # the step that a run without checkpoints goes on from


class Saver:
    """Writes the checkpoints of one run while training goes on, one at a time, and restores the newest.

    What goes wrong while one is written is raised by the next call of `save`, `poll` or `settle`, as the
    CheckpointWriteError that it is. Leaving the `with` block waits for the write under way.
    """

    def __init__(self, run: Run, config: TrainConfig, source: Source, machine: Machine, progress: Progress) -> None:
        self.run, self.config, self.source, self.machine, self.progress = run, config, source, machine, progress
        self.scheduled = checkpoint_steps(config.checkpoints, config.n_steps)
        self.resumable = resume_steps(config.checkpoints, config.n_steps)
        self.anchors = anchor_steps(config.checkpoints, config.n_steps)
        self.copies = HostCopies()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[Saved] | None = None

    def save(self, step: int, model: GPT2, optimizer: AnyOptimizer, resumable: bool, guard: Guard | None = None) -> None:
        """Copy the state and begin to write the checkpoint of `step`, once the one before is on disk."""
        self.settle()
        processes = self.machine.processes
        tokens = step * self.config.tokens_per_step
        resume = None
        if resumable:
            trainer = {"step": step, "tokens": tokens, "fingerprint": self.machine.fingerprint()}
            if guard is not None:
                trainer["guard"] = guard.state()
            trainer["parameter_groups"] = parameter_groups(model, optimizer)
            state = optimizer_tensors(model, optimizer)
            resume = ResumeState(state, trainer, processes.save_shards(state, self.run.path, step))
        weights = processes.weights(model)
        if not processes.first:
            return
        contents = contents_of(step, weights, self.config.model, tokens, self.source.tokenizer, resume)
        copied = self.copies.of(contents)
        arrived = torch.cuda.current_stream().record_event() if model.device.type == "cuda" else None
        self.writing = self.thread.submit(self._write, copied, resumable, arrived)

    def poll(self) -> None:
        """Tell of the checkpoint that has reached the disk, if one has. Raises CheckpointWriteError if it could not."""
        if self.writing is not None and self.writing.done():
            self.settle()

    def settle(self) -> None:
        """Wait until what is being written is on disk, and tell of it. Raises CheckpointWriteError if it could not be."""
        if self.writing is None:
            return
        try:
            saved = self.writing.result()
        finally:
            if self.writing.done():  # else it was Ctrl-C that ended the waiting
                self.writing = None
        self.progress(saved)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.thread.shutdown()
        if error is None:
            self.settle()
        elif isinstance(error, (InterpGPT2Error, Interrupted)):
            try:
                self.settle()
            except CheckpointWriteError as unwritten:
                error.add_note(str(unwritten))

    def _write(self, contents: Contents, resumable: bool, arrived: torch.cuda.Event | None) -> Saved:
        if arrived is not None:
            arrived.synchronize()
        # The rows up to a checkpoint are on disk before it: after a power cut none is missing where training goes on.
        for log in (self.run.path / name for name in LOGS if resumable):
            if log.exists():
                with write_errors_named(log, 0):
                    sync_file(log)
        path = write_checkpoint(self.run.path, contents)
        if resumable:
            keep_resumable(self.run, self.anchors)
        return Saved(contents.step, path, resumable)

    # Resuming ----------------------------------------------------------------------------------------------------------

    def restore(self, model: GPT2, optimizer: AnyOptimizer, guard: Guard | None = None) -> int:
        """Go back to the newest checkpoint that is whole and resumable; what came after it is deleted. Returns its step."""
        run, settings, processes = self.run, self.run.settings, self.machine.processes
        check_resumable(settings, self.config, self.source)
        start = processes.from_first(self.newest() if processes.first else NONE)
        state = None if start == NONE else restored(run, start, model, optimizer, guard, processes)
        processes.agree(0)  # all have read what the first one rewrites now
        if processes.first:
            self.go_back(start, state, settings)
        return max(start, 0)

    def newest(self) -> int:
        """The last step that training can go on from; NONE if it stopped before the first checkpoint."""
        if not self.run.steps:
            return NONE
        found = self.run.newest_verified_step(resumable=True)
        for step, reason in found.skipped:
            self.progress(Notice(f"step {step} cannot be resumed from: {reason}"))
        return found.step

    def go_back(self, start: int, state: ResumeState | None, settings: dict[str, Any]) -> None:
        """Make the run directory what it was at step `start`, and say what is not."""
        run, n_steps = self.run, settings["config"]["n_steps"]
        if state is None:
            truncate_metrics(run.path, -1)
        else:
            self.say_what_changed(state.trainer["fingerprint"], n_steps)
            rewound = rewind(run, start)
            if rewound.removed:
                self.progress(Notice(f"resuming at step {start}; {len(rewound.removed)} later checkpoints are made again"))
        (run.path / DIVERGENCE).unlink(missing_ok=True)  # it told of updates that are made again
        resumed = {"step": max(start, 0), "n_steps_before": n_steps, "fingerprint": self.machine.fingerprint()}
        config = self.config.to_dict()
        rewrite_settings(run, {**settings, "config": config, "resumed": [*settings.get("resumed", []), resumed]})

    def say_what_changed(self, fingerprint: dict[str, Any], n_steps: int) -> None:
        """Notices for what makes this run another than the one that would have gone on uninterrupted."""
        if changes := differences(fingerprint, self.machine.fingerprint()):
            listed = ", ".join(f"{name} {was!r}, now {is_!r}" for name, was, is_ in changes)
            self.progress(Notice(f"not bit for bit what the uninterrupted run would be: {listed}"))
        if n_steps != self.config.n_steps and self.config.schedule != "constant":
            along = f"the {self.config.schedule} of {self.config.n_steps} steps"
            self.progress(Notice(f"n_steps was {n_steps}: the learning rate goes on along {along}"))


def restored(
    run: Run, step: int, model: GPT2, optimizer: AnyOptimizer, guard: Guard | None = None, processes: Processes = ALONE
) -> ResumeState:
    """Put a checkpoint's weights and optimizer state into `model` and `optimizer`, or this process's share of them.

    Raises CheckpointError if they do not fit.
    """
    directory = run.checkpoint(step)
    _, weights = load_weights(directory)
    state = load_resume(directory)
    processes.put_weights(model, weights)
    tensors = state.tensors
    if state.shards or (processes.sharded and tensors):
        tensors = blank_tensors(model, optimizer)
        load_optimizer(directory, tensors)
    check_groups(model, optimizer, state.trainer)
    restore_optimizer(model, optimizer, tensors)
    if guard is not None:
        guard.restore(state.trainer["guard"])
    return state


class HostCopies:
    """Host memory that a checkpoint's tensors are copied to, so that training may change them while they are written.

    It is used again for the next checkpoint: as much as the weights take, and the optimizer's state.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, str], Tensor] = {}

    def of(self, contents: Contents) -> Contents:
        """The same contents in this memory. From a GPU they arrive when what its stream does until now is done."""
        return replace(
            contents,
            tensors={
                file: {name: self._copy((file, name), tensor.detach()) for name, tensor in tensors.items()}
                for file, tensors in contents.tensors.items()
            },
        )

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        if key not in self.buffers:
            self.buffers[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return self.buffers[key].copy_(tensor, non_blocking=tensor.is_cuda)
