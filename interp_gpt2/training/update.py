"""One update of the weights: a pure function of the config and the step, which never waits for the device."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp_gpt2.data.batches import rng_at, within_documents
from interp_gpt2.data.source import Sampling, Source, load_source
from interp_gpt2.errors import ConfigError, DataError
from interp_gpt2.inputs import trusted_tokens
from interp_gpt2.model import GPT2
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.distributed import ALONE
from interp_gpt2.training.guard import Guard
from interp_gpt2.training.machine import Machine
from interp_gpt2.training.optimizer import AnyOptimizer, make_optimizer, skip_where
from interp_gpt2.training.schedule import learning_rate
from interp_gpt2.training.speed import Meter

DROPOUT = 2  # its stream of random numbers, beside those of batches (data.batches)
NOT_PREDICTED = -100


class NextTokenLoss(nn.Module):
    """The pass that training runs: hooks off, down to the loss, so that a compiler sees all of it.

    It only refers to the model, whose own calls, with hooks or without, stay eager on the same weights; `.compile()` acts
    in place and no weight has another name.
    """

    def __init__(self, model: GPT2) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Int[Tensor, "batch pos+1"], documents: Int[Tensor, "batch pos+1"] | None = None
    ) -> Float[Tensor, ""]:
        """Mean loss in nats per position, in float32 whatever the products were made in.

        With `documents`, each is as it would be alone, and a position whose next token is of another one counts as 0.
        """
        if documents is None:
            logits = self.model(tokens[:, :-1])
            return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        logits = self.model(tokens[:, :-1], attention_mask=documents[:, :-1])
        targets = tokens[:, 1:].masked_fill(~within_documents(documents), NOT_PREDICTED)
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=NOT_PREDICTED, reduction="sum")
        return losses / targets.numel()


@dataclass(frozen=True)
class Batch:
    """What one process reads in an update, on its device.

    `documents` numbers the documents of each sequence where they are kept apart; `scale` is then how many positions of the
    global batch there are for each prediction made there, which turns a mean over positions into one over predictions.
    """

    tokens: Int[Tensor, "batch pos+1"]
    documents: Int[Tensor, "batch pos+1"] | None = None
    scale: Float[Tensor, ""] | float = 1.0

    def split(self, n: int) -> "list[Batch]":
        """The same, at most `n` sequences each."""
        parts = self.tokens.split(n)
        documents = [None] * len(parts) if self.documents is None else self.documents.split(n)
        return [Batch(*part, self.scale) for part in zip(parts, documents, strict=True)]


class Updates:
    """What changes the weights of `model`: `updates(step)` for each step in order."""

    def __init__(
        self, model: GPT2, optimizer: AnyOptimizer, config: TrainConfig, source: Source, machine: Machine, meter: Meter
    ) -> None:
        self.model, self.optimizer, self.config, self.source = model, optimizer, config, source
        self.machine, self.meter, self.processes = machine, meter, machine.processes
        self.loss = NextTokenLoss(model)
        if config.compile and not self.processes.sharded:
            self.loss.compile(dynamic=False)
        self.loss = self.processes.wrap(self.loss)
        self.guard = Guard(config.guard_z, config.guard_window, machine.device) if config.guard_z else None
        self.no_spike = torch.zeros((), device=machine.device)
        self.broken = torch.zeros((), device=machine.device)  # 1 from the first loss or gradient on that is not finite

    def __call__(self, step: int) -> Float[Tensor, "3"]:
        """Update `step`. Returns the loss before it, the norm of its gradient before clipping, and whether it is a spike.

        Loss and gradient are means over the global batch, whatever the micro-batch: the gradients of its parts add up, then
        the optimizer steps once.
        """
        config = self.config
        with self.meter.reading():
            batch = self.batch_of(step)
        self.seed_dropout(step)
        self.optimizer.zero_grad()
        loss = self.processes.mean(self.backward(batch))
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        norm = self.processes.norm(norm)
        measured = torch.stack((loss, norm))
        spike = self.no_spike if self.guard is None else self.guard.judge(measured)
        self.broken = torch.maximum(self.broken, 1 - measured.isfinite().all().to(measured.dtype))
        if config.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), config.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        # What went wrong changes no weight, then or later: whoever looks finds them as they were before it (divergence.py).
        skip_where(self.optimizer, torch.maximum(self.broken, spike) if config.guard_action == "skip" else self.broken)
        self.optimizer.step()
        return torch.stack((loss, norm, spike))

    def seed_dropout(self, step: int) -> None:
        """Like the batch, dropout is a function of (seed, step) alone: no checkpoint needs the state of a generator.

        And of the rank: sequences in different processes are not to lose the same values.
        """
        if self.config.model.dropout:
            rng = rng_at(self.config.seed, step, DROPOUT)
            seeds = [int(rng.integers(2**63)) for _ in range(self.processes.world)]
            torch.manual_seed(seeds[self.processes.rank])

    def batch_of(self, step: int) -> Batch:
        """This process's share of the batch of a step. Raises DataError for tokens that the model has no embedding for."""
        config, processes = self.config, self.processes
        where = (step, config.batch_size, config.model.n_ctx, config.seed)
        tokens = self.source.batch(*where, processes.rank, processes.world)
        if tokens.device.type == "cpu":  # looked at here, where nothing has to be waited for
            ids = tokens.numpy()
            if ids.min() < 0 or ids.max() >= config.model.d_vocab:
                raise DataError(
                    f"the batch of step {step} has tokens from {ids.min()} to {ids.max()}; d_vocab={config.model.d_vocab}"
                )
        if config.documents != "masked":
            return Batch(self._here(tokens))
        documents = self.source.batch_documents(*where, processes.rank, processes.world)
        everywhere = documents if processes.world == 1 else self.source.batch_documents(*where)
        predicted = within_documents(self._here(everywhere)).sum()
        return Batch(self._here(tokens), self._here(documents), config.tokens_per_step / predicted)

    def _here(self, ids: Int[Tensor, "batch pos+1"]) -> Int[Tensor, "batch pos+1"]:
        device = self.machine.device
        if device.type == "cuda" and ids.device.type == "cpu":
            ids = ids.pin_memory()
        return ids.to(device, non_blocking=True)

    def backward(self, batch: Batch, averaged: bool = True) -> Float[Tensor, ""]:
        """The mean loss of a share; its gradient is added to that of the weights, micro-batch by micro-batch.

        With the last one it becomes the mean over all processes, if it is to be `averaged`.
        """
        losses = []
        n = len(batch.tokens)
        parts = batch.split(self.machine.micro_batch or n)
        for number, part in enumerate(parts, start=1):
            with self.processes.averaging(self.loss, averaged and number == len(parts)):
                with self.machine.computing(), trusted_tokens():
                    loss = self.loss(part.tokens, part.documents) * (len(part.tokens) / n * part.scale)
                loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def alone(self) -> "Updates":
        """The same ones by this process alone, on the whole model and batches, to look into. Every process must ask."""
        processes = self.processes
        if processes.world == 1:
            return self
        share = self.machine.micro_batch or self.config.batch_size // processes.world
        machine = replace(self.machine, processes=ALONE, micro_batch=share)
        return Updates(processes.whole(self.model), self.optimizer, self.config, self.source, machine, self.meter)

    def rehearse(self) -> None:
        """Add up a gradient once, for nothing.

        After its first one DDP puts the gradients into other buckets, in the order they came in. That is the order in which
        they are added up: a resumed run would begin in another one than that in which the uninterrupted run went on.
        """
        self.backward(self._nothing(self.config.batch_size // self.processes.world))
        self.optimizer.zero_grad()

    def _nothing(self, n: int) -> Batch:
        """A batch of the size and kind of a real one."""
        tokens = torch.zeros(n, self.config.model.n_ctx + 1, dtype=torch.long, device=self.machine.device)
        return Batch(tokens, tokens + 1 if self.config.documents == "masked" else None)

    def try_micro_batch(self, n: int) -> None:
        """Use as much memory as updates with micro-batches of `n` sequences do. Whatever that raises says that it is too much."""
        parameters = list(self.model.parameters())
        moments = [torch.empty_like(p) for p in parameters for _ in range(2)]  # the optimizer's, not made yet
        try:
            for _ in range(2):  # the second time beside the gradient of the first
                self.backward(self._nothing(n), averaged=False)  # another process may have failed, and would not answer
        finally:
            self.optimizer.zero_grad()
            del moments


def source_of(config: TrainConfig) -> Source:
    """What a run of this config reads its batches from."""
    return load_source(config.data, config.tokenizer, sampling=Sampling(config.order, config.documents))


def new_updates(config: TrainConfig, source: Source, machine: Machine) -> Updates:
    """Those of a model at its initialisation, with the micro-batch found if it is "auto". Raises ConfigError if nothing fits."""
    model = GPT2(config.model, seed=config.seed, device=machine.device)
    processes = machine.processes
    processes.spread(model, config.compile)
    updates = Updates(model, make_optimizer(model, config), config, source, machine, Meter(config, machine))
    if config.micro_batch == "auto":
        share = config.batch_size // processes.world
        found = -processes.agree(-largest_micro_batch(updates.try_micro_batch, share))
        updates.machine = replace(machine, micro_batch=found if found < share else None)
    if processes.world > 1:
        updates.rehearse()
    return updates


def largest_micro_batch(attempt: Callable[[int], None], batch_size: int) -> int:
    """The first of `batch_size`, half of it, a quarter, ... with which `attempt` does not run out of memory.

    Raises ConfigError if one sequence is too much. Where the system promises more memory than it has, as Linux does for
    the CPU's, a process may be killed instead: there a number is safer.
    """
    n = batch_size
    while True:
        if fits(attempt, n):
            return n
        if n == 1:
            raise ConfigError("a single sequence does not fit in memory; a smaller n_ctx or model would")
        n //= 2


def fits(attempt: Callable[[int], None], n: int) -> bool:
    """Whether `attempt(n)` ends without running out of memory; what it had is given back."""
    try:
        attempt(n)
        return True
    except MemoryError:
        return False
    except RuntimeError as error:  # also torch.OutOfMemoryError, which a GPU raises
        words = str(error).lower()
        if not any(sign in words for sign in ("out of memory", "not enough memory", "can't allocate memory")):
            raise
        return False
    finally:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
