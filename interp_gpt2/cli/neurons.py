"""`interp-gpt2 neurons`: pages of a run's neurons, with their history."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from interp_gpt2.cli.parse import UsageError, option

if TYPE_CHECKING:
    from interp_gpt2.analysis.neuron_history import NeuronHistory
    from interp_gpt2.analysis.windows import Windows
    from interp_gpt2.model import GPT2

EXAMPLES = (
    "interp-gpt2 neurons demo-text",
    "interp-gpt2 neurons demo-text --layer 2 --count 50",
    "interp-gpt2 neurons demo-text --layer 2 --neuron 17",
)

STEPS = 12  # of the history


@dataclass(frozen=True)
class Neurons:
    """Pages of neurons: where each is active, how often, which tokens it promotes, and how it came to be so.

    Of each layer the neurons that move the residual stream most, or those asked for, on the run's held-out data, at up to
    12 checkpoints. Writes a page for each, linked to its neighbours, and an index.
    """

    source: Annotated[tyro.conf.Positional[str], option("RUN")]
    """A run, or one of its checkpoints."""
    layer: Annotated[int | None, option("N")] = None
    """Neurons of this layer only."""
    neuron: Annotated[int | None, option("N")] = None
    """This neuron of the layer only."""
    step: Annotated[int | None, option("STEP")] = None
    """The last checkpoint of the history; the run's last unless given."""
    count: Annotated[int, option("N")] = 10
    """How many neurons of each layer."""
    sequences: Annotated[int, option("N")] = 256
    """How many sequences to look at them on."""
    out: Annotated[Path, option("DIR")] = Path("neurons")
    """Where to write."""

    def run(self) -> None:
        from interp_gpt2.analysis.neuron_history import neuron_histories
        from interp_gpt2.analysis.sequences import held_out
        from interp_gpt2.analysis.windows import Windows
        from interp_gpt2.cli.where import find_run, find_step
        from interp_gpt2.report.inputs import context_width, spread_steps
        from interp_gpt2.views.neurons import save_neuron_pages

        if self.neuron is not None and self.layer is None:
            raise UsageError("--neuron needs --layer, the layer it is in")
        if self.count < 1 or self.sequences < 1:
            raise UsageError("--count and --sequences must be at least 1")
        run, implied = find_run(self.source)
        last = find_step(run, self.step, implied)
        model, tokenizer = run.model(last), run.tokenizer()
        if self.layer is not None:
            _check_layer(model, self.layer)
        sequences = held_out(run.source(), run.config.n_ctx, self.sequences)
        windows = Windows.of(sequences.inputs)
        neurons = self._neurons(model, windows)
        steps = spread_steps([step for step in run.steps if step <= last], STEPS)
        histories = neuron_histories(run.model, steps, windows, neurons, width=context_width(tokenizer))
        print(f"{run.name}, step {last:,}, on {sequences.are}\n")
        print(listed(histories, tokenizer.labels))
        print(f"\nwrote {save_neuron_pages(histories, tokenizer.labels, self.out, run.name, sequences.are)}")

    def _neurons(self, model: "GPT2", windows: "Windows") -> list[tuple[int, int]]:
        from interp_gpt2.analysis.neuron_activity import strongest_writers

        if self.neuron is not None:
            return [(self.layer, self.neuron)]
        strongest = strongest_writers(model, windows, self.count)
        return [at for at in strongest if self.layer is None or at[0] == self.layer]


def _check_layer(model: "GPT2", layer: int) -> None:
    if not 0 <= layer < model.config.n_layers:
        raise UsageError(f"there is no layer {layer}; the model has {model.config.n_layers}, from 0")


def listed(histories: tuple["NeuronHistory", ...], labels: list[str]) -> str:
    """A line for each neuron."""
    from interp_gpt2.cli.tables import cut, table
    from interp_gpt2.views.neuron_charts import number, share

    rows = []
    for history in histories:
        record = history.last
        tokens = "  ".join(cut(labels[token], 12) for token, _ in record.effect.promoted[:5])
        rows.append([history.label, share(record.frequency), number(record.highest), number(record.effect.kurtosis), tokens])
    lines = table(["", "fires", "highest", "kurtosis"], [row[:-1] for row in rows]).splitlines()
    return "\n".join([lines[0] + "  promotes", *(line + "  " + row[-1] for line, row in zip(lines[1:], rows, strict=True))])
