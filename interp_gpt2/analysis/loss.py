"""How well the model predicts, in nats per token, on average and by position."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.references import ReferenceLosses
from interp_gpt2.analysis.rows import Row, StackableAnalysis, interval, require_eval, standard_error
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.inputs import check_tokens
from interp_gpt2.model import GPT2


@dataclass(frozen=True)
class MeanLoss:
    """A mean loss in nats per token, with its standard error over `n` sequences (NaN for one) of as many tokens each."""

    loss: float
    stderr: float
    n: int
    n_tokens: int


@dataclass(frozen=True, eq=False)
class PositionLoss:
    """Mean loss at each of `positions`, in nats, with standard errors over `n` sequences (NaN for one)."""

    positions: tuple[int, ...]
    loss: Float[Tensor, "pos"]
    stderr: Float[Tensor, "pos"]
    n: int


@torch.no_grad()
def token_losses(model: GPT2, tokens: Int[Tensor, "batch pos+1"], batch_size: int = 16) -> Float[Tensor, "batch pos"]:
    """-ln p(tokens[:, t + 1] | tokens[:, : t + 1]) at each position t, in nats, float64 on the CPU.

    A sequence of n + 1 tokens has n losses. Logits exist for `batch_size` sequences at a time.

    Raises AnalysisError for sequences of fewer than two tokens, which predict nothing.
    """
    require_eval(model)
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise AnalysisError(f"tokens {tuple(tokens.shape)} predict nothing; pass (batch, pos + 1), two tokens a sequence or more")
    losses = []
    for part in tokens.split(batch_size):
        part = part.to(model.device)
        check_tokens(part[:, 1:], model.config)  # the last column is predicted, but never read by the model
        log_probs = model(part[:, :-1]).float().log_softmax(-1)
        losses.append(-log_probs.gather(-1, part[:, 1:, None].long())[..., 0].cpu().double())
    return torch.cat(losses)


def mean_loss(losses: Float[Tensor, "batch pos"], positions: Sequence[int] | None = None) -> MeanLoss:
    """The mean of `token_losses` at `positions` (default: all). Sequences are the independent units of its standard error.

    Raises AnalysisError for a position that is not there.
    """
    kept = losses[:, list(_checked(losses, positions))]
    return MeanLoss(float(kept.mean()), standard_error(kept.mean(1)), len(kept), kept.numel())


def loss_by_position(losses: Float[Tensor, "batch pos"], positions: Sequence[int] | None = None) -> PositionLoss:
    """The mean over sequences of `token_losses` at each of `positions` (default: all).

    In-context learning shows as a loss that falls with position (Kaplan et al. 2020, "Scaling Laws for Neural Language
    Models"; Olsson et al. 2022, "In-context Learning and Induction Heads").

    Raises AnalysisError for a position that is not there.
    """
    positions = _checked(losses, positions)
    kept = losses[:, list(positions)]
    stderr = kept.std(0) / math.sqrt(len(kept)) if len(kept) > 1 else torch.full_like(kept[0], math.nan)
    return PositionLoss(positions, kept.mean(0), stderr, len(kept))


def _checked(losses: Tensor, positions: Sequence[int] | None) -> tuple[int, ...]:
    n_pos = losses.shape[1]
    positions = tuple(range(n_pos) if positions is None else positions)
    wrong = [position for position in positions if not 0 <= position < n_pos]
    if wrong or not positions:
        what = f"position {wrong[0]} is not there" if wrong else "no positions were named"
        raise AnalysisError(f"{what}: losses are at positions 0 to {n_pos - 1}")
    return positions


@dataclass(frozen=True, eq=False)
class LossByPosition(StackableAnalysis):
    """`loss_by_position` for a sweep.

    A "loss" row for each position, one "mean_loss" row over all of them, and "loss_uniform" = ln d_vocab, the loss of
    a model that knows nothing. For each of `references`, "loss_trigram" and "mean_loss_trigram" and so on: what that
    predictor loses on the same tokens. `tokens` holds one more token than there are positions; `positions` default to all.
    """

    tokens: Int[Tensor, "batch pos+1"]
    positions: tuple[int, ...] | None = None
    batch_size: int = 16
    name: str = "loss_by_position"
    references: tuple[ReferenceLosses, ...] = ()

    def measure(self, model: GPT2) -> Float[Tensor, "batch pos"]:
        return token_losses(model, self.tokens, self.batch_size)

    def rows_of(self, measured: Float[Tensor, "batch pos"], config: GPT2Config) -> list[Row]:
        rows: list[Row] = [{"metric": "loss_uniform", "value": math.log(config.d_vocab)}]
        for suffix, losses in {"": measured, **{reference.suffix: reference.losses for reference in self.references}}.items():
            mean, by_position = mean_loss(losses, self.positions), loss_by_position(losses, self.positions)
            mean_row = {"metric": f"mean_loss{suffix}", "value": mean.loss, "n": mean.n_tokens}
            rows.append({**mean_row, **interval(mean.loss, mean.stderr, mean.n)})
            found = zip(by_position.positions, by_position.loss.tolist(), by_position.stderr.tolist(), strict=True)
            for position, loss, stderr in found:
                row = {"metric": f"loss{suffix}", "position": position, "value": loss, "n": by_position.n}
                rows.append({**row, **interval(loss, stderr, by_position.n)})
        return rows
