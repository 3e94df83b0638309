"""Which windows of a token stream make up the batch of a step: a pure function of the seed and the step."""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

from interp_gpt2.data.batches import rng_at
from interp_gpt2.errors import DataError

ORDER = 3  # its stream of random numbers, beside those of batches (0, 1) and of dropout (2)


@dataclass(frozen=True)
class Sampling:
    """How training windows are chosen from a text.

    `order`: "random" draws every window anew; "epochs" takes each window once before any comes again, in an order of each
    epoch's own. `documents`: "across" lets a window begin anywhere, in epochs at multiples of n_ctx; "aligned" lets it begin
    where a document does (see `aligned_starts`); "masked" is aligned too, and `Source.batch_documents` is to be obeyed: no
    token attends to, or predicts one of, another document. Raises DataError for other words.
    """

    order: Literal["random", "epochs"] = "random"
    documents: Literal["across", "aligned", "masked"] = "across"

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) not in get_args(field.type):
                raise DataError(f"{field.name}={getattr(self, field.name)!r} is not one of {', '.join(get_args(field.type))}")

    def starts(self, offsets: "Offsets", step: int, batch_size: int, n_ctx: int, seed: int) -> Int[np.ndarray, " window"]:
        """Where the windows of the global batch begin, each followed by n_ctx more tokens of the stream."""
        if self == RANDOM:
            return rng_at(seed, step).integers(offsets.n_tokens - n_ctx, size=batch_size)
        if self.documents == "across":
            n_windows = (offsets.n_tokens - 1) // n_ctx
            return self._chosen(n_windows, step, batch_size, seed) * n_ctx
        aligned = aligned_starts(offsets, n_ctx)
        return aligned[self._chosen(len(aligned), step, batch_size, seed)]

    def _chosen(self, n_windows: int, step: int, batch_size: int, seed: int) -> Int[np.ndarray, " window"]:
        if self.order == "random":
            return rng_at(seed, step).integers(n_windows, size=batch_size)
        epochs, places = np.divmod(step * batch_size + np.arange(batch_size), n_windows)
        chosen = np.empty(batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            of_it = epochs == epoch
            chosen[of_it] = shuffled(seed, int(epoch), n_windows)[places[of_it]]
        return chosen


RANDOM = Sampling()


@dataclass(frozen=True, eq=False)
class Offsets:
    """Where each document of a stream begins, and its end. Compared by identity, so that what follows is computed once."""

    starts: Int[np.ndarray, " document_plus_1"]

    @property
    def n_tokens(self) -> int:
        return int(self.starts[-1])


@lru_cache(maxsize=2)
def shuffled(seed: int, epoch: int, n_windows: int) -> Int[np.ndarray, " window"]:
    """The numbers 0 .. n_windows - 1 in the order of one epoch. Treat as read-only."""
    order = rng_at(seed, epoch, ORDER).permutation(n_windows)
    return order.astype(np.uint32) if n_windows <= 2**32 else order


@lru_cache(maxsize=2)
def aligned_starts(offsets: Offsets, n_ctx: int) -> Int[np.ndarray, " window"]:
    """Where windows of n_ctx + 1 tokens begin that start with a document and leave nothing out.

    The first begins with the first document. Each next one begins with the last document whose first token the window
    before it still predicted, so a document that was cut is read again from its start; one longer than a window is
    continued where it was cut, each token predicted once. Every token is predicted at least once, but for the first and the
    fewer than n_ctx that are left over at the end. Raises DataError if no window fits. Treat as read-only.
    """
    starts = offsets.starts
    lengths = np.diff(starts)
    n_continued = np.maximum(-(-lengths // n_ctx) - 1, 0)  # windows that go on in a document that did not fit
    last = starts[:-1] + n_continued * n_ctx
    following = (np.searchsorted(starts, last + n_ctx, side="right") - 1).tolist()
    visited, document = [], 0
    while document < len(lengths):
        visited.append(document)
        document = following[document]
    repeats = n_continued[visited] + 1
    within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    found = np.repeat(starts[:-1][visited], repeats) + within * n_ctx
    found = found[found + n_ctx < offsets.n_tokens]
    if not len(found):
        raise DataError(f"no window of n_ctx={n_ctx} begins with a document; give more text or a smaller n_ctx")
    return found
