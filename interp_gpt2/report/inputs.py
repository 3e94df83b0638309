"""What a report asks of a run: the config it was trained with, and which of its steps to show."""

from collections.abc import Sequence

import torch

from interp_gpt2.runs.run import Run
from interp_gpt2.training.config import TrainConfig


def training_config(run: Run) -> TrainConfig:
    """The resolved config the run was trained with."""
    return TrainConfig.from_dict(run.settings["config"])


def spread_steps(steps: Sequence[int], n: int) -> list[int]:
    """`n` of the steps, both ends included, as even as they come in log(1 + step): learning is fast at first."""
    if len(steps) <= n:
        return list(steps)
    wanted = torch.linspace(0, 1, n, dtype=torch.float64) * torch.tensor(float(steps[-1] + 1)).log()
    at = torch.tensor([float(step + 1) for step in steps], dtype=torch.float64).log()
    return sorted({steps[int((at - place).abs().argmin())] for place in wanted})
