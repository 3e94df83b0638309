"""Sources that draw their sequences as they are needed: in-context Markov chains and repeated random tokens."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import log
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.data import synthetic
from interp_gpt2.data.batches import HELD_OUT, check_shares, rng_at, share_of
from interp_gpt2.data.protocol import Reference, Source
from interp_gpt2.tokenizers import CharTokenizer, Tokenizer


@dataclass(frozen=True)
class MarkovSource:
    """In-context Markov chains (`synthetic.markov_chains`), one character for each of the 16 states.

    References are on the second half of the positions, where a chain has been seen long enough to be predicted: with
    n_ctx = 64, the predictions made at input positions 32 .. 63 of 4,096 held-out chains, that is of their states 33 .. 64.
    """

    name: str = "markov"
    tokenizer: Tokenizer = field(default_factory=lambda: CharTokenizer(synthetic.STATE_NAMES))

    def batch(self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1) -> Int[Tensor, "share pos"]:
        check_shares(batch_size, rank, world)
        return share_of(synthetic.markov_chains(rng_at(seed, step), batch_size, n_ctx + 1), rank, world)

    def batch_documents(
        self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1
    ) -> Int[Tensor, "share pos"]:
        return one_document_each(batch_size, n_ctx, rank, world)

    def to_device(self, device: torch.device | str) -> "MarkovSource":
        return self

    def validation(self, n_ctx: int, batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
        yield from synthetic.held_out_chains(n_ctx).clone().split(batch_size)

    def validation_documents(self) -> list[Int[Tensor, " pos"]]:
        return []

    def scored_positions(self, n_ctx: int) -> range:
        return range(n_ctx // 2, n_ctx)

    def references(self, n_ctx: int) -> list[Reference]:
        chains, scored = synthetic.held_out_chains(n_ctx), self.scored_positions(n_ctx)
        predictors = {
            "Bayes bigram": (
                synthetic.bayes_bigram,
                "exact posterior mean under Dirichlet(0.1); no predictor is better on average",
            ),
            "in-context unigram": (synthetic.in_context_unigram, "add-one counts of the states so far; not a bound"),
        }
        found = []
        for name, (predict, note) in predictors.items():
            losses = synthetic.losses_of(predict(chains), chains)[:, scored.start :]
            mean, stderr = synthetic.mean_and_stderr(losses)
            where = f"positions {scored.start} to {n_ctx - 1} of {len(chains):,} held-out chains"
            found.append(Reference(name, mean, stderr, losses.numel(), f"{note}; {where}"))
        return found

    def fingerprint(self) -> dict[str, Any]:
        return _fingerprint(self, synthetic.markov_chains(rng_at(0, 0), 64, 65), n_validation_sequences=synthetic.N_HELD_OUT)


@dataclass(frozen=True)
class RepeatedSource:
    """Random tokens said again: `period` tokens, uniform over the tokenizer's vocabulary, repeated to fill the sequence.

    The period is half of n_ctx unless given. From position period - 1 on, a model that copies is always right.
    """

    tokenizer: Tokenizer
    period: int | None = None
    name: str = "repeated-random"
    n_held_out: int = 1024

    def batch(self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1) -> Int[Tensor, "share pos"]:
        check_shares(batch_size, rank, world)
        return share_of(self._draw(rng_at(seed, step), batch_size, n_ctx), rank, world)

    def batch_documents(
        self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1
    ) -> Int[Tensor, "share pos"]:
        return one_document_each(batch_size, n_ctx, rank, world)

    def to_device(self, device: torch.device | str) -> "RepeatedSource":
        return self

    def validation(self, n_ctx: int, batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
        held_out = self._draw(rng_at(seed=1, step=n_ctx, stream=HELD_OUT), self.n_held_out, n_ctx)
        yield from torch.from_numpy(held_out).split(batch_size)

    def validation_documents(self) -> list[Int[Tensor, " pos"]]:
        return []

    def scored_positions(self, n_ctx: int) -> range:
        return range(n_ctx)

    def references(self, n_ctx: int) -> list[Reference]:
        period, n = self.period_of(n_ctx), self.n_held_out * n_ctx
        uniform = log(self.tokenizer.d_vocab)
        copied = max(0, n_ctx - period + 1)  # predictions of a token that stood `period` tokens before
        return [
            Reference(
                "perfect copying",
                (1 - copied / n_ctx) * uniform,
                None,
                n,
                f"ln d_vocab until the first repeat, then 0; period {period}",
            ),
            Reference("no copying", uniform, None, n, "ln d_vocab everywhere"),
        ]

    def fingerprint(self) -> dict[str, Any]:
        return _fingerprint(self, self._draw(rng_at(0, 0), 64, 64), n_validation_sequences=self.n_held_out)

    def period_of(self, n_ctx: int) -> int:
        """After how many tokens a sequence of this context repeats."""
        return self.period or max(1, n_ctx // 2)

    def _draw(self, rng: np.random.Generator, n_sequences: int, n_ctx: int) -> Int[np.ndarray, "sequence pos"]:
        return synthetic.repeated_tokens(rng, n_sequences, n_ctx + 1, self.tokenizer.d_vocab, self.period_of(n_ctx))


def one_document_each(batch_size: int, n_ctx: int, rank: int, world: int) -> Int[Tensor, "share pos"]:
    """Every sequence is a document of its own."""
    check_shares(batch_size, rank, world)
    return torch.ones(batch_size // world, n_ctx + 1, dtype=torch.int64)


def _fingerprint(source: Source, sample: Int[np.ndarray, "sequence pos"], **facts: Any) -> dict[str, Any]:
    """For data that is drawn as it is needed, the hash of a sample stands for all of it."""
    return {
        "data": source.name,
        "sha256": hashlib.sha256(sample.astype("<i8").tobytes()).hexdigest(),
        "tokenizer_sha256": source.tokenizer.sha256,
        **facts,
        "python": sys.version,
        "numpy": np.__version__,
    }
