"""Causal tracing: which states, restored, bring back what noise on a subject's tokens has taken away.

Three kinds of runs: clean; corrupted, with Gaussian noise added to the token embeddings of the subject; and restored, where
in the corrupted run one layer's state at one position is the clean one again. What the answer gains by it is the state's
indirect effect. Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (ROME).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.analysis.rows import reach_95, require_eval
from interp_gpt2.causal.ablation_effect import spread
from interp_gpt2.causal.measuring import AnyMetric, Measure
from interp_gpt2.causal.metrics import Metric
from interp_gpt2.causal.positions import checked_positions
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import Edits, Site
from interp_gpt2.inputs import check_tokens
from interp_gpt2.model import GPT2

if TYPE_CHECKING:
    from pandas import DataFrame

Point = Literal["resid_post", "attn_out", "mlp_out"]
POINTS = ("resid_post", "attn_out", "mlp_out")
NOISE = 3.0  # times the standard deviation of the embeddings


@dataclass(frozen=True, eq=False)
class CausalTrace:
    """The metric of each kind of run, and the effects. Restored are `window` layers of `point` around each layer.

    The total effect is clean less corrupted; a cell's indirect effect is restored less corrupted. Where it is as large as the
    total effect, this one state carries all that the subject's tokens say.
    """

    point: Point
    window: int
    clean: Float[Tensor, "pair"]
    corrupted: Float[Tensor, "pair sample"]
    restored: Float[Tensor, "layer pos pair sample"]
    subject: Bool[Tensor, "pair pos"]
    tokens: Int[Tensor, "pair pos"]
    noise_std: float
    measure: str

    @property
    def total_effect(self) -> float:
        return float(self.clean.mean() - self.corrupted.mean())

    @property
    def indirect_effects(self) -> Float[Tensor, "layer pos pair sample"]:
        return self.restored - self.corrupted

    @property
    def indirect_effect(self) -> Float[Tensor, "layer pos"]:
        """Averaged over pairs and noise samples."""
        return self.indirect_effects.mean((-1, -2))

    @property
    def stderr(self) -> Float[Tensor, "layer pos"]:
        """Of `indirect_effect`: over pairs, each the mean of its samples; over the samples of a single pair."""
        found = self.indirect_effects
        return spread(found.mean(-1)) if len(self.tokens) > 1 else spread(found[:, :, 0])

    def to_frame(self) -> "DataFrame":
        """A row for each layer and position: indirect effect with its 95 % interval, beside the total effect."""
        import pandas

        rows, reach = [], reach_95(len(self.tokens) if len(self.tokens) > 1 else self.corrupted.shape[1])
        for layer, (effects, errors) in enumerate(zip(self.indirect_effect.tolist(), self.stderr.tolist(), strict=True)):
            for position, (effect, stderr) in enumerate(zip(effects, errors, strict=True)):
                where = {"point": self.point, "window": self.window, "layer": layer, "position": position}
                where["subject"] = bool(self.subject[:, position].any())
                found = {"indirect_effect": effect, "stderr": stderr}
                found |= {"low": effect - reach * stderr, "high": effect + reach * stderr}
                about = {"total_effect": self.total_effect, "measure": self.measure}
                rows.append(where | found | about | {"n": len(self.tokens), "samples": self.corrupted.shape[1]})
        return pandas.DataFrame(rows)


@torch.no_grad()
def causal_trace(
    model: GPT2,
    tokens: Int[Tensor, "pair pos"],
    subject: Sequence[int] | Bool[Tensor, "pair pos"],
    metric: Metric,
    point: Point = "resid_post",
    *,
    window: int = 1,
    n_samples: int = 10,
    noise_std: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    naive: bool = False,
) -> CausalTrace:
    """Total and indirect effects of restoring `point` at each layer and position, on every prompt of `tokens`.

    `subject`: the positions of the subject's tokens, the same in every prompt, or a mask of each. `metric`: for instance
    probability(answer). Noise is drawn once for each prompt and sample and added at `embed`, with standard deviation
    `noise_std` (None: 3 times that of the subjects' token embeddings, as in ROME). `window` layers are restored together,
    from layer - window // 2 on, as far as there are any; ROME takes 10 for mlp_out and attn_out. Each restored run starts at
    its first restored layer, `batch_size` of them at a time; `naive` runs every one from the start.

    Raises AnalysisError for a subject that is not there, noise of no size or that the metric does not see, and a window that
    does not fit the point.
    """
    require_eval(model)
    check_tokens(tokens, model.config)
    tokens = tokens.to(model.device)
    where = _subject(subject, tokens)
    _check(model, metric, point, window, n_samples, batch_size)
    measure = Measure.of(metric, tokens, None, model.config)
    names = [(point, layer) for layer in range(model.config.n_layers)]
    logits, cache = model.run_with_cache(tokens, names)
    std = NOISE * float(model.wte(tokens)[where].std()) if noise_std is None else float(noise_std)
    if not 0 < std < float("inf"):
        raise AnalysisError(f"noise of standard deviation {std} corrupts nothing; it must be positive and finite")
    noise = _noise(where, n_samples, model.config.d_model, std, seed)
    runs = _Runs(model, measure, cache, noise, batch_size)
    shape = (len(tokens), n_samples)
    clean, corrupted = measure(logits, torch.arange(len(tokens))), runs.corrupted().unflatten(0, shape)
    if not (corrupted != clean[:, None]).any():
        raise AnalysisError(
            f"noise on the subject changes no {measure.name}: the metric does not look behind it, so nothing is traced"
        )
    restored = torch.empty(model.config.n_layers, tokens.shape[1], *shape, dtype=torch.float64)
    for layer in range(model.config.n_layers):
        layers = range(max(0, layer - window // 2), min(model.config.n_layers, layer - (-window // 2)))
        restored[layer] = runs.restored(point, layers, naive).unflatten(1, shape)
    return CausalTrace(point, window, clean, corrupted, restored, where.cpu(), tokens.cpu(), std, measure.name)


def _subject(subject: Sequence[int] | Tensor, tokens: Tensor) -> Bool[Tensor, "pair pos"]:
    if isinstance(subject, Tensor) and subject.dtype == torch.bool:
        found = subject.to(tokens.device)
        if found.shape != tokens.shape:
            raise AnalysisError(f"the subject's mask has shape {tuple(found.shape)}, the tokens {tuple(tokens.shape)}")
    else:
        found = torch.zeros_like(tokens, dtype=torch.bool)
        if subject is not None and (not isinstance(subject, Sequence) or len(subject)):
            positions = checked_positions(subject, tokens.shape[1])
            found[:, list(positions) if isinstance(positions, tuple) else positions] = True
    if not found.any(1).all():
        raise AnalysisError(f"prompt {int((~found.any(1)).nonzero()[0])} has no subject token to corrupt")
    return found


def _check(model: GPT2, metric: AnyMetric, point: str, window: int, n_samples: int, batch_size: int) -> None:
    if not isinstance(metric, Metric):
        raise AnalysisError("causal tracing needs a Metric, such as probability(answer), which knows whose logits it is given")
    if point not in POINTS or (point == "mlp_out" and model.config.attn_only):
        raise AnalysisError(f"{point!r} cannot be restored here; it is one of {', '.join(POINTS)} that the model has")
    if not 1 <= window <= max(model.config.n_layers, 1) or (point == "resid_post" and window != 1):
        at_most = 1 if point == "resid_post" else model.config.n_layers  # a stream holds all that layers before it wrote
        raise AnalysisError(f"window={window}: of {point!r}, 1 to {at_most} layers are restored together")
    if n_samples < 1 or batch_size < 1 or not model.config.n_layers:
        given = f"n_samples={n_samples}, batch_size={batch_size}, {model.config.n_layers} layers"
        raise AnalysisError(f"{given}: there is nothing to trace")


def _noise(
    where: Bool[Tensor, "pair pos"], n_samples: int, d_model: int, std: float, seed: int
) -> Float[Tensor, "pair sample pos d_model"]:
    shape = (len(where), n_samples, where.shape[1], d_model)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))  # on the CPU: the same on every device
    return std * drawn * where.cpu()[:, None, :, None]


@dataclass(frozen=True, eq=False)
class _Runs:
    """Corrupted and restored runs; a case is a prompt with one sample of noise (and a position that is restored)."""

    model: GPT2
    measure: Measure
    clean: dict[str, Tensor]
    noise: Float[Tensor, "pair sample pos d_model"]
    batch_size: int

    def corrupted(self) -> Float[Tensor, "pair*sample"]:
        cases = torch.arange(self.noise.shape[0] * self.noise.shape[1]).split(self.batch_size)
        pairs = self.noise.shape[1]
        return torch.cat([self.measure(self._corrupted(part, None), part // pairs) for part in cases])

    def restored(self, point: str, layers: range, naive: bool) -> Float[Tensor, "pos pair*sample"]:
        """The metric with these layers' clean state restored, at each position in turn."""
        n_pairs, n_samples, n_pos = self.noise.shape[:3]
        found = torch.empty(n_pos, n_pairs * n_samples, dtype=torch.float64)
        for cases in torch.arange(n_pairs * n_samples).split(max(1, self.batch_size // n_pos)):
            case, pos = (grid.flatten() for grid in torch.meshgrid(cases, torch.arange(n_pos), indexing="ij"))
            edits = {(point, layer): _Restoring(self.clean[point, layer][case // n_samples], pos) for layer in layers}
            if naive:
                values = self.measure(self._corrupted(case, None, edits), case // n_samples)
            else:
                stream = self._corrupted(cases, layers[0]).repeat_interleave(n_pos, 0)
                values = self.measure.from_layer(self.model, stream, layers[0], edits, case // n_samples)
            found[pos, case] = values
        return found

    def _corrupted(self, case: Int[Tensor, "case"], stop: int | None, edits: Edits | None = None) -> Tensor:
        """The logits of corrupted runs, or the streams before layer `stop`."""
        n_samples = self.noise.shape[1]
        noise = self.noise.flatten(0, 1)[case].to(self.measure.tokens.device)
        tokens = self.measure.tokens[case // n_samples]
        edits = {"embed": lambda value, site: value + noise.to(value.dtype), **(edits or {})}
        if stop is not None:
            return self.model.run_until(tokens, stop, (), edits)[0]
        return self.model.run_with_edits(tokens, edits)


@dataclass(frozen=True, eq=False)
class _Restoring:
    clean: Float[Tensor, "case pos d_model"]
    pos: Int[Tensor, "case"]

    def __call__(self, value: Tensor, site: Site) -> Tensor:
        case = torch.arange(len(value))
        value[case, self.pos] = self.clean[case, self.pos]
        return value
