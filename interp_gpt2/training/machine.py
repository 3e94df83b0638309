"""What training runs on: the device, the threads, the processes, and in which precision it multiplies."""

import gc
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import interp_gpt2
from interp_gpt2.errors import ConfigError
from interp_gpt2.training.bf16 import Bf16Linears
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.distributed import ALONE, Processes, processes_for

# Below this width, casting costs a CPU more than its faster multiplication saves. Measured on one Zen 5 core, forward and
# backward: d_model 32, 2.6 ms in fp32 and 3.4 in bf16; 64, 47 and 28; 128, 149 and 80; 384, 1,523 and 621.
SMALLEST_D_MODEL_FOR_BF16 = 64


@dataclass(frozen=True)
class Machine:
    """Where and how a config is carried out here: its "auto" fields decided."""

    device: torch.device
    precision: Literal["fp32", "bf16"]
    threads: int
    compiled: bool
    micro_batch: int | None = None  # sequences at once; None: the whole batch
    processes: Processes = ALONE

    @classmethod
    def for_config(cls, config: TrainConfig, group: Processes = ALONE) -> "Machine":
        """The machine that `config` asks for, and its process in `group`. Raises ConfigError for a device that is not here."""
        device = _device(config.device)
        precision = config.precision
        if precision == "auto":
            wide = config.model.d_model >= SMALLEST_D_MODEL_FOR_BF16
            fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else device.type == "cpu" and cpu_has_bf16()
            precision = "bf16" if fast and (wide or device.type == "cuda") else "fp32"
        processes = processes_for(config, group)
        parts = isinstance(config.micro_batch, int) and config.micro_batch < config.batch_size // processes.world
        micro_batch = config.micro_batch if parts else None
        return cls(device, precision, config.threads or torch.get_num_threads(), config.compile, micro_batch, processes)

    def computing(self) -> AbstractContextManager[Any]:
        """The context for a forward pass in this precision. Weights, residual stream, layer norms and loss stay float32."""
        if self.precision == "fp32":
            return nullcontext()
        if self.device.type == "cpu" and not self.compiled:
            return Bf16Linears()
        return torch.autocast(self.device.type, torch.bfloat16)

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a resumed run to repeat the uninterrupted one bit for bit."""
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else cpu_facts().get("model name", platform.machine())
        )
        parts = {} if self.micro_batch is None else {"micro_batch": self.micro_batch}
        return {
            "interp_gpt2": interp_gpt2.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "platform": sys.platform,
            "device": f"{self.device}: {name}",
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "precision": self.precision,
            "compiled": self.compiled,
            "threads": self.threads,
            "processes": self.processes.world,
            "parallel": self.processes.parallel,
            **parts,
        }


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's three ways to say that it is not here
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device={wanted!r} cannot be used here ({reason}); 'auto' takes a GPU when there is one, else the CPU"
        ) from error
    return device


@lru_cache(maxsize=1)
def cpu_facts() -> Mapping[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def cpu_has_bf16() -> bool:
    """Does the processor multiply bfloat16 itself? Where torch imitates it, it is slower than float32."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpu_facts().get("flags", "").split())


@contextmanager
def cpu_threads(n: int) -> Iterator[None]:
    """torch computes on `n` threads during the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """No garbage collection during the block: it would pause a step to look through everything that lives as long as training.

    What exists when the block begins is set aside, so that a `gc.collect()` in it is quick. Reference counts free tensors
    as ever. Afterwards all is as before.
    """
    enabled, frozen = gc.isenabled(), gc.get_freeze_count()
    if torch.cuda.is_initialized():
        gc.collect()  # a dead model in a cycle would keep its GPU memory for as long as this one trains
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not frozen:  # otherwise somebody set things aside before, and would find them back in circulation
            gc.unfreeze()
        if enabled:
            gc.enable()
