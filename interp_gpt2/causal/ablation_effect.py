"""What each part of a model is worth: the change in a loss or metric when it is taken out, with its spread over texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.rows import reach_95, require_eval
from interp_gpt2.causal.ablation import Ablation, Component, as_components, heads_of, zero
from interp_gpt2.causal.measuring import AnyMetric, Measure
from interp_gpt2.errors import AnalysisError
from interp_gpt2.inputs import check_tokens
from interp_gpt2.model import GPT2

if TYPE_CHECKING:
    from pandas import DataFrame

PartsTogether = str | Component | Iterable[str | Component]  # several are taken out at once, as one entry


@dataclass(frozen=True, eq=False)
class AblationEffects:
    """The measure of every sequence, as the model is and without each entry's parts. Loss is in nats per token.

    An entry is one part or several taken out together, labelled "L0H1" or "L0H1 + mlp 0". `effects` are differences
    without less with: of a loss, positive where the part helps.
    """

    labels: tuple[str, ...]
    components: tuple[tuple[Component, ...], ...]
    ablated: Float[Tensor, "entry sequence"]
    clean: Float[Tensor, "sequence"]
    measure: str
    ablation: str  # "zero", "mean", "positional mean", "resample"

    @property
    def effects(self) -> Float[Tensor, "entry sequence"]:
        return self.ablated - self.clean

    @property
    def mean(self) -> Float[Tensor, "entry"]:
        return self.effects.mean(1)

    @property
    def stderr(self) -> Float[Tensor, "entry"]:
        """Standard error of `mean` over sequences; NaN of one."""
        return spread(self.effects)

    def __getitem__(self, label: str) -> Float[Tensor, "sequence"]:
        """The effect on each sequence of one entry. Raises AnalysisError if there is none of that label."""
        if label not in self.labels:
            raise AnalysisError(f"{label!r} was not ablated; {', '.join(self.labels[:8])}{', ...' * (len(self.labels) > 8)} were")
        return self.effects[self.labels.index(label)]

    def to_frame(self) -> "DataFrame":
        """A row for each entry: label, layer, head, neuron (absent where several), measure, effect with its 95 % interval."""
        import pandas

        rows, reach = [], reach_95(len(self.clean))
        for label, parts, mean, stderr, ablated in zip(
            self.labels, self.components, self.mean.tolist(), self.stderr.tolist(), self.ablated.mean(1).tolist(), strict=True
        ):
            one = parts[0] if len(parts) == 1 else None
            where = {
                "layer": one and one.layer,
                "head": one.index if one and one.kind == "head" else None,
                "neuron": one.index if one and one.kind == "neuron" else None,
            }
            found = {"effect": mean, "stderr": stderr, "low": mean - reach * stderr, "high": mean + reach * stderr}
            about = {"ablated": ablated, "clean": float(self.clean.mean()), "n": len(self.clean)}
            rows.append({"label": label, **where, "ablation": self.ablation, "measure": self.measure, **found, **about})
        kinds = {"layer": "Int64", "head": "Int64", "neuron": "Int64"}
        return pandas.DataFrame(rows).astype(kinds)


def spread(values: Float[Tensor, "... n"]) -> Float[Tensor, "..."]:
    """Standard error of the mean over the last axis; NaN of one value."""
    n = values.shape[-1]
    return values.std(-1) / n**0.5 if n > 1 else torch.full(values.shape[:-1], torch.nan, dtype=values.dtype)


@torch.no_grad()
def ablation_effect(
    model: GPT2,
    tokens: Int[Tensor, "sequence pos"],
    parts: Iterable[PartsTogether] | None = None,
    ablation: Ablation | None = None,
    metric: AnyMetric = None,
    attention_mask: Int[Tensor, "sequence pos"] | None = None,
    source_tokens: Int[Tensor, "sequence pos"] | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> AblationEffects:
    """The effect of taking out each of `parts` (None: every head) on the loss, or on `metric`, of every sequence.

        ablation_effect(model, tokens, ["L0H1", "mlp 0", ("L0H1", "L0H2")], mean(means)).to_frame()

    An element that is a list or tuple is taken out together. `ablation` None is zero(). Resampling without a source of its
    own reads sequence i of `source_tokens` (with the same mask), or another sequence of `tokens`, drawn so that none is its
    own. Runs `batch_size` sequences at a time, and of the layers only those from the first ablated one on.

    Raises AnalysisError for parts, positions or means that are not there, means of other weights, a measure that is not a
    finite number, and resampling one sequence from itself.
    """
    require_eval(model)
    check_tokens(tokens, model.config, None if attention_mask is None else attention_mask.to(tokens.device))
    entries = _entries(model, parts)
    ablation = zero() if ablation is None else ablation
    if not isinstance(ablation, Ablation):
        raise AnalysisError(
            f"ablation={ablation!r} is none; make one with zero(), mean(means), positional_mean(means), resample()"
        )
    if ablation.means is not None:
        ablation.means.check(model)
    measure = Measure.of(metric, tokens, attention_mask, model.config)
    if ablation.kind == "resample" and ablation.source is None and source_tokens is None:
        source_tokens = _others(tokens, attention_mask, seed)
    _refuse(ablation, tokens, source_tokens, batch_size)
    clean = torch.empty(len(tokens), dtype=torch.float64)
    ablated = torch.empty(len(entries), len(tokens), dtype=torch.float64)
    for of in torch.arange(len(tokens)).split(batch_size):
        batch = _Batch.run(model, tokens, attention_mask, of, {entry[0].layer for entry in entries})
        clean[of] = measure(batch.logits, of)
        here = _sourced(model, ablation, entries, source_tokens, attention_mask, of)
        for index, entry in enumerate(entries):
            layer, edits = entry[0].layer, here.edits(model.config, entry)
            ablated[index, of] = measure.from_layer(model, batch.streams[layer], layer, edits, of, batch.attention_mask)
    labels = tuple(" + ".join(part.label for part in entry) for entry in entries)
    return AblationEffects(labels, tuple(entries), ablated, clean, measure.name, ablation.kind)


def _entries(model: GPT2, parts: Iterable[PartsTogether] | None) -> list[tuple[Component, ...]]:
    if parts is None:
        parts = heads_of(model.config)
    elif isinstance(parts, (str, Component)):
        parts = [parts]
    entries = [as_components(entry, model.config) for entry in parts]
    if not entries:
        raise AnalysisError("no part was named to be ablated")
    return [tuple(sorted(entry, key=lambda part: part.layer)) for entry in entries]


def _refuse(ablation: Ablation, tokens: Tensor, source_tokens: Tensor | None, batch_size: int) -> None:
    if batch_size < 1:
        raise AnalysisError(f"batch_size={batch_size} holds no sequence; it must be at least 1")
    if source_tokens is not None and ablation.kind != "resample":
        raise AnalysisError(f"source_tokens are for resampling; this ablation is {ablation.kind}")
    if source_tokens is not None and ablation.source is not None:
        raise AnalysisError("the ablation has a source of its own; leave source_tokens out")
    if source_tokens is not None and source_tokens.shape != tokens.shape:
        came, expected = tuple(source_tokens.shape), tuple(tokens.shape)
        raise AnalysisError(f"source_tokens have shape {came}; expected as many and as long as tokens, {expected}")


def _others(tokens: Tensor, mask: Tensor | None, seed: int) -> Tensor:
    """Another sequence for each, none its own: a random cycle through all of them that are padded alike."""
    groups: dict[bytes, list[int]] = {}
    for row in range(len(tokens)):
        groups.setdefault(b"" if mask is None else mask[row].cpu().long().numpy().tobytes(), []).append(row)
    draw, other = torch.Generator().manual_seed(seed), torch.arange(len(tokens))
    for rows in groups.values():
        if len(rows) < 2:
            alike = "" if mask is None else " that is padded alike"
            raise AnalysisError(f"sequence {rows[0]} has no other one{alike} to be resampled from; pass more, or source_tokens")
        order = torch.tensor(rows)[torch.randperm(len(rows), generator=draw)]
        other[order] = order.roll(1)
    return tokens[other]


def _sourced(
    model: GPT2,
    ablation: Ablation,
    entries: Sequence[tuple[Component, ...]],
    tokens: Tensor | None,
    mask: Tensor | None,
    of: Tensor,
) -> Ablation:
    """The ablation for these sequences: with their sources, if it resamples."""
    if ablation.kind != "resample":
        return ablation
    if ablation.source is not None:
        return replace(ablation, source={name: ablation.source[name][of] for name in ablation.source})
    names = sorted({part.hook_point for entry in entries for part in entry})
    part_mask = None if mask is None else mask[of].to(model.device)
    return replace(ablation, source=model.run_with_cache(tokens[of].to(model.device), names, attention_mask=part_mask)[1])


@dataclass(frozen=True, eq=False)
class _Batch:
    """A clean pass, with the stream before each layer from which something is taken out."""

    logits: Float[Tensor, "batch pos d_vocab"]
    streams: dict[int, Float[Tensor, "batch pos d_model"]]
    attention_mask: Tensor | None

    @classmethod
    def run(cls, model: GPT2, tokens: Tensor, attention_mask: Tensor | None, of: Tensor, layers: set[int]) -> "_Batch":
        mask = None if attention_mask is None else attention_mask[of].to(model.device)
        names = [("resid_pre", layer) for layer in sorted(layers)]
        logits, cache = model.run_with_cache(tokens[of].to(model.device), names, attention_mask=mask)
        return cls(logits, {layer: cache["resid_pre", layer] for layer in layers}, mask)
