"""Several processes that train one model, as `torchrun` starts them: what they say to each other, and who does what.

Process `rank` of `world` takes slice `rank` of the global batch; the loss and the gradient are means over all of them, so
that the update is that of one process with the whole batch, up to rounding. With "ddp" each holds the whole model and its
optimizer's state; with "fsdp" a share of each (sharding.py). Only the first one writes files and says anything.

A signal reaches whichever process it reaches, so at every boundary between steps they agree whether to stop. When one
ends without a word, the next thing that the others want to tell each other fails: ProcessLostError.
"""

import gc
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from interp_gpt2.errors import ConfigError, ProcessLostError
from interp_gpt2.model import GPT2
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.launch import place

# Weights, gradients and AdamW's two moments take 16 bytes a parameter in each process with "ddp": 2 GB for the small GPT-2.
SHARDED_FROM = 300_000_000  # parameters: GPT-2 medium and larger
# How long a process waits for the others: longer than the first one's analyses take, and than tokenizing a text.
PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """One process, to which all of this costs nothing. The loop asks it all the same, and knows of no other case."""

    rank: int = 0
    world: int = 1

    parallel = "none"
    sharded = False

    @property
    def first(self) -> bool:
        """The one that writes files, tells of progress, and analyses the model."""
        return self.rank == 0

    # What they say to each other: every process must ask the same, in the same order ------------------------------------

    def mean(self, value: Tensor) -> Tensor:
        """The mean of their tensors, on their device, which is not waited for."""
        return value

    def agree(self, number: int) -> int:
        """The largest of their numbers, the same for all. When it is there, each has come this far."""
        return number

    def from_first(self, number: int) -> int:
        """The first one's number."""
        return number

    @contextmanager
    def first_on_each_machine(self) -> Iterator[None]:
        """One process of each machine does what is in the block before the others do: they find what it has cached."""
        yield

    # What becomes of the model ------------------------------------------------------------------------------------------

    def spread(self, model: GPT2, compiled: bool) -> None:
        """Leave each process with its share of the model's weights. Before the optimizer is made, which is of those."""

    def wrap(self, loss: nn.Module) -> nn.Module:
        """The same pass, whose backward averages the gradient over the processes."""
        return loss

    def averaging(self, loss: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """The context of one micro-batch: only in the `last` of a step do the processes average what has added up."""
        return nullcontext()

    def norm(self, norm: Tensor) -> Tensor:
        """The norm of a whole gradient, of which each process has given that of its share."""
        return norm

    def whole(self, model: GPT2) -> GPT2:
        """The model with every weight in this process, to look at; it is no part of what trains."""
        return model

    def weights(self, model: GPT2) -> Mapping[str, Tensor]:
        """Its state dict, whole."""
        return model.state_dict()

    def put_weights(self, model: GPT2, weights: Mapping[str, Tensor]) -> None:
        """The reverse of `weights`."""
        model.load_state_dict(weights)

    def save_shards(self, tensors: Mapping[str, Tensor], run_dir: Path, step: int) -> dict[str, Path]:
        """Write each process's share of the optimizer's state; files by the names they will have. None unless sharded."""
        return {}


class Group(Processes):
    """Several, each with the whole model."""

    parallel = "ddp"

    def mean(self, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world

    def agree(self, number: int) -> int:
        largest = torch.tensor(number)  # on the CPU, by gloo: no GPU is waited for, and a dead process is noticed at once
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def from_first(self, number: int) -> int:
        told = torch.tensor(number)
        dist.broadcast(told, src=0)
        return int(told)

    @contextmanager
    def first_on_each_machine(self) -> Iterator[None]:
        is_first = place().local_rank == 0
        if not is_first:
            self.agree(0)
        yield
        if is_first:
            self.agree(0)

    def wrap(self, loss: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(loss, gradient_as_bucket_view=True)

    def averaging(self, loss: nn.Module, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else loss.no_sync()


class Sharded(Group):
    """Several, each with a share of every weight, its gradient and its moments; the whole of a block only while it computes."""

    parallel = "fsdp"
    sharded = True

    def spread(self, model: GPT2, compiled: bool) -> None:
        from interp_gpt2.training.sharding import shard

        shard(model, self.world, compiled)

    def wrap(self, loss: nn.Module) -> nn.Module:
        return loss

    def averaging(self, loss: nn.Module, last: bool) -> AbstractContextManager[Any]:
        loss.model.set_requires_gradient_sync(last)
        return nullcontext()

    def norm(self, norm: Tensor) -> Tensor:
        return norm.full_tensor()

    def whole(self, model: GPT2) -> GPT2:
        whole = GPT2(model.config, device="meta")
        whole.load_state_dict(self.weights(model), assign=True)
        return whole.train(model.training)

    def weights(self, model: GPT2) -> Mapping[str, Tensor]:
        return {name: weight.full_tensor() for name, weight in model.state_dict().items()}

    def put_weights(self, model: GPT2, weights: Mapping[str, Tensor]) -> None:
        from interp_gpt2.training.sharding import put_weights

        put_weights(model, weights)

    def save_shards(self, tensors: Mapping[str, Tensor], run_dir: Path, step: int) -> dict[str, Path]:
        from interp_gpt2.training.sharding import save_shards

        return save_shards(tensors, run_dir, step)


ALONE = Processes()


def processes_for(config: TrainConfig, group: Processes) -> Processes:
    """What `config.parallel` makes of the processes of a group. Raises ConfigError for what several cannot do."""
    if group.world == 1:
        return ALONE
    check_batch(config, group.world)
    parallel = config.parallel
    if parallel == "auto":
        parallel = "fsdp" if config.model.n_params >= SHARDED_FROM else "ddp"
    if parallel == "ddp":
        return Group(group.rank, group.world)
    for field, value in (("optimizer", "muon"), ("micro_batch", "auto")):
        if getattr(config, field) == value:
            raise ConfigError(
                f"{field}={value!r} needs whole matrices in every process, and with parallel='fsdp' each has a share; "
                "parallel='ddp' or another value would do"
            )
    return Sharded(group.rank, group.world)


# ---------------------------------------------------------------------------------------------------------------------
# Coming together, and leaving.


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The processes that `torchrun` has started, this one among them, for the length of the block; else this one alone.

    `device` as in the config: "cpu" or GPUs, of which each process takes its own. What was made of the model in the block
    must be out of reach when it ends: gloo's threads now and then abort a process that outlives its group.
    Raises ConfigError for a numbered GPU, ProcessLostError when another process ends.
    """
    here = place()
    if here.world == 1:
        yield ALONE
        return
    if ":" in device:
        raise ConfigError(f"device={device!r} is one GPU for {here.world} processes; 'cuda' gives each its own")
    gpus = device != "cpu" and torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(here.local_rank)
    ours = not dist.is_initialized()
    try:
        with _losses_named(here.world):
            if ours:
                _form_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
            yield Group(dist.get_rank(), dist.get_world_size())
    except ProcessLostError:  # there is no group left to end, and whoever hears of it ends too
        raise
    except BaseException as error:
        _forget_variables(error)
        if ours:
            _end_group()
        raise
    if ours:
        _end_group()


def _end_group() -> None:
    gc.collect()
    dist.destroy_process_group()


def _forget_variables(error: BaseException) -> None:
    """Let go of what the frames of a traceback hold, the model among it."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__


def _form_group(backend: str) -> None:
    store, rank, world = next(rendezvous("env://"))
    # What an earlier group of these processes left in the store would be taken for the addresses of this one.
    number = store.add(f"groups of {rank}", 1)
    store = dist.PrefixStore(f"group {number}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)


@contextmanager
def _losses_named(world: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        words = str(error)
        if not (isinstance(error, dist.DistError) or any(sign in words for sign in ("gloo", "NCCL", "TCPStore"))):
            raise
        reason = re.sub(r"^\[\S+\] ", "", words.strip()).split(". ")[0].splitlines()[0]  # without torch's source and advice
        raise ProcessLostError(
            f"another of the {world} processes has ended or cannot be reached ({reason}); its own last words say why; the same "
            "command with --resume goes on from the last checkpoint that can be resumed from"
        ) from error


def check_batch(config: TrainConfig, world: int) -> None:
    """Raises ConfigError unless every process gets as many sequences."""
    if config.batch_size % world:
        raise ConfigError(f"batch_size={config.batch_size} cannot be shared equally by {world} processes")
