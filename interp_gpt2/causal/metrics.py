"""What a sweep measures: one number for each prompt, which says where in the logits it looks.

A metric that looks at one position and at a few tokens lets the engine compute just those logits. Any function of the whole
logits (pair, pos, d_vocab) is a metric too, and pays for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.errors import AnalysisError, TokenError

Ids = int | Sequence[int] | Sequence[Sequence[int]] | Int[Tensor, "*pair"] | Int[Tensor, "pair n"]
Positions = int | Int[Tensor, "pair"]
Function = Callable[[Tensor], Tensor]  # the whole logits (pair, pos, d_vocab) to a number, or to (pair,)


@dataclass(frozen=True, eq=False)
class Metric:
    """A number for each prompt, from the logits at one of its positions. Made by the functions below.

    `pos` counts a prompt's own tokens without padding, from the end when negative: one int for all prompts or (pair,).
    `tokens` (pair, n), or (1, n) for all pairs, are the columns of the vocabulary that it reads; None is all of them.
    `compared_with`: the shape (pair, pos, d_vocab) of the logits that it compares others with, where it does.
    """

    name: str
    measure: Callable[[Tensor, Tensor], Tensor]  # logits (case, n | d_vocab) and the pair of each case -> (case,)
    pos: Positions
    tokens: Int[Tensor, "pair n"] | None
    ids: Int[Tensor, "pair m"] | None = None  # every token that it is about, read or compared with; for checks
    compared_with: tuple[int, int, int] | None = None

    def value(self, logits: Float[Tensor, "case n"], pair: Int[Tensor, "case"]) -> Float[Tensor, "case"]:
        """The metric of the logits at its position, of its tokens alone where it names some; `pair` says whose they are."""
        return self.measure(logits, pair)

    def positions(self, n_pairs: int, n_pos: int, attention_mask: Tensor | None = None) -> Int[Tensor, "pair"]:
        """Where in the batch it looks. Raises AnalysisError for a position that a prompt does not have."""
        if self.compared_with is not None and self.compared_with[:2] != (n_pairs, n_pos):
            came = self.compared_with[:2]
            raise AnalysisError(
                f"{self.name} compares with logits (pair, pos) of {came}; those of this run are {(n_pairs, n_pos)}"
            )
        real = torch.ones(n_pairs, n_pos, dtype=torch.bool) if attention_mask is None else attention_mask.bool().cpu()
        pos = as_position(self.pos)
        if pos.ndim > 1 or (pos.ndim == 1 and len(pos) != n_pairs):
            raise AnalysisError(f"{self.name} looks at positions of shape {tuple(pos.shape)}; expected one, or ({n_pairs},)")
        found = []
        for pair, at in enumerate(pos.expand(n_pairs).tolist()):
            columns = real[pair].nonzero()[:, 0]
            if not -len(columns) <= at < len(columns):
                raise AnalysisError(f"{self.name} looks at position {at} of pair {pair}, which has {len(columns)} tokens")
            found.append(int(columns[at]))
        return torch.tensor(found)

    def check(self, n_pairs: int, d_vocab: int) -> None:
        """Raises TokenError for tokens that are not in the vocabulary, or are given for another number of pairs."""
        if self.compared_with is not None and self.compared_with[2] != d_vocab:
            raise TokenError(f"{self.name} compares with logits of {self.compared_with[2]} tokens; the vocabulary has {d_vocab}")
        for ids in (self.tokens, self.ids):
            if ids is None:
                continue
            if len(ids) not in (1, n_pairs):
                raise TokenError(f"{self.name} has tokens for {len(ids)} pairs; there are {n_pairs}")
            if (largest := int(ids.max())) >= d_vocab:
                raise TokenError(f"{self.name} is about token {largest}, which is not in the vocabulary of {d_vocab}")

    def at(self, logits: Float[Tensor, "pair pos d_vocab"], attention_mask: Tensor | None = None) -> Float[Tensor, "pair n"]:
        """The part of whole logits that it reads."""
        positions = self.positions(*logits.shape[:2], attention_mask).to(logits.device)
        logits = logits[torch.arange(len(logits), device=logits.device), positions]
        return logits if self.tokens is None else logits.gather(1, self.tokens.to(logits.device).expand(len(logits), -1))

    def __call__(self, logits: Float[Tensor, "pair pos d_vocab"], attention_mask: Tensor | None = None) -> Float[Tensor, "pair"]:
        """The metric of the whole logits. Differentiable, but for `rank`."""
        return self.value(self.at(logits, attention_mask), torch.arange(len(logits), device=logits.device))


def logit(token: Ids, pos: Positions = -1) -> Metric:
    """The logit of a token; of several in a row of `token`, their mean."""
    ids = as_ids(token)
    return Metric("logit", _weighted(_mean(ids)), pos, ids.clamp(min=0))


def logit_difference(correct: Ids, incorrect: Ids, pos: Positions = -1) -> Metric:
    """Logit of the correct token less that of the incorrect one; several in a row count by their mean.

    Ids are one int for all pairs, one for each pair, or (pair, n), in which -1 is no token. A difference d, in nats, is odds
    of exp(d) between the two. Raises TokenError for a token that is both.
    """
    right, wrong = as_ids(correct), as_ids(incorrect)
    if len(right) != len(wrong) and 1 not in (len(right), len(wrong)):
        raise TokenError(f"correct tokens are given for {len(right)} pairs, incorrect ones for {len(wrong)}")
    n_pairs = max(len(right), len(wrong))
    right, wrong = right.expand(n_pairs, -1), wrong.expand(n_pairs, -1)
    if ((right[:, :, None] == wrong[:, None, :]) & (right[:, :, None] >= 0)).any():
        raise TokenError("a token is both correct and incorrect, so that the difference says nothing about it")
    weights = torch.cat([_mean(right), -_mean(wrong)], 1)
    return Metric("logit difference", _weighted(weights), pos, torch.cat([right, wrong], 1).clamp(min=0))


def probability(token: Ids, pos: Positions = -1) -> Metric:
    """The probability of a token, in [0, 1]; of several in a row of `token`, their sum."""
    ids = as_ids(token)
    return Metric("probability", lambda logits, pair: _of(ids, logits.log_softmax(-1), pair).exp().sum(-1), pos, None, ids)


def log_probability(token: Ids, pos: Positions = -1) -> Metric:
    """The natural logarithm of `probability`: minus the loss, in nats."""
    ids = as_ids(token)
    return Metric("log probability", lambda logits, pair: _of(ids, logits.log_softmax(-1), pair).logsumexp(-1), pos, None, ids)


def rank(token: Ids, pos: Positions = -1) -> Metric:
    """How many tokens have a greater logit than this one: 0 is the model's first choice. Of several, the best one's."""
    ids = as_ids(token)
    return Metric("rank", lambda logits, pair: _rank(logits, _of(ids, logits, pair)), pos, None, ids)


def _rank(logits: Float[Tensor, "case d_vocab"], own: Float[Tensor, "case m"]) -> Float[Tensor, "case"]:
    return (logits > own.max(-1, keepdim=True).values).sum(-1).to(logits.dtype)


def kl_divergence(
    reference: Float[Tensor, "pair pos d_vocab"], pos: Positions = -1, attention_mask: Int[Tensor, "pair pos"] | None = None
) -> Metric:
    """KL(reference || patched) at one position, in nats: 0 where the patched model predicts as the reference did.

    `reference` are the logits of a whole pass, with the mask that it had. Natural logarithms.
    """
    if reference.ndim != 3:
        raise AnalysisError(f"reference logits are (pair, pos, d_vocab), not of shape {tuple(reference.shape)}")
    whole = Metric("KL divergence", lambda logits, pair: logits, pos, None)
    logs = whole.at(reference, attention_mask).log_softmax(-1)

    def measure(logits: Tensor, pair: Tensor) -> Tensor:
        wanted = logs.to(logits.device)[pair]
        return (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1)

    return replace(whole, measure=measure, compared_with=tuple(reference.shape))


def _of(ids: Int[Tensor, "pair m"], values: Float[Tensor, "case d_vocab"], pair: Int[Tensor, "case"]) -> Float[Tensor, "case m"]:
    """The values of each case's tokens, -inf for no token."""
    mine = (ids[pair.cpu()] if len(ids) > 1 else ids.expand(len(values), -1)).to(values.device)
    return values.gather(1, mine.clamp(min=0)).masked_fill(mine < 0, -torch.inf)


def _mean(ids: Int[Tensor, "pair m"]) -> Float[Tensor, "pair m"]:
    """What each token counts in the mean over a pair's tokens."""
    real = ids >= 0
    return real / real.sum(-1, keepdim=True)


def _weighted(weights: Float[Tensor, "pair m"]) -> Callable[[Tensor, Tensor], Tensor]:
    def measure(logits: Tensor, pair: Tensor) -> Tensor:
        mine = weights.to(logits)
        return (logits * (mine[pair] if len(mine) > 1 else mine)).sum(-1)

    return measure


def as_position(pos: Positions) -> Int[Tensor, "*pair"]:
    """One position or one of each pair, as a tensor. Raises AnalysisError for what is no whole number."""
    try:
        found = torch.as_tensor(pos)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or found.dtype not in (torch.int64, torch.int32):
        raise AnalysisError(f"a metric looks at pos={pos!r}; a position is a whole number, -1 for the last, or one of each pair")
    return found


def require_metric(metric: object) -> None:
    """Raises AnalysisError for what is neither a Metric nor a function."""
    if not isinstance(metric, Metric) and not callable(metric):
        raise AnalysisError(f"{metric!r} is no metric; pass logit_difference(correct, incorrect) or a function of the logits")


def metric_name(metric: Metric | Function) -> str:
    return metric.name if isinstance(metric, Metric) else getattr(metric, "__name__", type(metric).__name__)


def as_ids(tokens: Ids) -> Int[Tensor, "pair n"]:
    """(1, 1) from one id, (pair, 1) from one for each pair, (pair, n) as it is; -1 is no token.

    Raises TokenError for anything else, and for a row without a token.
    """
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TokenError(f"tokens are ids, one, or one or more for each pair; got {tokens!r}") from error
    if ids.dtype not in (torch.int64, torch.int32) or ids.ndim > 2 or not ids.numel():
        kind = str(ids.dtype).removeprefix("torch.")
        raise TokenError(f"tokens are ids, one, or one or more for each pair; got {kind} of shape {tuple(ids.shape)}")
    ids = ids.long().cpu().reshape(len(ids) if ids.ndim else 1, -1)
    if int(ids.min()) < -1 or bool((ids < 0).all(1).any()):
        raise TokenError(f"ids begin at 0, and -1 beside one stands for no token; got {ids.tolist()}")
    return ids
