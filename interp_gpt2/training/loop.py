"""The training loop: one update after another, each a pure function of the config and the step.

At the boundary after step s the weights have been updated s times. There a row of metrics is written if one is due, then a
checkpoint if one is due; whatever interrupts training, the directory is always that of the last boundary with a checkpoint.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from interp_gpt2.data.batches import rng_at
from interp_gpt2.data.source import NAMED_SOURCES, Source, load_source
from interp_gpt2.errors import DivergenceError, RunError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.metrics import append_metrics
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import create_run, run_lock
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.disk import DiskNeeded, check_disk, disk_needed
from interp_gpt2.training.events import Finished, Logged, Progress, Started, silent
from interp_gpt2.training.machine import Machine, cpu_threads, keep_freed_memory
from interp_gpt2.training.optimizer import make_optimizer
from interp_gpt2.training.record import run_settings
from interp_gpt2.training.saving import Saver
from interp_gpt2.training.schedule import learning_rate
from interp_gpt2.training.signals import Interrupted, StopRequest, stop_requests
from interp_gpt2.training.validation import validation_loss

DROPOUT = 2  # its stream of random numbers, beside those of batches (data.batches)


def train(
    config: TrainConfig, run_dir: Path | str, resume: bool = False, overwrite: bool = False, progress: Progress = silent
) -> Run:
    """Train as `config` says into the run directory `run_dir`, and return the finished run.

    A new run refuses a directory that exists, unless `overwrite`. With `resume` it goes on from the newest checkpoint that
    is whole and can be resumed from, bit for bit as if it had never stopped as long as versions, device and threads are the
    same (a Notice says when they are not); the config must be the same too, only `n_steps` may grow.

    Ctrl-C or SIGTERM finishes the step, writes a checkpoint to resume from and raises Interrupted. Raises RunError for a
    directory that cannot be used, DivergenceError when a loss or gradient is not finite, ConfigError, DataError.
    """
    if resume and overwrite:
        raise RunError("resume and overwrite exclude each other: one continues the run, the other deletes it")
    with stop_requests() as stop:
        source = load_source(config.data, config.tokenizer)
        config = _resolved(config, source)
        machine = Machine.for_config(config)
        keep_freed_memory()
        gpus = [machine.device] if machine.device.type == "cuda" else []
        with cpu_threads(machine.threads), torch.random.fork_rng(gpus):  # dropout must not disturb the caller's generators
            needed = disk_needed(config, source, Path(run_dir).expanduser(), overwrite)
            check_disk(needed, Path(run_dir))
            settings = run_settings(config, source, machine)
            run = Run(run_dir) if resume else create_run(run_dir, settings, source.tokenizer, overwrite)
            with run_lock(run.path):
                trainer = Trainer(run, config, source, machine, stop, progress)
                with trainer.saver:
                    step = trainer.saver.restore(trainer.model, trainer.optimizer) if resume else 0
                    trainer.train_from(step, needed)
    return run


def _resolved(config: TrainConfig, source: Source) -> TrainConfig:
    """The config with its model sized to the tokenizer, and the path of a text in full, so that it is found again."""
    path = Path(config.data).expanduser()
    data = config.data if config.data in NAMED_SOURCES else str(path.resolve())
    return replace(config, data=data, model=replace(config.model, d_vocab=source.tokenizer.d_vocab))


class Trainer:
    """A model on its way through the steps of one run."""

    def __init__(
        self, run: Run, config: TrainConfig, source: Source, machine: Machine, stop: StopRequest, progress: Progress
    ) -> None:
        self.run, self.config, self.source, self.machine = run, config, source, machine
        self.stop, self.progress = stop, progress
        self.model = GPT2(config.model, seed=config.seed, device=machine.device)
        if config.compile:
            self.model.compile()  # in place, so that no name in a checkpoint changes
        self.optimizer = make_optimizer(self.model, config)
        self.saver = Saver(run, config, source, machine, progress)
        self.pending: list[tuple[int, Tensor]] = []  # (step, loss and gradient norm) not looked at yet
        self.clock = time.perf_counter()  # when the tokens began that the next row gives a speed for
        self.clocked_step = 0

    def train_from(self, step: int, needed: DiskNeeded) -> None:
        """Every step from `step` to the last."""
        config, began = self.config, time.perf_counter()
        self.progress(Started(step, config.n_steps, config.model.n_params, config.tokens_per_step, needed))
        self.model.train()
        self.clock, self.clocked_step = time.perf_counter(), step
        if step == 0 and not self.run.steps:  # a resumed run may go on from a checkpoint of step 0
            self.boundary(0)
        while step < config.n_steps:
            self.pending.append((step + 1, self.update(step)))
            step += 1
            self.boundary(step)
        self.saver.settle()
        self.model.eval()
        self.progress(Finished(step, time.perf_counter() - began))

    def update(self, step: int) -> Tensor:
        """One update of the weights. Returns the loss before it, in nats per token, and the norm of its gradient: (2,)."""
        config = self.config
        tokens = self.source.batch(step, config.batch_size, config.model.n_ctx, config.seed)
        tokens = tokens.to(self.machine.device, non_blocking=True)  # (batch, n_ctx + 1)
        if config.model.dropout:
            # Like the batch, a function of (seed, step) alone: there is no generator whose state a checkpoint would need.
            torch.manual_seed(int(rng_at(config.seed, step, DROPOUT).integers(2**63)))
        with self.machine.computing():
            logits = self.model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if config.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), config.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        self.optimizer.step()
        return torch.stack((loss.detach(), norm))

    # Between steps -----------------------------------------------------------------------------------------------------

    def boundary(self, step: int) -> None:
        """What is due after `step` updates: a row of metrics, a checkpoint, and stopping if that was asked for."""
        config, saver = self.config, self.saver
        saver.poll()
        evaluate = step == config.n_steps or step % config.eval_every == 0
        if evaluate or step % config.log_every == 0 or step in saver.scheduled:
            self.log(step, evaluate)
        stopping = self.stop.signum is not None
        resumable = stopping or step in saver.resumable
        if resumable or step in saver.scheduled:
            self.save(step, resumable)
        if stopping:
            saver.settle()
            self.model.eval()
            raise Interrupted(self.stop.signum, step, self.run.checkpoint(step))

    def log(self, step: int, evaluate: bool) -> None:
        """Write a row of metrics: the batch of update `step` before it was made, and the model after it."""
        row = {"step": step, "tokens": step * self.config.tokens_per_step}
        if step > 0:
            loss, grad_norm = self.checked()
            row |= {"loss": loss, "lr": learning_rate(self.config, step - 1), "grad_norm": grad_norm}
        seconds = time.perf_counter() - self.clock
        if step > self.clocked_step:
            row["tokens_per_s"] = round((step - self.clocked_step) * self.config.tokens_per_step / seconds, 1)
        if evaluate:
            row["val_loss"] = validation_loss(self.model, self.source)
        append_metrics(self.run.path, row)
        self.progress(Logged(row))
        self.clock, self.clocked_step = time.perf_counter(), step

    def checked(self) -> tuple[float, float]:
        """Loss and gradient norm of the last update. Raises DivergenceError if any since the last look was not finite.

        Looking waits for a GPU to finish, so it is done where a row or a checkpoint is written, not at every step.
        """
        values = torch.stack([pair for _, pair in self.pending]).tolist()
        for (step, _), (loss, grad_norm) in zip(self.pending, values, strict=True):
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                append_metrics(self.run.path, {"step": step, "loss": loss, "grad_norm": grad_norm})
                raise DivergenceError(
                    f"training diverged at step {step}: loss {loss}, gradient norm {grad_norm}; the last checkpoint, of step "
                    f"{self.run.steps[-1]}, is from before; try a lower lr than {self.config.lr} or a longer warmup_steps"
                )
        self.pending = self.pending[-1:]
        return tuple(values[-1])

    def save(self, step: int, resumable: bool) -> None:
        """Write the checkpoint of `step`, once every loss up to it is known to be finite."""
        began = time.perf_counter()
        if step > 0:
            self.checked()
        self.saver.save(step, self.model, self.optimizer, resumable)
        self.clock += time.perf_counter() - began  # the speed of training is told without what it costs to save
