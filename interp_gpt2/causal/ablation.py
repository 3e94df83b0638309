"""Taking parts out of a model: heads, layers and neurons, replaced by zero, by a mean or by another text's activation.

What is put in a part's place decides what is measured. Zero is no activation the model has ever seen; a mean keeps what
the part says of every text; a resampled activation keeps the distribution, and takes away only what it says of this text.
Chan et al. 2022, "Causal Scrubbing"; Wang et al. 2022, "Interpretability in the Wild" (mean ablation); Zhang and Nanda
2023, "Towards Best Practices of Activation Patching".
"""

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp_gpt2.cache import ActivationCache
from interp_gpt2.causal.means import ActivationMeans
from interp_gpt2.causal.patch import Patch
from interp_gpt2.causal.positions import Where, checked_positions, chosen_positions
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, EditError
from interp_gpt2.hooks import Edits, Site

Kind = Literal["zero", "mean", "positional mean", "resample"]
KINDS = ("zero", "mean", "positional mean", "resample")

_POINTS = {"head": "attn.z", "attn": "attn_out", "mlp": "mlp_out", "neuron": "mlp.post"}


@dataclass(frozen=True)
class Component:
    """A part of the model: a head "L0H3", a neuron "L2N17", or all that a layer's "attn 0" or "mlp 0" writes.

    A head is ablated at its z: as `result` is linear in it, the mean of one is the other's. Attention's output bias
    belongs to no head, and goes with "attn 0" alone.
    """

    kind: Literal["head", "attn", "mlp", "neuron"]
    layer: int
    index: int | None = None  # of the head or neuron

    @property
    def label(self) -> str:
        if self.index is None:
            return f"{self.kind} {self.layer}"
        return f"L{self.layer}{'H' if self.kind == 'head' else 'N'}{self.index}"

    @classmethod
    def from_label(cls, label: str) -> "Component":
        """The part with this label. Raises AnalysisError for what is none."""
        if found := re.fullmatch(r"L(\d+)([HN])(\d+)", label):
            return cls("head" if found[2] == "H" else "neuron", int(found[1]), int(found[3]))
        if found := re.fullmatch(r"(attn|mlp) (\d+)", label):
            return cls(found[1], int(found[2]))
        raise AnalysisError(f"{label!r} is no part of a model; parts are called 'L0H3', 'L2N17', 'attn 0' or 'mlp 0'")

    @property
    def hook_point(self) -> str:
        return f"blocks.{self.layer}.{_POINTS[self.kind]}"

    def check(self, config: GPT2Config) -> None:
        """Raises AnalysisError for a part that such a model does not have."""
        if not 0 <= self.layer < config.n_layers:
            raise AnalysisError(f"there is no {self.label!r}: the model's layers are 0 to {config.n_layers - 1}")
        if config.attn_only and self.kind in ("mlp", "neuron"):
            raise AnalysisError(f"there is no {self.label!r}: the model has no MLPs")
        n = {"head": config.n_heads, "neuron": config.d_mlp}.get(self.kind)
        if n is not None and not 0 <= self.index < n:
            raise AnalysisError(f"there is no {self.label!r}: the {self.kind}s of a layer are 0 to {n - 1}")


Parts = str | Component | Iterable[str | Component]


def heads_of(config: GPT2Config) -> tuple[Component, ...]:
    """Every head, layer by layer."""
    return tuple(Component("head", layer, head) for layer in range(config.n_layers) for head in range(config.n_heads))


def sublayers_of(config: GPT2Config) -> tuple[Component, ...]:
    """Attention and MLP of every layer."""
    kinds = ("attn",) if config.attn_only else ("attn", "mlp")
    return tuple(Component(kind, layer) for layer in range(config.n_layers) for kind in kinds)


def neurons_of(config: GPT2Config, layer: int) -> tuple[Component, ...]:
    """Every neuron of a layer."""
    return tuple(Component("neuron", layer, neuron) for neuron in range(config.d_mlp))


def as_components(parts: Parts, config: GPT2Config) -> tuple[Component, ...]:
    """The parts, each once, known to exist. Raises AnalysisError for one that does not, and for none at all."""
    listed = [parts] if isinstance(parts, (str, Component)) else list(parts)
    found = tuple(dict.fromkeys(part if isinstance(part, Component) else Component.from_label(part) for part in listed))
    if not found:
        raise AnalysisError("no part was named; parts are called 'L0H3', 'L2N17', 'attn 0' or 'mlp 0'")
    for component in found:
        component.check(config)
    return found


@dataclass(frozen=True, eq=False)
class Ablation:
    """What is put in the place of the parts that are taken out. Made by `zero`, `mean`, `positional_mean` and `resample`.

        edited = model.with_edits(mean(means).edits(model.config, ["L0H3", "mlp 1"]))

    `positions` (None: all) are counted within each text, also in a padded batch and while text is generated; elsewhere
    everything stays.
    """

    kind: Kind
    means: ActivationMeans | None = None
    source: Mapping[str, Tensor] | None = None  # resample: activations of other texts, sequence by sequence
    positions: Where = None

    def edits(self, config: GPT2Config, parts: Parts) -> Edits:
        """The ablation of all these parts at once, for `run_with_edits`, `with_edits` and generation.

        Raises AnalysisError for parts or positions that are not there, and for means or a source without these parts or
        of another model.
        """
        components = as_components(parts, config)
        self._check(config, components)
        positions = checked_positions(self.positions, config.n_ctx)
        by_point: dict[str, list[Component]] = {}
        for component in components:
            by_point.setdefault(component.hook_point, []).append(component)
        return {
            name: _StandingIn(self.kind, self._values(name), _chosen(found, config), positions)
            for name, found in by_point.items()
        }

    def patches(self, config: GPT2Config, parts: Parts, n_pos: int) -> list[Patch]:
        """The same for the patching engine, over texts of `n_pos` columns that begin at the first one.

        A resampled activation is read from the engine's source run if the ablation has none of its own.
        """
        components = as_components(parts, config)
        self._check(config, components, source_elsewhere=True)
        positions = checked_positions(self.positions, n_pos)
        at = None if positions is None else positions if isinstance(positions, slice) else list(positions)
        return [self._patch(config, component, n_pos, at) for component in components]

    def _patch(self, config: GPT2Config, part: Component, n_pos: int, at: slice | list[int] | None) -> Patch:
        heads = part.index if part.kind == "head" else None
        neurons = part.index if part.kind == "neuron" else None
        value = None if self.kind == "resample" and self.source is None else self._values(part.hook_point)
        if self.kind == "positional mean":
            value = _at_positions(value, torch.arange(n_pos))
        return Patch(part.hook_point, positions=at, heads=heads, neurons=neurons, value=value)

    def _check(self, config: GPT2Config, components: Sequence[Component], source_elsewhere: bool = False) -> None:
        points = {component.hook_point for component in components}
        if self.kind in ("mean", "positional mean"):
            if self.means is None:
                raise AnalysisError(f"a {self.kind} needs means; compute them with activation_means(model, data)")
            self.means.check_config(config)
            if missing := sorted(points - self.means.sums.keys()):
                raise AnalysisError(f"there are no means of {missing[0]!r}; name it to activation_means")
            if self.kind == "positional mean" and self.means.computed_on.n_sequences < 2:
                raise AnalysisError("the positional means of one sequence are its own activations; take them over more")
        if self.kind == "resample" and self.source is None and not source_elsewhere:
            raise AnalysisError("resampling needs the activations of other texts: resample(cache), from run_with_cache")
        if self.source is not None and (missing := sorted(point for point in points if point not in self.source)):
            raise AnalysisError(f"the source run has not kept {missing[0]!r}; name it to run_with_cache")

    def _values(self, name: str) -> Float[Tensor, "..."]:
        """What takes the activation's place: broadcastable to (batch, pos, ...), or for each position (pos, ...)."""
        if self.kind == "zero":
            return torch.zeros(())
        if self.kind == "resample":
            return self.source[name]
        return self.means.mean(name) if self.kind == "mean" else self.means.positional_mean(name)


def _at_positions(means: Float[Tensor, "pos ..."], at: Tensor) -> Float[Tensor, "..."]:
    last = int(at.max())
    if last >= len(means):
        raise EditError(f"there are positional means for positions 0 to {len(means) - 1}; this pass goes to {last}")
    return means[at.cpu()]


def zero(positions: Where = None) -> Ablation:
    """Nothing at all in a part's place."""
    return Ablation("zero", positions=positions)


def mean(means: ActivationMeans, positions: Where = None) -> Ablation:
    """The mean over all tokens of a dataset."""
    return Ablation("mean", means, positions=positions)


def positional_mean(means: ActivationMeans, positions: Where = None) -> Ablation:
    """The mean over a dataset's texts at the same position, for texts no longer than the dataset's."""
    return Ablation("positional mean", means, positions=positions)


def resample(source: ActivationCache | Mapping[str, Tensor] | None = None, positions: Where = None) -> Ablation:
    """The activation of another text at the same place: `source` is the cache of a run over as many texts of that length.

    Without a source, `ablation_effect` draws other texts of its dataset, and `patches` leaves it to the engine's.
    """
    return Ablation("resample", source=source, positions=positions)


@dataclass(frozen=True, eq=False)
class _StandingIn:
    """The edit at one hook point."""

    kind: Kind
    values: Float[Tensor, "..."]
    chosen: Bool[Tensor, "..."]  # which of the activation's last axes are replaced
    positions: slice | tuple[int, ...] | None

    def __call__(self, value: Tensor, site: Site) -> Tensor:
        new = self.values
        if self.kind == "positional mean":
            new = _at_positions(new, site.positions)
        elif self.kind == "resample" and new.shape != value.shape:
            raise EditError(
                f"the source's {site.name!r} has shape {tuple(new.shape)}, this pass's {tuple(value.shape)}; "
                "resample from as many texts of the same length"
            )
        where = self.chosen.to(value.device)
        at = chosen_positions(self.positions, site)
        if at is not None:
            where = where & at.reshape(*at.shape, *[1] * (value.ndim - 2))
        return torch.where(where, new.to(value), value)


def _chosen(components: Sequence[Component], config: GPT2Config) -> Bool[Tensor, "..."]:
    if components[0].index is None:
        return torch.ones(1, dtype=torch.bool)
    by_head = components[0].kind == "head"
    chosen = torch.zeros(config.n_heads if by_head else config.d_mlp, dtype=torch.bool)
    chosen[[component.index for component in components]] = True
    return chosen[:, None] if by_head else chosen


# Residual connections ------------------------------------------------------------------------------------------------


def without_residual(config: GPT2Config) -> Edits:
    """Edits under which every block's attention and MLP replace the stream instead of adding to it.

    `resid_mid` becomes `attn_out`, and `resid_post` becomes `mlp_out` (`attn_out` where there is no MLP): a network without
    skip connections, made of the same weights. Other edits of these parts come before, and count. Raises AnalysisError for
    a model without layers, which has none to skip.
    """
    if config.n_layers == 0:
        raise AnalysisError("a model without layers has no residual connection to take out")
    attention, mlp = _Replacing(), _Replacing()
    ends = "*.resid_post" if config.attn_only else "*.resid_mid"
    edits = {"*.attn_out": attention.remember, ends: attention.recall}
    return edits if config.attn_only else edits | {"*.mlp_out": mlp.remember, "*.resid_post": mlp.recall}


class _Replacing:
    """What a sub-layer wrote last, to be put in the place of its sum with the stream; one for each thread."""

    def __init__(self) -> None:
        self.written = threading.local()

    def remember(self, value: Tensor, site: Site) -> Tensor:
        self.written.value = value
        return value

    remember.comes_last = True  # what other edits make of it is what is written

    def recall(self, value: Tensor, site: Site) -> Tensor:
        if not hasattr(self.written, "value"):
            raise EditError(f"what replaces {site.name!r} was not remembered: another edit stands in place of without_residual's")
        written = self.written.value
        del self.written.value  # or the graph of a pass would live until the next one
        return written

    def __reduce__(self) -> tuple:
        return type(self), ()  # between passes it holds nothing
