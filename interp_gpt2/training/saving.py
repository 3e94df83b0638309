"""What training puts on disk at a boundary, and how it goes on from there."""

from dataclasses import dataclass
from typing import Any

import torch

from interp_gpt2.data.source import Source
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import ResumeState, load_resume, load_weights, save_checkpoint
from interp_gpt2.runs.metrics import truncate_metrics
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import keep_resumable, rewind, rewrite_settings
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.events import Notice, Progress, Saved
from interp_gpt2.training.machine import Machine
from interp_gpt2.training.optimizer import optimizer_tensors, restore_optimizer
from interp_gpt2.training.record import check_resumable, differences


@dataclass(frozen=True)
class Saver:
    """Writes the checkpoints of one run, and restores the newest."""

    run: Run
    config: TrainConfig
    source: Source
    machine: Machine
    progress: Progress

    def save(self, step: int, model: GPT2, optimizer: torch.optim.Optimizer, resumable: bool) -> None:
        """Write the checkpoint of `step`; of those that can be resumed from, the newest two stay so."""
        tokens = step * self.config.tokens_per_step
        state = None
        if resumable:
            trainer = {"step": step, "tokens": tokens, "fingerprint": self.machine.fingerprint()}
            state = ResumeState(optimizer_tensors(model, optimizer), trainer)
        path = save_checkpoint(self.run.path, step, model.state_dict(), self.config.model, tokens, self.source.tokenizer, state)
        if resumable:
            keep_resumable(self.run, anchors=())
        self.progress(Saved(step, path, resumable))

    def restore(self, model: GPT2, optimizer: torch.optim.Optimizer) -> int:
        """Go back to the newest checkpoint that is whole and resumable; what came after it is deleted. Returns its step."""
        run, settings = self.run, self.run.settings
        check_resumable(settings, self.config, self.source)
        if not run.steps:  # stopped before the first checkpoint
            truncate_metrics(run.path, -1)
            return 0
        found = run.newest_verified_step(resumable=True)
        for step, reason in found.skipped:
            self.progress(Notice(f"step {step} cannot be resumed from: {reason}"))
        _, weights = load_weights(run.checkpoint(found.step))
        state = load_resume(run.checkpoint(found.step))
        model.load_state_dict(weights)
        restore_optimizer(model, optimizer, state.tensors)
        self.say_what_changed(state.trainer["fingerprint"], settings["config"]["n_steps"])
        rewound = rewind(run, found.step)
        if rewound.removed:
            self.progress(Notice(f"resuming at step {found.step}; {len(rewound.removed)} later checkpoints are made again"))
        resumed = {"step": found.step, "fingerprint": self.machine.fingerprint()}
        config = self.config.to_dict()
        rewrite_settings(run, {**settings, "config": config, "resumed": [*settings.get("resumed", []), resumed]})
        return found.step

    def say_what_changed(self, fingerprint: dict[str, Any], n_steps: int) -> None:
        """Notices for what makes this run another than the one that would have gone on uninterrupted."""
        if changes := differences(fingerprint, self.machine.fingerprint()):
            listed = ", ".join(f"{name} {was!r}, now {is_!r}" for name, was, is_ in changes)
            self.progress(Notice(f"not bit for bit what the uninterrupted run would be: {listed}"))
        if n_steps != self.config.n_steps and self.config.schedule == "cosine":
            self.progress(
                Notice(f"n_steps was {n_steps}: the learning rate goes on along the cosine of {self.config.n_steps} steps")
            )
