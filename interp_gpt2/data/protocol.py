"""What every source of training data gives, and the reference losses that come with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.tokenizers import Tokenizer


@dataclass(frozen=True)
class Reference:
    """A loss to hold a model's against, in nats per token, measured on the source's validation split.

    `loss` is the mean of `n` predictions, those made at the source's `scored_positions`; `stderr` its standard error with
    one observation per sequence, or None where the loss is exact. `note` says how it was computed.
    """

    name: str
    loss: float
    stderr: float | None
    n: int
    note: str


class Source(Protocol):
    """Sequences are n_ctx + 1 tokens long: the inputs are sequence[:-1], and position p predicts sequence[p + 1]."""

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def batch(self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1) -> Int[Tensor, "share pos"]:
        """Training sequences, a pure function of the arguments; rank r gets slice r of the same global batch."""
        ...

    def batch_documents(
        self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1
    ) -> Int[Tensor, "share pos"]:
        """Which document each token of the same `batch` is from, counted from 1 in each sequence: a model's attention mask."""
        ...

    def to_device(self, device: torch.device | str) -> "Source":
        """The same source with its tokens resident there, where batches are put together; a drawn one stays as it is."""
        ...

    def validation(self, n_ctx: int, batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
        """The whole held-out split, always the same and in the same order; the last batch may be smaller."""
        ...

    def validation_documents(self) -> list[Int[Tensor, " pos"]]:
        """The held-out split as whole documents, for analyses that must not mix them; empty for synthetic sources."""
        ...

    def scored_positions(self, n_ctx: int) -> range:
        """The positions whose predictions `references` averages; a model is compared with them on the same ones."""
        ...

    def references(self, n_ctx: int) -> list[Reference]:
        """Losses of simple or best possible predictors on the validation split, at `scored_positions`."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data, ready for JSON: hashes, counts, and the versions they depend on."""
        ...
