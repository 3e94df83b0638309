"""What a report asks of a run: the config it was trained with, and which of its steps to show."""

from collections.abc import Sequence

import torch

from interp_gpt2.runs.run import Run
from interp_gpt2.tokenizers import Tokenizer
from interp_gpt2.training.config import TrainConfig

CONTEXT = {"gpt2": 32}  # tokens of a neuron's context; more where a token is a character or a byte
OTHER_CONTEXT = 72


def context_width(tokenizer: Tokenizer) -> int:
    """How many tokens around a neuron's peak make a line to read."""
    return CONTEXT.get(tokenizer.kind, OTHER_CONTEXT)


def training_config(run: Run) -> TrainConfig:
    """The resolved config the run was trained with."""
    return TrainConfig.from_dict(run.settings["config"])


def inspected_steps(steps: Sequence[int], change: tuple[float, float] | None, n: int) -> list[int]:
    """About `n` steps to look at one by one: spread over training, and around a change from `change[0]` to `change[1]`.

    Of the change the last checkpoint before it, the one nearest to its middle and the first after it are among them.
    """
    if change is None or len(steps) <= n:
        return spread_steps(steps, n)
    low, high = change
    before = [step for step in steps if step <= low]
    after = [step for step in steps if step >= high]
    around = {*before[-1:], min(steps, key=lambda step: abs(step - (low + high) / 2)), *after[:1]}
    return sorted({*spread_steps(steps, n - len(around)), *around})


def spread_steps(steps: Sequence[int], n: int) -> list[int]:
    """`n` of the steps, both ends included, as even as they come in log(1 + step): learning is fast at first."""
    if len(steps) <= n:
        return list(steps)
    wanted = torch.linspace(0, 1, n, dtype=torch.float64) * torch.tensor(float(steps[-1] + 1)).log()
    at = torch.tensor([float(step + 1) for step in steps], dtype=torch.float64).log()
    return sorted({steps[int((at - place).abs().argmin())] for place in wanted})
