"""Does the model predict better the more it has read? The in-context-learning score."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.loss import token_losses
from interp_gpt2.analysis.rows import Analysis, Row, interval, standard_error
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

SHORTEST = 64  # positions; with fewer, early and late are too few tokens and too near to each other


@dataclass(frozen=True)
class InContextLearning:
    """Late loss minus early loss, in nats per token, with its standard error over `n` sequences (NaN for one)."""

    score: float
    stderr: float
    early: float
    late: float
    n: int


def in_context_learning_score(losses: Float[Tensor, "batch pos"]) -> InContextLearning:
    """Mean loss over the last eighth of the positions less that over positions n / 16 to n / 8, of `token_losses`.

    In nats per token. 0 for a model that makes nothing of its context, such as a bigram model; below 0 the more it does.
    Olsson et al. 2022, "In-context Learning and Induction Heads", whose score is the loss of the 500th token less that of
    the 50th of 512; ranges of positions in place of single ones measure the same in shorter contexts, with less noise.
    Sequences are the independent units of the standard error.

    Raises AnalysisError for fewer than 64 positions.
    """
    n_pos = losses.shape[1]
    if n_pos < SHORTEST:
        raise AnalysisError(f"{n_pos} positions are too few to tell early from late; the score needs {SHORTEST}")
    early = losses[:, n_pos // 16 : n_pos // 8].mean(1)
    late = losses[:, n_pos - n_pos // 8 :].mean(1)
    gain = late - early
    return InContextLearning(float(gain.mean()), standard_error(gain), float(early.mean()), float(late.mean()), len(losses))


@dataclass(frozen=True, eq=False)
class InContextLearningScore(Analysis):
    """`in_context_learning_score` for a sweep.

    Rows "in_context_learning" with a 95 % interval, "early_loss" and "late_loss"; without a value (null) where there are
    fewer than 64 positions. `tokens` holds one more token than there are positions.
    """

    tokens: Int[Tensor, "batch pos+1"]
    batch_size: int = 16
    name: str = "in_context_learning"

    def __call__(self, model: GPT2) -> list[Row]:
        n, n_pos = self.tokens.shape[0], self.tokens.shape[1] - 1
        if n_pos < SHORTEST:
            return [{"metric": metric, "n": n} for metric in ("in_context_learning", "early_loss", "late_loss")]
        with torch.no_grad():
            found = in_context_learning_score(token_losses(model, self.tokens, self.batch_size))
        return [
            {"metric": "in_context_learning", "value": found.score, "n": n, **interval(found.score, found.stderr)},
            {"metric": "early_loss", "value": found.early, "n": n},
            {"metric": "late_loss", "value": found.late, "n": n},
        ]
