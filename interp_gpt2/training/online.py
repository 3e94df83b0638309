"""What is measured of the model while it trains, besides its loss: registered analyses, and texts sampled at checkpoints.

Both are a function of the weights, the run's data and (seed, step) alone, and are logged before the checkpoint of their
step: a run that goes on from it finds them written, once.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp_gpt2.analysis.registry import analysis_named
from interp_gpt2.analysis.rows import Analysis
from interp_gpt2.analysis.sequences import prompt_of
from interp_gpt2.data.batches import rng_at
from interp_gpt2.data.source import Source
from interp_gpt2.generation import generate
from interp_gpt2.model import GPT2
from interp_gpt2.runs.metrics import ONLINE, SAMPLES, append_metrics, read_metrics
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import COLUMNS, plain_row, typed
from interp_gpt2.tokenizers import Tokenizer
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.events import Analysed

if TYPE_CHECKING:
    from pandas import DataFrame

SAMPLING = 3  # its stream of random numbers, beside those of batches (data.batches) and dropout
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Online:
    """The analyses and the prompt of a config, made before training begins so that what cannot work is refused then."""

    analyses: tuple[Analysis, ...]
    prompt: str
    tokenizer: Tokenizer

    @classmethod
    def of(cls, config: TrainConfig, source: Source) -> "Online":
        """Raises AnalysisError for a name that is not registered, TokenizerError for a prompt that cannot be encoded."""
        analyses = tuple(analysis_named(name, source, config.model.n_ctx) for name in config.online)
        prompt = ""
        if config.sample_tokens:
            prompt = config.sample_prompt or prompt_of(source, config.model.n_ctx)
            source.tokenizer.encode(prompt)
        return cls(analyses, prompt, source.tokenizer)

    def analyse(self, model: GPT2, run: Run, config: TrainConfig, step: int) -> list[Analysed]:
        """Add a line of online.jsonl for each analysis of the model as it is, in eval mode and float32: its rows, its cost."""
        done = []
        for analysis in self.analyses:
            began = time.perf_counter()
            with evaluating(model):
                rows = [plain_row(row, analysis) for row in analysis(model)]
            seconds = round(time.perf_counter() - began, 4)
            where = {"step": step, "tokens": step * config.tokens_per_step, "analysis": analysis.name}
            append_metrics(run.path, where | {"seconds": seconds, "rows": rows}, ONLINE)
            done.append(Analysed(step, analysis.name, seconds))
        return done

    def sample(self, model: GPT2, run: Run, config: TrainConfig, step: int) -> None:
        """Add a line of samples.jsonl: what the model makes of the prompt, drawn by (seed, step)."""
        prompt = torch.tensor([self.tokenizer.encode(self.prompt)], device=model.device)
        seed = int(rng_at(config.seed, step, SAMPLING).integers(2**63))
        with evaluating(model):
            text = generate(model, prompt, config.sample_tokens, TEMPERATURE, seed=seed)[0, prompt.shape[1] :]
        row = {"step": step, "prompt": self.prompt, "text": self.decoded(text), "temperature": TEMPERATURE}
        append_metrics(run.path, row, SAMPLES)

    def decoded(self, tokens: Tensor) -> str:
        return self.tokenizer.decode(tokens.tolist())


@contextmanager
def evaluating(model: GPT2) -> Iterator[None]:
    """Without gradients and dropout; afterwards the model is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def online_table(run: Run) -> "DataFrame":
    """The rows of every analysis that was logged while `run` trained, in the columns of a sweep.

    At a step with a checkpoint they are those of `sweep(run, analysis_named(name, run.source(), run.config.n_ctx))`.
    """
    import pandas

    records = []
    for line in read_metrics(run.path, ONLINE):
        where = {"run": run.name, "seed": run.seed, "step": line["step"], "tokens": line["tokens"], "analysis": line["analysis"]}
        records += [where | row for row in line["rows"]]
    return typed(pandas.DataFrame(records, columns=list(COLUMNS)))
