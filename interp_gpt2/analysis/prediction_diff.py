"""How the predictions of two models differ, token by token, beside a third's."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.analysis.logit_lens import NO_TARGET, next_tokens
from interp_gpt2.analysis.windows import Windows

Choices = tuple[tuple[int, float], ...]

_CHOICES = 3


@dataclass(frozen=True)
class Change:
    """A place where the prediction changed. `tokens` end at it; `next_token` is what really followed (None at a window's end).

    `before` and `after` are the two models' most probable next tokens, with their probabilities.
    """

    document: int
    position: int
    tokens: tuple[int, ...]
    next_token: int | None
    kl: float
    before: Choices
    after: Choices


@dataclass(frozen=True)
class TokenShift:
    """How much more probable a token became on average, from a to b and, beside it, from a to the yardstick."""

    token: int
    value: float
    yardstick: float


@dataclass(frozen=True)
class PredictionDiff:
    """`kl` is KL(a || b), mean over `n` tokens, in nats; `agreement` the share of tokens with the same first choice.

    Losses are in nats per next token. `raised` and `lowered` are the tokens whose mean probability, over all places, rose and
    fell most from a to b. `..._yardstick` are of a and the yardstick.
    """

    kl: float
    kl_yardstick: float
    agreement: float
    agreement_yardstick: float
    loss_a: float
    loss_b: float
    loss_yardstick: float
    raised: tuple[TokenShift, ...]
    lowered: tuple[TokenShift, ...]
    changes: tuple[Change, ...]
    n: int


class PredictionSums:
    """Adds up a `PredictionDiff`, batch by batch of the three models' log probabilities."""

    def __init__(self, d_vocab: int, n_examples: int, width: int) -> None:
        self.n_examples, self.width = n_examples, width
        self.n, self.n_targets = 0, 0
        self.kl, self.same = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        self.losses = torch.zeros(3, dtype=torch.float64)
        self.rise = torch.zeros(2, d_vocab, dtype=torch.float64)
        self.changes: dict[int, Change] = {}  # by document, its largest

    def add(self, part: Windows, start: int, log_probs: list[Float[Tensor, "batch pos d_vocab"]]) -> None:
        """The three models' log probabilities at the positions from `start` on, as many as there are."""
        positions = slice(start, start + log_probs[0].shape[1])
        there = part.real[:, positions]
        a, b, yardstick = (each[there] for each in log_probs)  # (token, d_vocab)
        apart = [(a.exp() * (a - other)).sum(-1) for other in (b, yardstick)]
        self.n += len(a)
        self.kl += torch.stack([each.sum() for each in apart])
        self.same += torch.stack([(a.argmax(-1) == other.argmax(-1)).sum() for other in (b, yardstick)])
        self.rise += torch.stack([(other.exp() - a.exp()).sum(0) for other in (b, yardstick)])
        targets = next_tokens(part.tokens.masked_fill(~part.real, NO_TARGET))[:, positions][there]
        known = (targets != NO_TARGET).nonzero()[:, 0]
        self.n_targets += len(known)
        for i, each in enumerate((a, b, yardstick)):
            self.losses[i] -= each[known, targets[known]].sum()
        if self.n_examples:
            kl = torch.full(there.shape, -torch.inf, dtype=torch.float64)
            kl[there] = apart[0]
            self._keep(part, start, kl, log_probs)

    def _keep(self, part: Windows, start: int, kl: Float[Tensor, "batch pos"], log_probs: list[Tensor]) -> None:
        """The largest change of each window, if it is among the largest so far."""
        highest = kl.max(1)
        for window in highest.values.argsort(descending=True, stable=True)[: self.n_examples].tolist():
            document, size, position = int(part.documents[window]), float(highest.values[window]), int(highest.indices[window])
            if size == -torch.inf or (document in self.changes and self.changes[document].kl >= size):
                continue
            before, after = (_choices(each[window, position]) for each in log_probs[:2])
            self.changes[document] = self._change(part, window, start + position, size, before, after)
        kept = sorted(self.changes.values(), key=lambda change: (-change.kl, change.document))[: self.n_examples]
        self.changes = {change.document: change for change in kept}

    def _change(self, part: Windows, window: int, position: int, kl: float, before: Choices, after: Choices) -> Change:
        tokens = part.tokens[window, : int(part.lengths[window])].tolist()
        next_token = tokens[position + 1] if position + 1 < len(tokens) else None
        shown = tuple(tokens[max(0, position + 1 - self.width) : position + 1])
        return Change(int(part.documents[window]), position, shown, next_token, kl, before, after)

    def result(self, k: int = 10) -> PredictionDiff:
        rise = self.rise / self.n
        order = [rise[0].sort(descending=down, stable=True).indices[:k].tolist() for down in (True, False)]
        sides = (tuple(TokenShift(token, *rise[:, token].tolist()) for token in side) for side in order)
        loss = (self.losses / self.n_targets).tolist() if self.n_targets else [float("nan")] * 3
        return PredictionDiff(*(self.kl / self.n).tolist(), *(self.same / self.n).tolist(), *loss, *sides, self._sorted(), self.n)

    def _sorted(self) -> tuple[Change, ...]:
        return tuple(sorted(self.changes.values(), key=lambda change: (-change.kl, change.document)))


def _choices(log_probs: Float[Tensor, "d_vocab"]) -> Choices:
    order = log_probs.sort(descending=True, stable=True).indices[:_CHOICES]
    return tuple((int(token), float(log_probs[token].exp())) for token in order)
