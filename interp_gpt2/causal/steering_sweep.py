"""How much steering does, and at what price: the wanted effect and the damage to other text, coefficient by coefficient."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.causal.ablation_effect import spread
from interp_gpt2.causal.measuring import AnyMetric, Measure
from interp_gpt2.causal.positions import Where
from interp_gpt2.causal.steering import SteeringVector
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import Edits
from interp_gpt2.inputs import check_tokens
from interp_gpt2.model import GPT2

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class SteeringSweep:
    """The wanted effect on prompts and the side effects on neutral text, for each coefficient of each vector.

    `vectors` are "steering" and its controls, "random 0", "random 1", ...: random directions of the same length. `loss` is of
    the next token, `kl` is KL(unsteered || steered) averaged over positions; both in nats per token of the neutral text.
    """

    vectors: tuple[str, ...]
    coefficients: tuple[float, ...]
    metric: Float[Tensor, "vector coefficient prompt"]
    loss: Float[Tensor, "vector coefficient sequence"]
    kl: Float[Tensor, "vector coefficient sequence"]
    clean_metric: Float[Tensor, "prompt"]
    clean_loss: Float[Tensor, "sequence"]
    measure: str
    hook_point: str

    @property
    def effect(self) -> Float[Tensor, "vector coefficient prompt"]:
        """The metric's change by steering."""
        return self.metric - self.clean_metric

    def to_frame(self) -> "DataFrame":
        """A row for each vector and coefficient: means, with standard errors over prompts and over neutral sequences."""
        import pandas

        rows = []
        for v, vector in enumerate(self.vectors):
            for c, coefficient in enumerate(self.coefficients):
                row = {"vector": vector, "coefficient": coefficient, "measure": self.measure}
                loss = self.loss[v, c] - self.clean_loss
                for name, values in (("effect", self.effect[v, c]), ("loss_change", loss), ("kl", self.kl[v, c])):
                    row |= {name: float(values.mean()), f"{name}_stderr": float(spread(values))}
                clean = {"clean": float(self.clean_metric.mean()), "clean_loss": float(self.clean_loss.mean())}
                rows.append(row | clean | {"n": self.metric.shape[-1], "n_neutral": self.loss.shape[-1]})
        return pandas.DataFrame(rows)


@torch.no_grad()
def steering_sweep(
    model: GPT2,
    vector: SteeringVector,
    coefficients: float | Sequence[float],
    tokens: Int[Tensor, "prompt pos"],
    metric: AnyMetric,
    neutral: Int[Tensor, "sequence pos"],
    *,
    positions: Where = None,
    attention_mask: Int[Tensor, "prompt pos"] | None = None,
    neutral_mask: Int[Tensor, "sequence pos"] | None = None,
    n_random: int = 3,
    batch_size: int = 16,
    seed: int = 0,
) -> SteeringSweep:
    """`metric` of the prompts, and loss and KL of `neutral` text, under each coefficient times the vector.

    Steered at `positions` of both (None: everywhere). The controls are `n_random` random vectors of the same length.
    Raises AnalysisError for no coefficients, and as the vector's edits and the metric do.
    """
    require_eval(model)
    coefficients = tuple(coefficients) if isinstance(coefficients, Iterable) else (coefficients,)
    if not coefficients or n_random < 0 or batch_size < 1:
        raise AnalysisError(f"{len(coefficients)} coefficients, n_random={n_random}, batch_size={batch_size}: nothing to sweep")
    vectors = {"steering": vector} | {f"random {i}": vector.random(seed + i) for i in range(n_random)}
    edits = [[one.edits(coefficient, positions) for coefficient in coefficients] for one in vectors.values()]
    wanted = Measure.of(metric, tokens, attention_mask, model.config)
    side = Measure.of(None, neutral, neutral_mask, model.config)
    values, clean = _values(model, wanted, edits, attention_mask, batch_size, with_kl=False)
    side_values, clean_loss = _values(model, side, edits, neutral_mask, batch_size, with_kl=True)
    return SteeringSweep(
        tuple(vectors), coefficients, values[..., 0], side_values[..., 0], side_values[..., 1], clean, clean_loss,
        wanted.name, vector.hook_point,
    )  # fmt: skip


def _values(
    model: GPT2, measure: Measure, edits: list[list[Edits]], mask: Tensor | None, batch_size: int, with_kl: bool
) -> tuple[Float[Tensor, "vector coefficient sequence which"], Float[Tensor, "sequence"]]:
    n = len(measure.tokens)
    found = torch.empty(len(edits), len(edits[0]), n, 1 + with_kl, dtype=torch.float64)
    clean = torch.empty(n, dtype=torch.float64)
    for of in torch.arange(n).split(batch_size):
        tokens = measure.tokens[of].to(model.device)
        part = None if mask is None else mask[of].to(model.device)
        check_tokens(tokens, model.config, part)
        logits = model(tokens, attention_mask=part)
        clean[of] = measure(logits, of)
        for v, of_vector in enumerate(edits):
            for c, edit in enumerate(of_vector):
                steered = model.run_with_edits(tokens, edit, part)
                found[v, c, of, 0] = measure(steered, of)
                if with_kl:
                    found[v, c, of, 1] = _mean_kl(logits, steered, part)
    return found, clean


def _mean_kl(clean: Tensor, steered: Tensor, mask: Tensor | None) -> Float[Tensor, "sequence"]:
    """KL(clean || steered), averaged over a sequence's real tokens, in nats."""
    kl = F.kl_div(steered.double().log_softmax(-1), clean.double().log_softmax(-1), reduction="none", log_target=True).sum(-1)
    real = torch.ones_like(kl) if mask is None else mask.bool().double()
    return ((kl * real).sum(1) / real.sum(1)).cpu()
