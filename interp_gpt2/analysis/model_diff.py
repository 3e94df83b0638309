"""What changed between two models of one shape: two steps of a run, a base and its fine-tuned model, two seeds.

Everything is measured on the same tokens and beside a yardstick, a third model, by default an untrained one: a distance
says something only next to that of models which have nothing, or everything, in common. Parts are compared index by index;
between two seeds, whose heads and neurons are in no common order, see `model_matching`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.analysis.attention_patterns import head_label
from interp_gpt2.analysis.prediction_diff import PredictionDiff, PredictionSums
from interp_gpt2.analysis.rows import Analysis, Row, require_eval
from interp_gpt2.analysis.untrained import untrained_like
from interp_gpt2.analysis.weight_distance import Moved, check_same_shape, weight_distances
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import Hooks
from interp_gpt2.model import GPT2
from interp_gpt2.runs.run import Run

if TYPE_CHECKING:
    from pandas import DataFrame

_BATCH_TOKENS = 1024
_LOGITS = 2**22  # of each model at once: 32 MiB in float64


@dataclass(frozen=True, eq=False)
class ModelDiff:
    """What moved from `a` to `b`; every `Moved` has the distance from `a` to the yardstick beside it.

    `weights`: relative distances. `heads`: total variation between attention patterns, in [0, 1], mean over queries that
    see more than themselves. `neurons`: 1 - correlation of activations over tokens, 0 for the same neuron, about 1 for an
    unrelated one, NaN where one never changes. `predictions`: KL, losses and examples. `n` is the number of tokens.
    """

    weights: tuple[Moved, ...]
    heads: tuple[Moved, ...]
    neurons: tuple[Moved, ...]
    predictions: PredictionDiff
    n: int

    def most(self, kind: str, k: int = 10) -> list[Moved]:
        """The `k` parts of a kind ("weights", "heads" or "neurons") that moved most, NaN left out."""
        moved = [part for part in getattr(self, kind) if part.value == part.value]
        return sorted(moved, key=lambda part: -part.value)[:k]

    def to_frame(self) -> "DataFrame":
        """A row for every weight part, head and neuron: kind, label, layer, head, neuron, value and yardstick."""
        import pandas

        rows = [
            {"kind": kind, "label": part.label, "layer": part.layer, "head": part.head, "neuron": part.neuron}
            | {"value": part.value, "yardstick": part.yardstick}
            for kind in ("weights", "heads", "neurons")
            for part in getattr(self, kind)
        ]
        return pandas.DataFrame(rows).astype(dict.fromkeys(("layer", "head", "neuron"), "Int64"))


@torch.no_grad()
def model_diff(
    a: GPT2, b: GPT2, windows: Windows, yardstick: GPT2 | None = None, n_examples: int = 10, width: int = 24
) -> ModelDiff:
    """Compare two models on `windows`. `yardstick` None is an untrained model of its shape.

    The three run side by side, one layer of one batch of about 1,024 tokens at a time. `n_examples` places where the
    prediction changed most, from distinct documents, are kept with `width` tokens before them.
    Raises AnalysisError for models of different shapes or with dropout in training mode.
    """
    models = (a, b, untrained_like(a) if yardstick is None else yardstick)
    check_same_shape(*models)
    for model in models:
        require_eval(model)
    config = a.config
    heads = torch.zeros(2, config.n_layers, config.n_heads, dtype=torch.float64)
    neurons = [[Correlation.empty(config.d_mlp) for _ in range(config.n_layers)] for _ in range(2)]
    predictions = PredictionSums(config.d_vocab, n_examples, width)
    n_queries = 0
    for part in _batches(windows):
        there = part.real
        sees = there & (torch.arange(there.shape[1]) > 0)
        n_queries += int(sees.sum())
        streams = [model.embed(part.tokens.to(model.device)) for model in models]
        for layer in range(config.n_layers):
            streams, patterns, posts = _layer(models, streams, layer)
            for i in (1, 2):
                apart = (patterns[0] - patterns[i]).abs().sum(-1) / 2  # (batch, head, query)
                heads[i - 1, layer] += apart.transpose(1, 2)[sees].double().sum(0)
                if posts:
                    neurons[i - 1][layer].add(posts[0][there], posts[i][there])
        pairs = list(zip(models, streams, strict=True))
        step = max(1, _LOGITS // (len(part.tokens) * config.d_vocab))
        for at in range(0, there.shape[1], step):
            predictions.add(part, at, [_log_probabilities(model, stream[:, at : at + step]) for model, stream in pairs])
    return ModelDiff(
        weight_distances(*models),
        _heads(heads / max(n_queries, 1)),
        _neurons(neurons) if not config.attn_only else (),
        predictions.result(),
        windows.n_tokens,
    )


def _batches(windows: Windows) -> Iterator[Windows]:
    size = max(1, _BATCH_TOKENS // windows.tokens.shape[1])
    for at in range(0, len(windows.tokens), size):
        yield Windows(*(values[at : at + size] for values in (windows.tokens, windows.lengths, windows.documents)))


def _layer(
    models: tuple[GPT2, ...], streams: list[Tensor], layer: int
) -> tuple[list[Tensor], list[Float[Tensor, "batch head query key"]], list[Float[Tensor, "batch pos neuron"]]]:
    """Each model's stream after the layer, its patterns and its neurons (none in an attention-only model), on the CPU."""
    pattern, post = f"blocks.{layer}.attn.pattern", f"blocks.{layer}.mlp.post"
    names = frozenset((pattern,) if models[0].config.attn_only else (pattern, post))
    after, patterns, posts = [], [], []
    for model, stream in zip(models, streams, strict=True):
        hooks = Hooks(names)
        after.append(model.run_blocks(stream, layer, layer + 1, hooks))
        patterns.append(hooks.cache[pattern].float().cpu())
        if post in names:
            posts.append(hooks.cache[post].float().cpu())
    return after, patterns, posts


def _log_probabilities(model: GPT2, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
    logits = model.unembed(stream).cpu().double()  # in float32 the KL of nearly equal predictions comes out negative
    if not logits.isfinite().all():
        raise AnalysisError("a model's logits are not finite: it has diverged, and there is nothing to compare")
    return logits.log_softmax(-1)


@dataclass(eq=False)
class Correlation:
    """Running sums for the correlation of each column of two tables of activations, shifted by their first batch's means."""

    sums: Float[Tensor, "6 column"]
    shifts: Float[Tensor, "2 column"] | None = None

    @classmethod
    def empty(cls, n: int) -> "Correlation":
        return cls(torch.zeros(6, n, dtype=torch.float64))

    def add(self, x: Float[Tensor, "n column"], y: Float[Tensor, "n column"]) -> None:
        x, y = x.double(), y.double()
        if self.shifts is None:  # without them sums of squares would cancel where a mean is large
            self.shifts = torch.stack([x.mean(0), y.mean(0)])
        x, y = x - self.shifts[0], y - self.shifts[1]
        ones = torch.ones_like(x)
        self.sums += torch.stack([(p * q).sum(0) for p, q in ((ones, ones), (x, ones), (y, ones), (x, x), (y, y), (x, y))])

    @property
    def values(self) -> Float[Tensor, "column"]:
        """Pearson's correlation; NaN where either is constant."""
        n, x, y, xx, yy, xy = self.sums
        variances = (xx - x * x / n).clamp(min=0) * (yy - y * y / n).clamp(min=0)
        return torch.where(variances > 1e-24, (xy - x * y / n) / variances.sqrt(), torch.nan)


def _heads(distances: Float[Tensor, "2 layer head"]) -> tuple[Moved, ...]:
    moved, beside = distances.tolist()
    return tuple(
        Moved(head_label(layer, head), moved[layer][head], beside[layer][head], layer, head)
        for layer in range(distances.shape[1])
        for head in range(distances.shape[2])
    )


def _neurons(found: list[list[Correlation]]) -> tuple[Moved, ...]:
    moved, beside = ([(1 - layer.values).tolist() for layer in layers] for layers in found)
    return tuple(
        Moved(f"L{layer}N{neuron}", value, beside[layer][neuron], layer, None, neuron)
        for layer, values in enumerate(moved)
        for neuron, value in enumerate(values)
    )


@dataclass(frozen=True, eq=False)
class DiffFromStep(Analysis):
    """How far a model is from another checkpoint, for a sweep: `DiffFromStep.of(run, 0, windows)`.

    "diff_kl" (nats per token, from the checkpoint's predictions), "diff_top1" (share of tokens with the same first choice),
    "diff_weights" by part, "diff_pattern" by head, and "diff_neuron" by layer (the median neuron's 1 - correlation); each
    with "..._untrained" beside it, the checkpoint's distance from an untrained model. What has no number (biases that began at 0,
    neurons that never change) has no value.
    """

    run: str
    step: int
    sha256: str
    windows: Windows
    name: str = "diff_from_step"

    @classmethod
    def of(cls, run: Run, step: int, windows: Windows) -> "DiffFromStep":
        """From a step of a run. Raises AnalysisError for models that were not trained here, which are no directory to reopen."""
        if type(run) is not Run:
            raise AnalysisError(f"{run.name} is no run of this project; load two of its models and compare them by model_diff")
        return cls(str(Path(run.path).resolve()), step, run.checkpoint_hash(step), windows)

    def __call__(self, model: GPT2) -> list[Row]:
        run = Run(Path(self.run))
        if run.checkpoint_hash(self.step) != self.sha256:
            raise AnalysisError(f"step {self.step} of {self.run} is not what it was when this analysis was made")
        found = model_diff(run.model(self.step).to(model.device), model, self.windows, n_examples=0)
        said = found.predictions
        rows: list[Row] = []

        def add(metric: str, value: float, yardstick: float, **where: int | str | None) -> None:
            for name, number in ((metric, value), (f"{metric}_untrained", yardstick)):
                rows.append({"metric": name, **where, "value": None if math.isnan(number) else number})

        add("diff_kl", said.kl, said.kl_yardstick)
        add("diff_top1", said.agreement, said.agreement_yardstick)
        for part in found.weights:
            add("diff_weights", part.value, part.yardstick, label=part.label, layer=part.layer, head=part.head)
        for part in found.heads:
            add("diff_pattern", part.value, part.yardstick, label=part.label, layer=part.layer, head=part.head)
        for layer in dict.fromkeys(part.layer for part in found.neurons):
            its = torch.tensor([(part.value, part.yardstick) for part in found.neurons if part.layer == layer])
            add("diff_neuron", *its.nanmedian(0).values.tolist(), layer=layer)
        return rows
