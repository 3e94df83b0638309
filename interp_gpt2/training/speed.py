"""How fast training is and what it uses, since the last row of metrics."""

import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.flops import (
    MeasuredMatmul,
    causal_flops_per_token,
    datasheet_flops,
    measured_matmul,
    palm_flops_per_token,
)
from interp_gpt2.training.machine import Machine

# Keys of a row that two runs of the same config do not share.
MEASURED = ("tokens_per_s", "mfu_palm", "mfu_causal", "peak_memory_bytes", "data_share")


def flops_facts(config: TrainConfig, machine: Machine) -> dict[str, Any]:
    """For run.json: operations per token, and the speeds that a utilisation holds them against."""
    matmul = measured_matmul(machine.device, machine.precision, machine.threads)
    return {
        "palm_per_token": palm_flops_per_token(config.model),
        "causal_per_token": causal_flops_per_token(config.model),
        "datasheet_per_s": datasheet_flops(device_name(machine.device), machine.precision),
        "measured_matmul_per_s": matmul.flops_per_s,
        "measured_matmul_size": matmul.size,
        "measuring_seconds": matmul.seconds,
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()


class Meter:
    """A stopwatch for steps; what is neither reading data nor computing updates is left out of it."""

    def __init__(self, config: TrainConfig, machine: Machine) -> None:
        self.config, self.device, self.world = config, machine.device, machine.processes.world
        self.matmul: MeasuredMatmul = measured_matmul(machine.device, machine.precision, machine.threads)
        self.datasheet = datasheet_flops(device_name(machine.device), machine.precision)
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begin anew: after `step` updates nothing has been used."""
        self.step, self.read_seconds = step, 0.0
        self.began = time.perf_counter()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What happens in the block is getting a batch."""
        began = time.perf_counter()
        yield
        self.read_seconds += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in the block is not training."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def row(self, step: int) -> dict[str, Any]:
        """Of the steps since `restart`, those of MEASURED that are known here. Empty if there was no step.

        `tokens_per_s`; `mfu_palm`, the PaLM formula's operations over the datasheet's peak (absent where there is none);
        `mfu_causal`, the causal operations over the measured product's speed; `peak_memory_bytes` of the process, or of
        its tensors on the GPU; `data_share`, the part of the time in which the loop waited for batches. Of several processes
        `tokens_per_s` is that of all together, utilisation that of each on average, the rest that of the first.
        """
        if step <= self.step:
            return {}
        seconds = time.perf_counter() - self.began
        speed = (step - self.step) * self.config.tokens_per_step / seconds
        model = self.config.model
        row = {"tokens_per_s": round(speed, 1)}
        speed /= self.world  # of one device
        if self.datasheet is not None:
            row["mfu_palm"] = round(speed * palm_flops_per_token(model) / self.datasheet, 4)
        row["mfu_causal"] = round(speed * causal_flops_per_token(model) / self.matmul.flops_per_s, 4)
        memory = peak_memory(self.device)
        if memory is not None:
            row["peak_memory_bytes"] = memory
        row["data_share"] = round(min(1.0, self.read_seconds / seconds), 4)
        return row


def peak_memory(device: torch.device) -> int | None:
    """The most memory in use so far, in bytes: tensors on a GPU, else all of this process. None where that is not told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
