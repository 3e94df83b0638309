"""What became of a neuron over training: where it is active, what it writes, and when it was what it is at the end.

At each step: how often it fires, the histogram of its activations, its top contexts and samples from further down (maxima
alone make a neuron look purer than it is: Bolukbasi et al. 2021, "An Interpretability Illusion for BERT"), and the tokens
whose logits its output weights raise and lower. Beside them, how like the last step's neuron it already was.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.activations.store import ActivationStore
from interp_gpt2.analysis.neuron_probing import Context, context_at, top_contexts
from interp_gpt2.analysis.rows import Analysis, Row
from interp_gpt2.analysis.windows import Batch, Windows, neuron_layers
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

QUANTILES = (0.999, 0.99, 0.95, 0.75, 0.5, 0.25)

_BINS = 40
_NEURONS_AT_ONCE = 64


@dataclass(frozen=True)
class LogitEffect:
    """What a neuron's output weights do to the logits, per unit of activation: (token, effect), strongest first.

    Effects are less their mean over the vocabulary, which softmax ignores, and before the division by the final layer norm's
    scale. `std` is over the vocabulary; `by_chance` the largest effect that a random direction of this std is expected to
    have; `kurtosis` 0 for such a direction, and large when a few tokens stand out.
    """

    promoted: tuple[tuple[int, float], ...]
    suppressed: tuple[tuple[int, float], ...]
    std: float
    kurtosis: float
    by_chance: float


@dataclass(frozen=True)
class Quantile:
    """A place whose activation is the `quantile` of all of them."""

    quantile: float
    context: Context


@dataclass(frozen=True)
class NeuronRecord:
    """One neuron at one step. `frequency` is the share of the `n` tokens on which its activation is above 0.

    `counts` are of activations between `edges`. `input_cosine` and `output_cosine` compare its weights, and `correlation`
    (NaN where either never changes) its activations on the same tokens, with the last step's: 1 there. Random weights have
    cosines of 0 +- 1 / sqrt(d_model).
    """

    step: int
    n: int
    frequency: float
    mean: float
    std: float
    lowest: float
    highest: float
    counts: tuple[int, ...]
    edges: tuple[float, ...]
    top: tuple[Context, ...]
    quantiles: tuple[Quantile, ...]
    effect: LogitEffect
    input_cosine: float
    output_cosine: float
    correlation: float


@dataclass(frozen=True)
class NeuronHistory:
    """A neuron's records, the earliest step first. `d_model` is the yardstick of its cosines."""

    kind: ClassVar[str] = "neuron"

    layer: int
    neuron: int
    records: tuple[NeuronRecord, ...]
    d_model: int

    @property
    def label(self) -> str:
        return f"L{self.layer}N{self.neuron}"

    @property
    def place(self) -> str:
        """What it is one of."""
        return f"Layer {self.layer}"

    @property
    def last(self) -> NeuronRecord:
        return self.records[-1]


def neuron_histories(
    load: Callable[[int], GPT2],
    steps: Sequence[int],
    windows: Windows | ActivationStore,
    neurons: Sequence[tuple[int, int]],
    n_contexts: int = 6,
    width: int = 32,
) -> tuple[NeuronHistory, ...]:
    """The history of each (layer, neuron) over `steps`, of which `load` gives the models: `run.model` does.

    Each model is loaded once, the last step's first; all neurons are read in one pass of each, or, given a store of these
    models' `mlp.post`, from there, on its texts. Contexts are `n_contexts` windows' peaks from distinct documents, `width`
    tokens each; kept in memory are two activations a token for each neuron.

    Raises AnalysisError for a neuron the model does not have, no steps, or an activation that is not finite; StoreError for
    a store of other models.
    """
    if not steps or not neurons:
        raise AnalysisError(f"{len(steps)} steps and {len(neurons)} neurons; a history needs at least one of each")
    chosen = list(dict.fromkeys(neurons))
    texts = Windows.of_store(windows) if isinstance(windows, ActivationStore) else windows
    records = unit_records(lambda step: _neurons(load(step), step, windows, chosen), steps, texts, (n_contexts, width))
    return tuple(NeuronHistory(*at, its, d_model) for at, (its, d_model) in zip(chosen, records, strict=True))


@dataclass(frozen=True, eq=False)
class Units:
    """Some units at one step: activations at every real token, the weights that they read and write with, and what the latter
    do to the logits. Neurons, or what else reads and writes as they do. `weights_in` is NaN where there are none.
    """

    activations: Float[Tensor, "unit token"]
    weights_in: Float[Tensor, "unit d_model"]
    weights_out: Float[Tensor, "unit d_model"]
    effects: list[LogitEffect]

    def __post_init__(self) -> None:
        if not self.activations.isfinite().all():
            raise AnalysisError("an activation is not finite; has the model diverged?")

    def records(self, windows: Windows, step: int, last: "Units", shown: tuple[int, int]) -> Iterable[NeuronRecord]:
        """Each unit's record. `shown` is how many contexts, and how many tokens of each."""
        cosines = [
            torch.cosine_similarity(mine, its, dim=1).tolist()
            for mine, its in ((self.weights_in, last.weights_in), (self.weights_out, last.weights_out))
        ]
        correlations = row_correlations(self.activations, last.activations).tolist()
        for i, values in enumerate(self.activations):
            like_last = cosines[0][i], cosines[1][i], correlations[i]
            yield _record(step, values, windows, shown, self.effects[i], like_last)


def unit_records(
    units: Callable[[int], Units], steps: Sequence[int], windows: Windows, shown: tuple[int, int]
) -> list[tuple[tuple[NeuronRecord, ...], int]]:
    """For each unit its records, the earliest step first, and d_model. `units` gives the same ones at every step."""
    found: list[list[NeuronRecord]] = []
    last: Units | None = None
    for step in sorted(set(steps), reverse=True):
        try:
            at = units(step)
        except AnalysisError as error:
            raise AnalysisError(f"step {step}: {error}") from error
        last = last or at
        found.insert(0, list(at.records(windows, step, last, shown)))
    return [(its, last.weights_out.shape[1]) for its in zip(*found, strict=True)]


def _neurons(model: GPT2, step: int, windows: Windows | ActivationStore, neurons: list[tuple[int, int]]) -> Units:
    check_neurons(model, neurons)
    if isinstance(windows, ActivationStore):
        stored = None if windows.steps == [None] else step  # of one model, outside a run
        windows.check(model, stored)
        activations = _columns(windows.layers("mlp.post", stored), len(windows), neurons)
    else:
        activations = neuron_activations(model, windows, neurons)
    blocks = [(model.blocks[layer].mlp, neuron) for layer, neuron in neurons]
    weights_in = torch.stack([mlp.fc.weight[neuron] for mlp, neuron in blocks])
    weights_out = torch.stack([mlp.proj.weight[:, neuron] for mlp, neuron in blocks])
    return Units(activations, weights_in.detach().cpu(), weights_out.detach().cpu(), logit_effects(model, neurons))


def check_neurons(model: GPT2, neurons: Iterable[tuple[int, int]]) -> None:
    """Raises AnalysisError for a (layer, neuron) the model does not have."""
    n_layers, d_mlp = model.config.n_layers, 0 if model.config.attn_only else model.config.d_mlp
    for layer, neuron in neurons:
        if not (0 <= layer < n_layers and 0 <= neuron < d_mlp):
            raise AnalysisError(
                f"there is no neuron {neuron} in layer {layer}: the model has {n_layers} layers of {d_mlp} neurons"
            )


def neuron_activations(model: GPT2, windows: Windows, neurons: Sequence[tuple[int, int]]) -> Float[Tensor, "neuron token"]:
    """Activations of some neurons of any layers at the real tokens, in order."""
    return _columns(neuron_layers(model, windows), windows.n_tokens, neurons)


def _columns(
    layers: Iterable[tuple[int, Iterable[Batch]]], n_tokens: int, neurons: Sequence[tuple[int, int]]
) -> Float[Tensor, "neuron token"]:
    """The chosen neurons' columns of layers that come in order. Raises AnalysisError for one that is not among them."""
    found, wanted = torch.empty(len(neurons), n_tokens), {layer for layer, _ in neurons}
    for layer, batches in layers:
        if layer in wanted:
            rows = [i for i, (its, _) in enumerate(neurons) if its == layer]
            columns = [neuron for its, neuron in neurons if its == layer]
            at = 0
            for _, activations in batches:
                found[rows, at : at + len(activations)] = activations[:, columns].float().T
                at += len(activations)
            wanted.remove(layer)
        if not wanted:
            return found
    raise AnalysisError(f"the neurons of layer {min(wanted)} are not stored; store blocks.{min(wanted)}.mlp.post")


def row_correlations(one: Float[Tensor, "row n"], other: Float[Tensor, "row n"]) -> Float[Tensor, "row"]:
    """Pearson's correlation of each row with the same row of the other, in float64; NaN where either is constant."""
    one, other = (x.double() - x.double().mean(1, keepdim=True) for x in (one, other))
    norms = one.norm(dim=1) * other.norm(dim=1)
    return torch.where(norms > 0, (one * other).sum(1) / norms, torch.nan)


def logit_effects(model: GPT2, neurons: Sequence[tuple[int, int]], k: int = 10) -> list[LogitEffect]:
    """What each neuron's output weights do to the logits: see `effects_of`."""
    out = torch.stack([model.blocks[layer].mlp.proj.weight[:, neuron] for layer, neuron in neurons])
    return effects_of(model, out, k)


@torch.no_grad()
def effects_of(model: GPT2, directions: Float[Tensor, "unit d_model"], k: int = 10) -> list[LogitEffect]:
    """What directions in the residual stream do to the logits: the `k` tokens most promoted and most suppressed by each.

    (direction, centred as the final layer norm would) x its gain @ W_U, less the mean over tokens. Equal effects stand in the
    order of their ids. What later layers make of the direction is left out.
    """
    found = []
    for out in directions.split(_NEURONS_AT_ONCE):
        if model.config.layer_norm:
            out = (out - out.mean(1, keepdim=True)) * model.ln_final.weight
        effects = (out @ model.W_U).double().cpu()
        found += [_effect(row - row.mean(), k) for row in effects]
    return found


def _effect(effects: Float[Tensor, "d_vocab"], k: int) -> LogitEffect:
    k = min(k, len(effects))
    up, down = (effects.sort(descending=down, stable=True) for down in (True, False))
    std = float(effects.std(correction=0))
    kurtosis = float((effects / std).pow(4).mean()) - 3 if std > 0 else 0.0
    largest = NormalDist().inv_cdf((len(effects) - 0.375) / (len(effects) + 0.25))  # Blom 1958, of so many normal draws
    pairs = (tuple(zip(side.indices[:k].tolist(), side.values[:k].tolist(), strict=True)) for side in (up, down))
    return LogitEffect(*pairs, std, kurtosis, std * largest)


def _record(
    step: int,
    values: Float[Tensor, "token"],
    windows: Windows,
    shown: tuple[int, int],
    effect: LogitEffect,
    like_last: tuple[float, float, float],
) -> NeuronRecord:
    placed = torch.zeros(windows.tokens.shape)
    placed[windows.real] = values
    lowest, highest = float(values.min()), float(values.max())
    reach = (lowest, highest) if highest > lowest else (lowest - 0.5, lowest + 0.5)
    counts, edges = torch.histogram(values.double(), _BINS, range=reach)
    double = values.double()
    std = float(double.std()) if len(values) > 1 else math.nan
    return NeuronRecord(
        step,
        len(values),
        float((values > 0).double().mean()),
        float(double.mean()),
        std,
        lowest,
        highest,
        tuple(int(count) for count in counts),
        tuple(edges.tolist()),
        top_contexts(placed, windows, *shown),
        _quantiles(values, placed, windows, shown[1]),
        effect,
        *like_last,
    )


def _quantiles(
    values: Float[Tensor, "token"], placed: Float[Tensor, "window pos"], windows: Windows, width: int
) -> tuple[Quantile, ...]:
    order = values.sort(stable=True).indices
    places = windows.real.nonzero()
    found = []
    for quantile in QUANTILES:
        window, position = places[order[round(quantile * (len(values) - 1))]].tolist()
        found.append(Quantile(quantile, context_at(placed, windows, window, position, width)))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class NeuronStatistics(Analysis):
    """The numbers of some neurons' records, for a sweep; contexts are in `neuron_histories`.

    By neuron: "neuron_frequency", "neuron_mean", "neuron_std" and "neuron_highest" over n tokens; "neuron_effect_std" and
    "neuron_effect_kurtosis" (0 for a random direction); "neuron_promoted" and "neuron_suppressed", ids of the 3 strongest
    tokens by `position`, with "neuron_promoted_effect" and "neuron_suppressed_effect" beside "neuron_effect_by_chance".
    """

    windows: Windows
    neurons: tuple[tuple[int, int], ...]
    name: str = "neuron_statistics"

    def __call__(self, model: GPT2) -> list[Row]:
        check_neurons(model, self.neurons)
        activations = neuron_activations(model, self.windows, self.neurons)
        if not activations.isfinite().all():
            raise AnalysisError("an activation is not finite; has the model diverged?")
        rows: list[Row] = []
        effects = logit_effects(model, self.neurons, k=3)
        for (layer, neuron), values, effect in zip(self.neurons, activations.double(), effects, strict=True):
            where = {"hook_point": f"blocks.{layer}.mlp.post", "layer": layer, "neuron": neuron, "label": f"L{layer}N{neuron}"}
            measured = {
                "neuron_frequency": float((values > 0).double().mean()),
                "neuron_mean": float(values.mean()),
                "neuron_std": float(values.std()),
                "neuron_highest": float(values.max()),
            }
            rows += [{"metric": metric, **where, "value": value, "n": len(values)} for metric, value in measured.items()]
            weights = {"std": effect.std, "kurtosis": effect.kurtosis, "by_chance": effect.by_chance}
            rows += [{"metric": f"neuron_effect_{kind}", **where, "value": value} for kind, value in weights.items()]
            for kind, pairs in (("promoted", effect.promoted), ("suppressed", effect.suppressed)):
                for position, (token, size) in enumerate(pairs):
                    at = {**where, "position": position}
                    rows.append({"metric": f"neuron_{kind}", **at, "value": token})
                    rows.append({"metric": f"neuron_{kind}_effect", **at, "value": size})
        return rows
