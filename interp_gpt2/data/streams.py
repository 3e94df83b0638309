"""A corpus as tokens on disk: one file that is memory-mapped, verified when it is opened, and whole or absent.

line 1       interp_gpt2 token stream 1
line 2       a JSON object padded with spaces: dtype, n_tokens, n_documents, tokenizer, sha256, about
then         the tokens, little-endian uint16, or uint32 for vocabularies above 65,536
then         where each document begins, and the end: n_documents + 1 little-endian uint64
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.data.batches import check_shares, rng_at, share_of
from interp_gpt2.errors import DataError
from interp_gpt2.files import written_atomically
from interp_gpt2.tokenizers import Tokenizer

MAGIC = b"interp_gpt2 token stream 1\n"
HEADER_BYTES = 4096  # one page, so that the tokens are aligned


@dataclass(frozen=True)
class TokenStream:
    """Tokens of a corpus with the beginnings of its documents. `about` says which text this is; `tokenizer` is a hash."""

    path: Path
    tokens: Int[np.ndarray, " token"]
    offsets: Int[np.ndarray, " document_plus_1"]
    tokenizer: str
    sha256: str
    about: dict[str, Any]

    @classmethod
    def write(
        cls,
        path: Path,
        tokens: Int[np.ndarray, " token"],
        offsets: Int[np.ndarray, " document_plus_1"],
        tokenizer: Tokenizer,
        about: dict[str, Any],
    ) -> "TokenStream":
        """Writes the stream and opens it.

        Raises DataError if there are no tokens, some that the tokenizer lacks, or no place to write them.
        """
        if not len(tokens) or int(tokens.max()) >= tokenizer.d_vocab or int(tokens.min()) < 0:
            raise DataError(f"{len(tokens)} tokens for {path}: expected one or more, each from 0 to {tokenizer.d_vocab - 1}")
        dtype = "<u2" if tokenizer.d_vocab <= 2**16 else "<u4"
        body = tokens.astype(dtype).tobytes() + offsets.astype("<u8").tobytes()
        header = {
            "dtype": dtype,
            "n_tokens": len(tokens),
            "n_documents": len(offsets) - 1,
            "tokenizer": tokenizer.sha256,
            "sha256": hashlib.sha256(body).hexdigest(),
            "about": about,
        }
        line = json.dumps(header).encode()
        assert len(line) < HEADER_BYTES - len(MAGIC), "a header says which text this is, it does not hold it"
        try:
            with written_atomically(path) as file:
                file.write(MAGIC + line.ljust(HEADER_BYTES - len(MAGIC) - 1) + b"\n" + body)
        except OSError as error:
            raise DataError(
                f"tokens cannot be written to {path.parent} ({error.strerror}); set INTERP_GPT2_CACHE to one that can be written"
            ) from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "TokenStream":
        """Maps a stream into memory, having checked its header, its size and the hash of its contents.

        Raises DataError naming the file when it is missing, cut short or altered.
        """
        header = _read_header(path)
        try:
            dtype, n_tokens, n_documents = np.dtype(header["dtype"]), int(header["n_tokens"]), int(header["n_documents"])
            expected = HEADER_BYTES + n_tokens * dtype.itemsize + 8 * (n_documents + 1)
            stream_sha256, tokenizer, about = header["sha256"], header["tokenizer"], header["about"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a token stream: its header lacks {error}; delete it to have it made again") from error
        if (size := path.stat().st_size) != expected:
            raise DataError(
                f"{path} was cut short or altered: {size:,} bytes instead of {expected:,}; delete it to have it made again"
            )
        body = np.asarray(np.memmap(path, mode="r", offset=HEADER_BYTES))
        if hashlib.sha256(body).hexdigest() != stream_sha256:
            raise DataError(f"{path} was altered: its contents do not match its SHA-256; delete it to have it made again")
        split = n_tokens * dtype.itemsize
        return cls(path, body[:split].view(dtype), body[split:].view("<u8").astype(np.int64), tokenizer, stream_sha256, about)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1) -> Int[Tensor, "share pos"]:
        """`batch_size` windows of n_ctx + 1 tokens, each starting anywhere with equal chance, across documents too.

        A pure function of the arguments; rank r gets slice r of the same global batch. Raises DataError if no window fits.
        """
        self.check_fits(n_ctx)
        check_shares(batch_size, rank, world)
        starts = rng_at(seed, step).integers(len(self.tokens) - n_ctx, size=batch_size)
        return share_of(self.tokens[starts[:, None] + np.arange(n_ctx + 1)], rank, world)

    def windows(self, n_ctx: int, batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
        """The whole stream, in order, as windows of n_ctx + 1 tokens that overlap by one: each token is predicted once.

        The first token is never predicted, nor are the fewer than n_ctx that are left over at the end.
        """
        self.check_fits(n_ctx)
        starts = np.arange(0, len(self.tokens) - n_ctx, n_ctx)
        for first in range(0, len(starts), batch_size):
            index = starts[first : first + batch_size, None] + np.arange(n_ctx + 1)
            yield torch.from_numpy(self.tokens[index].astype(np.int64))

    @cached_property
    def documents(self) -> list[Int[Tensor, " pos"]]:
        """The tokens of each document by itself."""
        return [
            torch.from_numpy(self.tokens[start:end].astype(np.int64))
            for start, end in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        ]

    def check_fits(self, n_ctx: int) -> None:
        """Raises DataError unless the stream holds one window of n_ctx + 1 tokens."""
        if len(self.tokens) < n_ctx + 1:
            raise DataError(
                f"the {self.path.stem} text has {len(self.tokens)} tokens and n_ctx={n_ctx} needs at least {n_ctx + 1}; give "
                "more text or a smaller n_ctx"
            )


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise DataError(f"no token stream at {path} ({error.strerror})") from error
    if not head.startswith(MAGIC):
        raise DataError(f"{path} is not a token stream of this version; delete it to have it made again")
    try:
        return json.loads(head[len(MAGIC) :])
    except ValueError as error:
        raise DataError(f"{path} has a damaged header; delete it to have it made again") from error
