"""Training without a run directory: for models too small or too strange to be kept.

A model under standing edits cannot be saved, since the weights alone are another model; here it can be trained.
"""

from dataclasses import dataclass, replace

import torch

from interp_gpt2.data.source import Source
from interp_gpt2.errors import ConfigError, DivergenceError
from interp_gpt2.hooks import Edits
from interp_gpt2.model import GPT2
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.events import Finished, Logged, Progress, Started, silent
from interp_gpt2.training.machine import Machine, cpu_threads
from interp_gpt2.training.optimizer import make_optimizer
from interp_gpt2.training.speed import Meter
from interp_gpt2.training.update import Updates, source_of
from interp_gpt2.training.validation import validation_loss


@dataclass(frozen=True)
class Trained:
    """A model at the end of its training, under the edits it was trained under, and its validation losses on the way.

    `rows` have step, tokens and val_loss, in nats per token: at step 0, at every `eval_every` and at the last.
    """

    model: GPT2
    rows: list[dict[str, float]]


def train_in_memory(
    config: TrainConfig, edits: Edits | None = None, source: Source | None = None, progress: Progress = silent
) -> Trained:
    """Train as `config` says, with nothing written: the updates of `train`, each pass under `edits`.

    What `config` says of checkpoints, logs and samples is not used. Raises ConfigError for a compiled pass under edits,
    DivergenceError for a loss that is not finite, and as `train` for what describes no run.
    """
    if edits and config.compile:
        raise ConfigError("a pass under edits is not compiled while training; leave compile at false")
    source = source or source_of(config)
    config = replace(config, model=replace(config.model, d_vocab=source.tokenizer.d_vocab))
    machine = Machine.for_config(config)
    gpus = [machine.device] if machine.device.type == "cuda" else []
    with cpu_threads(machine.threads), torch.random.fork_rng(gpus):
        model = GPT2(config.model, seed=config.seed, device=machine.device)
        model = model.with_edits(edits) if edits else model
        updates = Updates(model, make_optimizer(model, config), config, source, machine, Meter(config, machine))
        progress(Started(0, config.n_steps, config.model.n_params, config.tokens_per_step))
        rows = []
        for step in range(config.n_steps + 1):
            if step % config.eval_every == 0 or step == config.n_steps:
                rows.append(_row(updates, step))
                progress(Logged(rows[-1]))
            if step < config.n_steps:
                model.train()
                updates(step)
        progress(Finished(config.n_steps, 0.0))
    return Trained(model.eval(), rows)


def _row(updates: Updates, step: int) -> dict[str, float]:
    loss = validation_loss(updates.model, updates.source)
    if loss != loss or updates.broken:
        raise DivergenceError(f"training diverged by step {step}: the validation loss is {loss}; try a lower learning rate")
    return {"step": step, "tokens": step * updates.config.tokens_per_step, "val_loss": loss}
