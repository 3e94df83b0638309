"""The run a report is about, and what several of its sections read, computed once."""

import shlex
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from interp_gpt2.analysis.attention_patterns import HeadScores
from interp_gpt2.analysis.development import MIN_RISE, HeadCurve, best_head_curve
from interp_gpt2.analysis.head_weights import HeadComposition, HeadCopying
from interp_gpt2.analysis.neuron_activity import strongest_writers
from interp_gpt2.analysis.neuron_history import NeuronHistory, neuron_histories
from interp_gpt2.analysis.phase_changes import Detection, detect
from interp_gpt2.analysis.sequences import HEAD_SEQUENCES, Sequences, held_out, prompt_of, repeated_random
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.data.source import Source, text_in_tokens_of
from interp_gpt2.errors import AnalysisError, DataError
from interp_gpt2.report.inputs import context_width, inspected_steps, spread_steps, training_config
from interp_gpt2.report.probes import telling_neurons
from interp_gpt2.runs.foreign import ForeignRun
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import Failure, sweep
from interp_gpt2.tokenizers import Tokenizer
from interp_gpt2.training.config import TrainConfig

if TYPE_CHECKING:
    from pandas import DataFrame

SECTIONS = (
    "development", "loss", "loss_by_position", "head_scores", "lens", "attention", "probes", "neurons", "neuron_pages", "samples",
)  # fmt: skip
WORK = 1_500_000_000  # measured steps x parameters
LEAST_STEPS, MOST_STEPS = 12, 200
INSPECTED = 12
NEURONS_PER_LAYER, MOST_NEURONS = 6, 96  # with a page
NEURON_SEQUENCES = 64
HISTORY_STEPS = 8  # of a neuron
FALLBACK_PROMPT = "the cat sat on the mat and the cat sat "  # where the data is gone; the report shows it as the prompt


@dataclass(frozen=True)
class Subject:
    """The run in question, and what several sections read, computed once."""

    run: Run
    workers: int | Executor | None = None
    sections: tuple[str, ...] = SECTIONS
    also: tuple[str, ...] = ()  # panels that take long
    data: str | None = None  # a text to measure on, in place of what the run was trained on
    left_out: tuple[Failure, ...] = ()  # checkpoints that the run is looked at without

    @cached_property
    def steps(self) -> list[int]:
        return self.run.steps

    @cached_property
    def measured(self) -> list[int]:
        """The steps that are measured over training: all of a small model's, fewer of a large one's, even in log(1 + step)."""
        return spread_steps(self.steps, max(LEAST_STEPS, min(MOST_STEPS, WORK // max(1, self.run.config.n_params))))

    @cached_property
    def training(self) -> TrainConfig | None:
        """None for models that others trained."""
        return None if isinstance(self.run, ForeignRun) else training_config(self.run)

    @property
    def called(self) -> str:
        """What the command line calls the run."""
        return self.run.name if isinstance(self.run, ForeignRun) else str(self.run.path)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.run.tokenizer()

    @cached_property
    def n_ctx(self) -> int:
        return self.run.config.n_ctx

    @cached_property
    def source(self) -> Source:
        """What was given, else what the run was trained on. Raises DataError where that is gone or not known."""
        return self.run.source() if self.data is None else text_in_tokens_of(self.data, self.tokenizer)

    @cached_property
    def head_sequences(self) -> Sequences:
        try:
            return held_out(self.source, self.n_ctx, HEAD_SEQUENCES)
        except DataError:
            return repeated_random(self.run.config)

    @cached_property
    def head_analysis(self) -> HeadScores:
        """Raises AnalysisError for a model without heads."""
        if not self.run.config.n_layers:
            raise AnalysisError("a model of no layers has no heads")
        return HeadScores(self.head_sequences.inputs)

    @cached_property
    def head_table(self) -> "DataFrame":
        return self.sweep(self.head_analysis, steps=self.measured)

    @cached_property
    def weight_table(self) -> "DataFrame":
        """What heads do by their weights."""
        return self.sweep(HeadCopying(), HeadComposition(), steps=self.measured)

    @cached_property
    def induction(self) -> HeadCurve:
        """The highest induction score of any head. Raises AnalysisError for a model without heads."""
        return best_head_curve(self.head_table, "induction")

    @cached_property
    def detection(self) -> Detection:
        """Whether the induction score changed phase. Raises AnalysisError for fewer than 8 checkpoints."""
        curve = self.induction
        return detect(curve.steps, curve.values, curve.uniform, MIN_RISE)

    @cached_property
    def inspected(self) -> list[int]:
        """The steps that are shown one by one, lens, patterns, samples; closer where heads changed phase, if that is asked."""
        change = None
        if {"development", "head_scores"} & set(self.sections):
            with suppress(AnalysisError):
                change = self.detection.change
        window = None if change is None else (change.step - change.width / 2, change.step + change.width / 2)
        return inspected_steps(self.steps, window, INSPECTED)

    @cached_property
    def histories(self) -> tuple[NeuronHistory, ...]:
        """Of each layer the neurons that move the stream most, and those that best tell a label: those that have pages.

        Raises AnalysisError for a model without neurons, DataError where the data is gone.
        """
        config = self.run.config
        if not config.n_layers or config.attn_only:
            raise AnalysisError("the model has no MLP, and so no neurons")
        windows = Windows.of(self.neuron_sequences.inputs)
        neurons = strongest_writers(self.run.model(self.steps[-1]), windows, self.neurons_per_layer)
        with suppress(AnalysisError):  # no text: nothing to tell
            neurons += telling_neurons(self.run, self.source).values()
        steps, width = spread_steps(self.inspected, HISTORY_STEPS), context_width(self.tokenizer)
        return neuron_histories(self.run.model, steps, windows, sorted(set(neurons)), width=width)

    @cached_property
    def neuron_sequences(self) -> Sequences:
        return held_out(self.source, self.n_ctx, NEURON_SEQUENCES)

    @property
    def neurons_per_layer(self) -> int:
        return max(1, min(NEURONS_PER_LAYER, MOST_NEURONS // max(1, self.run.config.n_layers)))

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
        given = () if self.data is None else ("--data", self.data)
        given += ("--also", ",".join(self.also)) if self.also and section == "development" else ()
        return self.command("report", self.called, "--only", section, *given)
