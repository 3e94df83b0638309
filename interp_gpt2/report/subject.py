"""The run a report is about, and what several of its sections read, computed once."""

import shlex
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from interp_gpt2.analysis.attention_patterns import HeadScores
from interp_gpt2.analysis.sequences import HEAD_SEQUENCES, Sequences, held_out, prompt_of, repeated_random
from interp_gpt2.data.source import Source
from interp_gpt2.errors import DataError
from interp_gpt2.report.inputs import training_config
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import sweep
from interp_gpt2.tokenizers import Tokenizer
from interp_gpt2.training.config import TrainConfig

if TYPE_CHECKING:
    from pandas import DataFrame

FALLBACK_PROMPT = "the cat sat on the mat and the cat sat "  # where the data is gone; the report shows it as the prompt


@dataclass(frozen=True)
class Subject:
    """The run in question, and what several sections read, computed once."""

    run: Run
    workers: int | Executor | None = None

    @cached_property
    def steps(self) -> list[int]:
        return self.run.steps

    @cached_property
    def training(self) -> TrainConfig:
        return training_config(self.run)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.run.tokenizer()

    @cached_property
    def n_ctx(self) -> int:
        return self.run.config.n_ctx

    @cached_property
    def source(self) -> Source:
        """Raises DataError where the data is gone."""
        return self.run.source()

    @cached_property
    def head_sequences(self) -> Sequences:
        try:
            return held_out(self.source, self.n_ctx, HEAD_SEQUENCES)
        except DataError:
            return repeated_random(self.run.config)

    @cached_property
    def head_table(self) -> "DataFrame":
        return self.sweep(HeadScores(self.head_sequences.inputs))

    @cached_property
    def prompt(self) -> str:
        try:
            return prompt_of(self.source, self.n_ctx)
        except DataError:
            return FALLBACK_PROMPT

    def sweep(self, *analyses: object, steps: list[int] | None = None) -> "DataFrame":
        return sweep(self.run, list(analyses), steps, self.workers)

    def command(self, *words: object) -> str:
        """The command line that makes a figure again, quoted for a shell."""
        return shlex.join(["interp-gpt2", *map(str, words)])

    def section_command(self, section: str) -> str:
        return self.command("report", self.run.path, "--only", section)
