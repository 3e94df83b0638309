"""The report's probes and neurons: what can be read, from held-out text, off the streams and the MLPs of a text model."""

from concurrent.futures import Executor
from typing import TYPE_CHECKING

from interp_gpt2.analysis.logit_lens import stream_labels
from interp_gpt2.analysis.neuron_probing import BestNeurons, Probes, max_activating_contexts
from interp_gpt2.analysis.probe_sets import ProbeSet, probe_set
from interp_gpt2.data.source import Source
from interp_gpt2.errors import AnalysisError
from interp_gpt2.report import schema
from interp_gpt2.report.inputs import spread_steps
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import sweep
from interp_gpt2.tokenizers import Tokenizer

if TYPE_CHECKING:
    from pandas import DataFrame

PROBE_STEPS = 5
CONTEXTS = 4
CONTEXT_TOKENS = 40


def text_probe_set(run: Run, source: Source) -> ProbeSet:
    """Held-out text with labels. Raises AnalysisError for data that is no text, or too short."""
    documents = source.validation_documents()
    if not documents:
        raise AnalysisError(f"{source.name} is no text: its tokens have no labels such as inside quotes")
    return probe_set(documents, source.tokenizer, run.config.n_ctx)


def collect_probes(run: Run, source: Source, workers: int | Executor | None, command: str) -> schema.Probes:
    """Labels that need context at several steps; those that the current character tells, at the last one, for comparison."""
    data = text_probe_set(run, source)
    contextual = tuple(name for name in data.names if data.label(name).contextual)
    simple = tuple(name for name in data.names if name not in contextual)
    steps = spread_steps(run.steps, PROBE_STEPS)
    tables = {}
    for names, at in ((contextual, steps), (simple, steps[-1:])):
        if names:
            table = sweep(run, Probes(data, names), at, workers)
            tables |= {name: table[table.label == name] for name in names}
    if not tables:
        raise AnalysisError("; ".join(f"{name}: {reason}" for name, reason in data.skipped))
    layers = list(stream_labels(run.config.n_layers))
    n_test = int(data.lengths[data.is_test].sum())
    return schema.Probes(
        command=command,
        measured_on=f"{n_test:,} held-out tokens of {source.name}, from documents other than those the probes were trained on",
        steps=steps,
        layers=["embed" if layer == "embed" else f"layer {layer[1:]}" for layer in layers],
        probes=[_probe(name, data, table, steps, len(layers)) for name, table in tables.items()],
    )


def _probe(name: str, data: ProbeSet, table: "DataFrame", steps: list[int], n_layers: int) -> schema.Probe:
    once = {row.metric: row for row in table[table.hook_point.isna()].itertuples()}
    of = data.label(name)
    labelled = (of.labels >= 0) & ~data.is_test[:, None]
    return schema.Probe(
        name=name,
        measures=of.measures,
        n_train=int(labelled.sum()),
        n_test=int(once["probe_accuracy_majority"].n),
        accuracy=max(value for value in _by_step_and_layer(table, "probe_accuracy", steps, n_layers)[-1] if value is not None),
        majority_accuracy=float(once["probe_accuracy_majority"].value),
        auroc=_by_step_and_layer(table, "probe_auroc", steps, n_layers),
        shuffled=_by_step_and_layer(table, "probe_auroc_shuffled", steps, n_layers),
        majority=float(once["probe_auroc_majority"].value),
        current_token=float(once["probe_auroc_current_token"].value),
        last_two_tokens=float(once["probe_auroc_last_two_tokens"].value),
        low=_by_step_and_layer(table, "probe_auroc", steps, n_layers, "low"),
        high=_by_step_and_layer(table, "probe_auroc", steps, n_layers, "high"),
    )


def _by_step_and_layer(
    table: "DataFrame", metric: str, steps: list[int], n_layers: int, column: str = "value"
) -> list[list[float | None]]:
    """(step, layer); None at steps where this label was not probed."""
    by_step = table[table.metric == metric].groupby("step")[column].apply(list)
    return [by_step[step] if step in by_step.index else [None] * n_layers for step in steps]


def collect_neurons(run: Run, source: Source, command: str) -> schema.Neurons:
    """For each label that needs context, the neuron of the last checkpoint that best tells it, and where it is most active."""
    data, step = text_probe_set(run, source), run.steps[-1]
    table, model = _neuron_table(run, data), run.model(step)
    neurons = []
    for name, (layer, neuron) in _telling(table, data).items():
        found = table[(table.metric == "neuron_auroc") & (table.label == name) & (table.layer == layer)].iloc[0]
        beside = table[(table.label == name) & (table.layer == layer)].set_index("metric").value
        active = max_activating_contexts(model, data, layer, neuron, CONTEXTS, CONTEXT_TOKENS)
        contexts = [_context(context, source.tokenizer) for context in active.contexts]
        yardsticks = (int(beside["neuron_sign"]), float(found.low), float(found.high), float(beside["neuron_auroc_shuffled"]))
        neurons.append(schema.Neuron(active.label, name, float(found.value), int(found.n), contexts, *yardsticks))
    chosen_on = "chosen on half of the held-out documents, its AUROC measured on the other half"
    return schema.Neurons(command, step, chosen_on, neurons)


def telling_neurons(run: Run, source: Source) -> dict[str, tuple[int, int]]:
    """The (layer, neuron) of the last checkpoint that best tells each label that needs context. Raises AnalysisError for none."""
    data = text_probe_set(run, source)
    return _telling(_neuron_table(run, data), data)


def _neuron_table(run: Run, data: ProbeSet) -> "DataFrame":
    names = tuple(name for name in data.names if data.label(name).contextual)
    if not names:
        raise AnalysisError("; ".join(f"{name}: {reason}" for name, reason in data.skipped))
    return sweep(run, BestNeurons(data, names), [run.steps[-1]], 1)


def _telling(table: "DataFrame", data: ProbeSet) -> dict[str, tuple[int, int]]:
    """Chosen on the training documents, so that the test AUROC shown is not the best of many."""
    found = {}
    for name in (name for name in data.names if data.label(name).contextual):
        on_train = table[(table.metric == "neuron_auroc_train") & (table.label == name)]
        layer = int(on_train.loc[on_train.value.idxmax(), "layer"])
        best = table[(table.metric == "neuron_auroc") & (table.label == name) & (table.layer == layer)].iloc[0]
        found[name] = (layer, int(best.neuron))
    return found


def _context(context: object, tokenizer: Tokenizer) -> schema.Context:
    labels = [tokenizer.labels[token] for token in context.tokens]
    source = f"document {context.document}, position {context.position}"
    return schema.Context(labels, list(context.activations), context.peak, source)
