"""Tokens to measure on: a run's own held-out data, or repeated random tokens where that is gone."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.data.batches import HELD_OUT, rng_at
from interp_gpt2.data.source import Source
from interp_gpt2.data.synthetic import repeated_tokens

PROMPT_CHARACTERS = 48
HEAD_SEQUENCES = 32
OWN_DRAWS = 1_000_003  # added to a seed: windows that are not those of a run's own training steps


@dataclass(frozen=True, eq=False)
class Sequences:
    """Tokens to measure on, with one more than the model's inputs, what they are in words, and whose they are."""

    tokens: Int[Tensor, "batch pos+1"]
    are: str
    source: Source | None = None

    @property
    def inputs(self) -> Int[Tensor, "batch pos"]:
        return self.tokens[:, :-1]


def held_out(source: Source, n_ctx: int, n: int | None = None) -> Sequences:
    """`n` sequences, evenly spaced over the whole validation split (all of it where it has no more)."""
    tokens = torch.cat(list(source.validation(n_ctx, 256)))
    if n is None or len(tokens) <= n:
        return Sequences(tokens, f"all {len(tokens):,} held-out sequences of {source.name}", source)
    chosen = torch.arange(n) * len(tokens) // n
    return Sequences(tokens[chosen], f"{n:,} held-out sequences of {source.name}, evenly spaced", source)


def training_windows(source: Source, n_ctx: int, n: int, seed: int = 0) -> Int[Tensor, "batch pos+1"]:
    """`n` windows of a source's training data, drawn apart from those of any run's own steps."""
    return source.batch(0, n, n_ctx, seed + OWN_DRAWS).cpu()


def repeated_random(config: GPT2Config, n: int = HEAD_SEQUENCES) -> Sequences:
    """Random tokens said twice: input on which induction can be told in any model, for want of its own data."""
    period = max(1, config.n_ctx // 2)
    tokens = repeated_tokens(rng_at(0, 0, HELD_OUT), n, config.n_ctx + 1, config.d_vocab, period)
    return Sequences(torch.from_numpy(tokens), f"{n} sequences of random tokens repeated with period {period}")


def prompt_of(source: Source, n_ctx: int) -> str:
    """The beginning of a line of held-out text, up to 48 characters of whole words; else that of a held-out sequence."""
    limit = min(PROMPT_CHARACTERS, n_ctx)
    for document in source.validation_documents():
        lines = source.tokenizer.decode(document[:4000].tolist()).splitlines()
        long = [line.strip() for line in lines if len(line.strip()) >= limit and line.strip()[0].isalpha()]
        if long:
            return long[0][:limit].rpartition(" ")[0] or long[0][:limit]
    first = next(iter(source.validation(n_ctx, 1)))[0]
    return source.tokenizer.decode(first[:limit].tolist())
