"""The loss of predicting each token from how often it followed the one or two before it: what a model has to beat."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from interp_gpt2.errors import DataError

SMOOTHING = "interpolated Witten-Bell"


@dataclass(frozen=True)
class _Level:
    """Counts of n-grams and of what follows each (n-1)-gram; an n-gram's code is its tokens read as a number in base d_vocab."""

    codes: Int[np.ndarray, " gram"]
    counts: Int[np.ndarray, " gram"]
    contexts: Int[np.ndarray, " context"]
    totals: Int[np.ndarray, " context"]  # occurrences of the context
    types: Int[np.ndarray, " context"]  # different tokens seen after it

    def followers(
        self, contexts: Int[np.ndarray, " context"], d_vocab: int
    ) -> tuple[Int[np.ndarray, " context"], Int[np.ndarray, " context"]]:
        """Where in `codes` what was seen after each context begins and ends: nowhere, both the same, after one never seen."""
        first = contexts * d_vocab
        return np.searchsorted(self.codes, first), np.searchsorted(self.codes, first + d_vocab)

    def interpolated(
        self, codes: Int[np.ndarray, "..."], contexts: Int[np.ndarray, "..."], lower: Float[np.ndarray, "..."]
    ) -> Float[np.ndarray, "..."]:
        count = _looked_up(self.codes, self.counts, codes)
        total, types = (_looked_up(self.contexts, values, contexts) for values in (self.totals, self.types))
        return np.where(total > 0, (count + types * lower) / np.maximum(total + types, 1), lower)


@dataclass(frozen=True)
class NGramModel:
    """An n-gram model with interpolated Witten-Bell smoothing, down to the uniform distribution.

    P(w | h) = (c(h w) + T(h) P(w | h')) / (c(h) + T(h)), where c counts, T(h) is the number of different tokens seen after
    h, and h' is h without its first token; a context never seen passes on P(w | h'). Witten and Bell 1991; Chen and Goodman
    1999, "An Empirical Study of Smoothing Techniques for Language Modeling".
    """

    d_vocab: int
    levels: tuple[_Level, ...]

    @classmethod
    def fit(cls, tokens: Int[np.ndarray, " token"], d_vocab: int, order: int = 3) -> "NGramModel":
        """Counts the n-grams of `tokens` up to length `order`. Raises DataError if there are too few, or codes overflow."""
        if len(tokens) < order:
            raise DataError(f"{len(tokens)} tokens hold no {order}-gram; give more text")
        if d_vocab**order >= 2**63:
            raise DataError(f"d_vocab={d_vocab} is too large for {order}-grams; use order={order - 1}")
        return cls(d_vocab, tuple(_count(codes_of(tokens, n, d_vocab), d_vocab) for n in range(1, order + 1)))

    def token_losses(self, tokens: Int[np.ndarray, " token"], order: int) -> Float[np.ndarray, " token_minus_1"]:
        """Loss in nats of each token but the first, given up to order - 1 tokens before it."""
        probability = np.full(len(tokens), 1 / self.d_vocab)
        for n, level in enumerate(self.levels[:order], start=1):
            codes = codes_of(tokens, n, self.d_vocab)  # of the n-gram that ends at each token from n - 1 on
            probability[n - 1 :] = level.interpolated(codes, codes // self.d_vocab, probability[n - 1 :])
        return -np.log(probability[1:])

    def next_token_probabilities(self, contexts: Int[np.ndarray, "context pos"]) -> Float[np.ndarray, "context d_vocab"]:
        """The distribution of the token after each row of `contexts`, of which the last tokens count; each row sums to 1."""
        n_contexts, length = contexts.shape
        probability = np.full((n_contexts, self.d_vocab), 1 / self.d_vocab)
        for n, level in enumerate(self.levels[: length + 1], start=1):
            code = np.zeros(n_contexts, dtype=np.int64)
            for pos in range(length - n + 1, length):
                code = code * self.d_vocab + contexts[:, pos]
            codes = code[:, None] * self.d_vocab + np.arange(self.d_vocab)
            probability = level.interpolated(codes, code[:, None], probability)
        return probability


def codes_of(tokens: Int[np.ndarray, " token"], n: int, d_vocab: int) -> Int[np.ndarray, " gram"]:
    """A number for each n-gram of `tokens`, in order: its tokens read as digits in base d_vocab."""
    code = np.zeros(max(0, len(tokens) - n + 1), dtype=np.int64)
    for offset in range(n):
        code = code * d_vocab + tokens[offset : offset + len(code)]
    return code


def _count(codes: Int[np.ndarray, " gram"], d_vocab: int) -> _Level:
    unique, counts = np.unique(codes, return_counts=True)
    contexts, starts = np.unique(unique // d_vocab, return_index=True)  # sorted codes keep those of one context together
    return _Level(unique, counts, contexts, np.add.reduceat(counts, starts), np.diff(starts, append=len(unique)))


def _looked_up(
    keys: Int[np.ndarray, " key"], values: Int[np.ndarray, " key"], wanted: Int[np.ndarray, "..."]
) -> Int[np.ndarray, "..."]:
    """The value of each wanted key, 0 where it is not among the sorted `keys`."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
