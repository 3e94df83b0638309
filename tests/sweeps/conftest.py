"""Runs of a few tiny checkpoints, and analyses that go wrong on purpose."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from interp_gpt2.analysis.rows import Analysis, Row
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import save_checkpoint
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import create_run
from interp_gpt2.tokenizers import CharTokenizer

CONFIG = GPT2Config(n_layers=2, n_heads=2, d_model=8, d_vocab=11, n_ctx=8)
LETTERS = CharTokenizer("abcdefghijk")


def first_weight(step: int) -> float:
    return float(GPT2(CONFIG, seed=step).W_E[0, 0].detach())


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    def make(steps: list[int], name: str = "tiny") -> Run:
        run = create_run(tmp_path / name, {"config": {"seed": 3}})
        for step in steps:
            add(run, step)
        return run

    return make


def add(run: Run, step: int, config: GPT2Config = CONFIG, tokenizer: CharTokenizer = LETTERS) -> None:
    save_checkpoint(run.path, step, GPT2(config, seed=step).state_dict(), config, 100 * step, tokenizer)


def truncate(run: Run, step: int) -> None:
    weights = run.checkpoint(step) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


@dataclass(frozen=True, eq=False)
class Norm(Analysis):
    """The norm of W_E; of the model whose first weight is `of`, something else happens."""

    of: float | None = None
    does: str = "refuse"
    once: str | None = None
    name: str = "norm"

    def __call__(self, model: GPT2) -> list[Row]:
        if float(model.wte.weight[0, 0]) == self.of and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            if self.does == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.does == "break":
                return [{"metric": "x", "value": 1 / 0}]
            raise AnalysisError("this model is refused")
        return [{"metric": "norm", "value": model.wte.weight.norm()}]


@dataclass(frozen=True, eq=False)
class Slow(Analysis):
    """A second of work, which leaves a file when it begins."""

    began: str
    seconds: float = 1.0
    name: str = "slow"

    def __call__(self, model: GPT2) -> list[Row]:
        import time

        (Path(self.began) / f"{time.monotonic_ns()}-{os.getpid()}").touch()
        time.sleep(self.seconds)
        return [{"metric": "first", "value": torch.as_tensor(float(model.wte.weight[0, 0]))}]
