"""Does the model predict better the more it has read? The in-context-learning score."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.loss import token_losses
from interp_gpt2.analysis.references import ReferenceLosses
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

    Rows "in_context_learning" with a 95 % interval, "early_loss" and "late_loss", and with the `reference`'s name behind
    them ("in_context_learning_trigram") what it scores on the same windows: what a model must go below before its score
    says more than that; without a value (null) where there are fewer than 64 positions. `tokens` holds one more token than
    there are positions.
    """

    tokens: Int[Tensor, "batch pos+1"]
    batch_size: int = 16
    name: str = "in_context_learning"
    reference: ReferenceLosses | None = None

    def __call__(self, model: GPT2) -> list[Row]:
        suffixes = ["", self.reference.suffix] if self.reference else [""]
        if self.tokens.shape[1] - 1 < SHORTEST:
            metrics = ("in_context_learning", "early_loss", "late_loss")
            return [{"metric": metric + suffix, "n": len(self.tokens)} for suffix in suffixes for metric in metrics]
        rows = _rows("", token_losses(model, self.tokens, self.batch_size))
        return rows + _rows(suffixes[1], self.reference.losses) if self.reference else rows


def _rows(suffix: str, losses: Float[Tensor, "batch pos"]) -> list[Row]:
    found = in_context_learning_score(losses)
    n = found.n
    return [
        {"metric": f"in_context_learning{suffix}", "value": found.score, "n": n, **interval(found.score, found.stderr, n)},
        {"metric": f"early_loss{suffix}", "value": found.early, "n": n},
        {"metric": f"late_loss{suffix}", "value": found.late, "n": n},
    ]
