"""A dictionary spliced into a model: what flows through a hook point goes through an encoder and a decoder on its way.

A sparse autoencoder, or anything with `encode` and `decode`. Its features get hook points of their own, under
TransformerLens's names, so that they are read and edited as neurons are:

    spliced = splice(model, sae, ("resid_post", 5))
    _, cache = spliced.run_with_cache(tokens)               # cache["blocks.5.resid_post.sae_acts_post"]: (batch, pos, d_sae)
    spliced.run_with_edits(tokens, {"*sae_acts_post": f})   # what if this feature were off?

With the error kept, the model computes what it did before, to rounding, as long as no feature is edited: what the dictionary
does not explain is passed on beside it (Marks et al. 2024, "Sparse Feature Circuits"). Without it, the model sees nothing but
what the dictionary says.
"""

import math
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp_gpt2.analysis.loss import token_losses
from interp_gpt2.analysis.rows import interval, require_eval, standard_error
from interp_gpt2.causal.means import activation_means
from interp_gpt2.causal.patch import SQUARE_POINTS
from interp_gpt2.causal.result import ratio_interval
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, ShapeError
from interp_gpt2.hooks import NO_HOOKS, Hooks, Names, Site, canonical, resolve
from interp_gpt2.model import GPT2, alias
from interp_gpt2.passes import EditedGPT2, with_edits

if TYPE_CHECKING:
    from pandas import DataFrame

FEATURES, ERROR = "sae_acts_post", "sae_error"  # TransformerLens's words


class Dictionary(Protocol):
    """What can be spliced in: SAELens's SAE, dictionary_learning's AutoEncoder, any module with these two."""

    def encode(self, activation: Float[Tensor, "... d"]) -> Float[Tensor, "... d_sae"]: ...

    def decode(self, features: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d"]: ...


@dataclass(frozen=True)
class SplicedConfig(GPT2Config):
    """A model's shape, with the hook points that splicing has added and their widths."""

    spliced: tuple[tuple[str, int], ...] = field(default=())


@dataclass(frozen=True, eq=False)
class Splice:
    """One dictionary at one hook point: as an edit, and as part of a pass that may read or edit its features."""

    sae: Dictionary
    hook_point: str
    d_sae: int
    keep_error: bool

    @property
    def features(self) -> str:
        """The hook point of the features, (batch, pos, d_sae)."""
        return f"{self.hook_point}.{FEATURES}"

    @property
    def error(self) -> str:
        """The hook point of what the dictionary does not explain, (batch, pos, d); there is one where it is kept."""
        return f"{self.hook_point}.{ERROR}"

    def __call__(self, value: Tensor, site: Site) -> Tensor:
        return self.through(NO_HOOKS, value, site)

    def through(self, hooks: Hooks, value: Tensor, site: Site) -> Tensor:
        """What goes on downstream, after these hooks have had the features, and the error if it is kept."""
        here = hooks.for_positions(site.positions)
        features = self.sae.encode(as_taken(self.sae, value))
        reconstruction = self.sae.decode(features)
        # Under another name in the graph: what depends on a feature is its own direction, and not the error it was taken out of,
        # while the whole still has the derivative of the activation.
        passed = alias(features) if reconstruction.requires_grad else features
        seen = here(self.features, passed)
        out = (reconstruction if seen is features else self.sae.decode(seen)).to(value).flatten(2)
        if self.keep_error:
            out = out + here(self.error, value.flatten(2) - reconstruction.to(value).flatten(2))
        return out.view(value.shape)


class SplicedGPT2(EditedGPT2):
    """A model with a dictionary on the way through one hook point, made by `splice`. See EditedGPT2."""

    __slots__ = ("spliced_config",)

    def __init__(self, model: GPT2, the_splice: Splice) -> None:
        super().__init__(model, {the_splice.hook_point: (the_splice,)})
        width = model.hook_points(1, 1)[the_splice.hook_point][2:]
        added = ((the_splice.features, the_splice.d_sae), (the_splice.error, torch.Size(width).numel()))
        known = {each.name: getattr(model.config, each.name) for each in fields(GPT2Config)}
        spliced = (*model.config.spliced, *added[: 1 + the_splice.keep_error])
        object.__setattr__(self, "spliced_config", SplicedConfig(**known, spliced=spliced))

    @property
    def config(self) -> GPT2Config:
        return self.spliced_config

    @property
    def splice(self) -> Splice:
        ((found,),) = self.edits.values()
        return found

    def behind_ours(self, hooks: Hooks) -> Hooks:
        return hooks.after({self.splice.hook_point: (partial(self.splice.through, hooks),)})

    def hook_points(self, batch: int = 1, pos: int | None = None) -> dict[str, tuple[int, ...]]:
        found = self.model.hook_points(batch, pos)
        n_pos = self.config.n_ctx if pos is None else pos
        return found | {name: (batch, n_pos, width) for name, width in self.config.spliced if name not in found}

    def __reduce__(self) -> tuple:
        return type(self), (self.model, self.splice)


def splice(model: GPT2, sae: Dictionary, hook_point: Names | None = None, keep_error: bool = True) -> SplicedGPT2:
    """The model with `sae` on the way through a hook point: a view with standing edits, and all of a model's methods.

    `hook_point` None is the one that an SAE of SAELens says it was trained on. Heads are put side by side, as there. Several
    can be spliced in, one after the other. The dictionary computes in its own dtype, where its parameters are.

    Raises AnalysisError for what has no `encode` and `decode`, a hook point without a row for each token, or none at all;
    ShapeError for a dictionary of another width.
    """
    name = _point(model, sae, hook_point)
    d_sae = _width(model, sae, name)
    return SplicedGPT2(model, Splice(sae, name, d_sae, keep_error))


def _point(model: GPT2, sae: Any, hook_point: Names | None) -> str:
    if not all(callable(getattr(sae, method, None)) for method in ("encode", "decode")):
        raise AnalysisError(f"{type(sae).__name__} has no encode and decode; splice in what has both")
    if hook_point is None:
        config = getattr(sae, "cfg", None)
        hook_point = getattr(getattr(config, "metadata", None), "hook_name", None) or getattr(config, "hook_name", None)
        if hook_point is None:
            raise AnalysisError(f"this {type(sae).__name__} does not say what it was trained on; name the hook_point")
        hook_point = canonical(hook_point)
    found = resolve(hook_point, model.config)
    if len(found) != 1:
        raise AnalysisError(f"{hook_point!r} stands for {len(found)} hook points; name one, such as ('resid_post', 5)")
    (name,) = found
    if name.rpartition(".")[2] in SQUARE_POINTS or name in dict(model.config.spliced):
        raise AnalysisError(
            f"{name!r} is no activation of a token, which a dictionary could be of; splice into the stream, z, ..."
        )
    if any(known.rpartition(".")[0] == name for known, _ in model.config.spliced):
        raise AnalysisError(f"there is a dictionary at {name!r} already; splice this one into the model as it was")
    return name


@torch.no_grad()
def _width(model: GPT2, sae: Dictionary, name: str) -> int:
    """d_sae, from a trial that shows that the dictionary fits."""
    shape = model.hook_points(1, 2)[name]
    trial = torch.zeros(shape, dtype=model.wpe.weight.dtype, device=model.device)
    try:
        features = sae.encode(as_taken(sae, trial))
        back = sae.decode(features)
        shapes = tuple(features.shape), tuple(back.flatten(2).shape if back.ndim > 2 else back.shape)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        width = trial.flatten(2).shape[-1]
        raise ShapeError(f"the dictionary does not take {name!r}, of {width} numbers a token: {reason}") from error
    expected = tuple(trial.flatten(2).shape)
    if len(shapes[0]) != 3 or shapes[0][:2] != (1, 2) or shapes[1] != expected:
        raise ShapeError(
            f"from {name!r} of shape {expected} the dictionary makes features of shape {shapes[0]} and from these {shapes[1]}; "
            f"expected (1, 2, d_sae) and {expected} again"
        )
    return shapes[0][2]


def as_taken(sae: Dictionary, value: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "batch pos d"]:
    """An activation as a dictionary takes it: heads side by side, on the device and in the dtype of its first parameter."""
    if not getattr(sae, "hook_z_reshaping_mode", False):  # SAELens's of z put them there themselves
        value = value.flatten(2)
    first = next(sae.parameters(), None) if isinstance(sae, nn.Module) else None
    return value if first is None else value.to(first.device, first.dtype)


# What a dictionary is worth -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SpliceScores:
    """Losses of each sequence in nats per token, as the model is (`clean`), through the dictionary alone (`spliced`), and
    with the hook point set to zero or to its mean over these texts; with what the features look like on the way.

    `l0`: active features per token, by sequence. `explained`: the share of variance that the reconstruction explains,
    1 - sum (x - x')^2 / sum (x - mean)^2. `n_dead`: features that are never active here.
    """

    hook_point: str
    d_sae: int
    clean: Float[Tensor, "sequence"]
    spliced: Float[Tensor, "sequence"]
    zero: Float[Tensor, "sequence"]
    mean: Float[Tensor, "sequence"]
    l0: Float[Tensor, "sequence"]
    explained: float
    n_dead: int
    n_tokens: int

    @property
    def loss_recovered(self) -> float:
        """(zero - spliced) / (zero - clean): 1 is the model as it is, 0 no better than nothing. NaN if zero costs nothing.

        Zero in the middle of a residual stream is far from anything the model has seen, which makes this easy to have: see
        `loss_recovered_from_mean`.
        """
        return _ratio(self.zero - self.spliced, self.zero - self.clean)

    @property
    def loss_recovered_from_mean(self) -> float:
        """(mean - spliced) / (mean - clean): 0 is no better than the mean activation, the stricter yardstick."""
        return _ratio(self.mean - self.spliced, self.mean - self.clean)

    def to_frame(self) -> "DataFrame":
        """Each figure with its 95 % interval over sequences drawn like these (absent where there is none) and its ends."""
        import pandas

        rows = [_mean_row(f"loss_{name}", getattr(self, name)) for name in ("clean", "spliced", "zero", "mean")]
        for metric, worst in (("loss_recovered", self.zero), ("loss_recovered_from_mean", self.mean)):
            value, (low, high) = getattr(self, metric), ratio_interval(worst - self.spliced, worst - self.clean)
            ends = {} if math.isnan(value) else {"low": float(low), "high": float(high)}
            rows.append({"metric": metric, "value": value, **ends})
        rows.append(_mean_row("l0", self.l0))
        rows.append({"metric": "explained_variance", "value": self.explained})
        rows.append({"metric": "dead_features", "value": float(self.n_dead)})
        return pandas.DataFrame(rows).assign(hook_point=self.hook_point, d_sae=self.d_sae, n=len(self.clean))

    def __repr__(self) -> str:
        return (
            f"SpliceScores({self.hook_point}, {self.d_sae} features: loss {self.clean.mean():.4g} -> {self.spliced.mean():.4g}, "
            f"zero {self.zero.mean():.4g}, mean {self.mean.mean():.4g}; recovered {self.loss_recovered:.3f} of zero, "
            f"{self.loss_recovered_from_mean:.3f} of mean; L0 {self.l0.mean():.3g}, explained {self.explained:.3f}, "
            f"{self.n_dead} dead; {self.n_tokens:,} tokens)"
        )


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part.mean() / whole.mean()) if float(whole.mean()) > 0 else math.nan


def _mean_row(metric: str, values: Float[Tensor, "sequence"]) -> dict[str, Any]:
    mean = float(values.mean())
    return {"metric": metric, "value": mean, **interval(mean, standard_error(values), len(values))}


@torch.no_grad()
def splice_scores(
    model: GPT2,
    sae: Dictionary,
    tokens: Int[Tensor, "sequence pos"],
    hook_point: Names | None = None,
    batch_size: int = 16,
) -> SpliceScores:
    """What a dictionary is worth at a hook point, on whole sequences without padding: see SpliceScores.

    Runs `batch_size` sequences at a time; the features of one batch are in memory. Raises as `splice`, and AnalysisError for
    sequences that predict nothing.
    """
    require_eval(model)
    spliced = splice(model, sae, hook_point, keep_error=False)
    name, features = spliced.splice.hook_point, spliced.splice.features
    clean, alone = token_losses(model, tokens, batch_size), token_losses(spliced, tokens, batch_size)
    means = activation_means(model, tokens, [name], batch_size=batch_size)
    mean = means.mean(name).to(model.device)
    ends = {"zero": torch.zeros_like(mean), "mean": mean}
    ends = {kind: token_losses(_held_at(model, name, value), tokens, batch_size).mean(1) for kind, value in ends.items()}
    l0, fired = [], torch.zeros(spliced.splice.d_sae, dtype=torch.bool, device=model.device)
    missed = spread = 0.0
    kept = splice(model, sae, name)
    for _, cache in kept.run_batched(tokens, batch_size, [name, features, kept.splice.error]):
        active = (cache[features] != 0).to(model.device)
        l0.append(active.sum(-1).double().mean(1).cpu())
        fired |= active.flatten(0, 1).any(0)
        missed += float(cache[kept.splice.error].square().sum(dtype=torch.float64))
        spread += float((cache[name].double() - mean).square().sum())
    explained = 1 - missed / spread if spread else math.nan
    n_dead = int((~fired).sum())
    return SpliceScores(
        name, spliced.splice.d_sae, clean.mean(1), alone.mean(1), ends["zero"], ends["mean"], torch.cat(l0), explained, n_dead,
        means.n_tokens,
    )  # fmt: skip


def _held_at(model: GPT2, name: str, value: Float[Tensor, "..."]) -> EditedGPT2:
    """The model with one hook point at the same value for every token."""
    return with_edits(model, {name: lambda seen, site: value.to(seen).expand_as(seen)})
