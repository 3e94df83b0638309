"""A corpus as tokens on disk: files that are memory-mapped, verified when they are opened, and whole or absent.

line 1       interp_gpt2 token stream 1
line 2       a JSON object padded with spaces: dtype, n_tokens, n_documents, tokenizer, sha256, about
then         the tokens, little-endian uint16, or uint32 for vocabularies above 65,536
then         where each document begins, and the end: n_documents + 1 little-endian uint64
"""

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.data.batches import check_shares
from interp_gpt2.data.sampling import RANDOM, Offsets, Sampling
from interp_gpt2.errors import DataError
from interp_gpt2.files import written_atomically
from interp_gpt2.tokenizers import Tokenizer

MAGIC = b"interp_gpt2 token stream 1\n"
HEADER_BYTES = 4096  # one page, so that the tokens are aligned


class Stream(ABC):
    """Tokens in order with the beginnings of their documents, and what training and validation read of them.

    `about` says which text this is; `sha256` is a hash of the tokens and documents.
    """

    name: str
    sha256: str
    about: dict[str, Any]
    offsets: Offsets

    @abstractmethod
    def take(self, starts: Int[np.ndarray, " window"], length: int) -> Int[Tensor, "window length"]:
        """The `length` tokens from each of these places on, as int64 in memory of their own."""

    @abstractmethod
    def head(self, n: int) -> Int[np.ndarray, " token"]:
        """The first n tokens, or all if there are fewer. Read-only."""

    def __len__(self) -> int:
        return self.offsets.n_tokens

    def batch(
        self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1, sampling: Sampling = RANDOM
    ) -> Int[Tensor, "share pos"]:
        """Windows of n_ctx + 1 tokens, unless told otherwise starting anywhere with equal chance, across documents too.

        A pure function of the arguments; rank r gets slice r of the same global batch. Raises DataError if no window fits.
        """
        return self.take(self.window_starts(step, batch_size, n_ctx, seed, rank, world, sampling), n_ctx + 1)

    def batch_documents(
        self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1, sampling: Sampling = RANDOM
    ) -> Int[Tensor, "share pos"]:
        """The document that each token of `batch` is from, counted from 1 in each window: an attention mask for the model."""
        starts = self.window_starts(step, batch_size, n_ctx, seed, rank, world, sampling)
        first, end = (np.searchsorted(self.offsets.starts, place, side="right") for place in (starts, starts + n_ctx))
        begins = np.zeros((len(starts), n_ctx + 1), dtype=np.int64)
        for row, start in enumerate(starts):
            np.add.at(begins[row], self.offsets.starts[first[row] : end[row]] - start, 1)
        return torch.from_numpy(begins.cumsum(1) + 1)

    def window_starts(
        self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int, world: int, sampling: Sampling
    ) -> Int[np.ndarray, " share"]:
        """Where this process's windows of the global batch begin."""
        self.check_fits(n_ctx)
        check_shares(batch_size, rank, world)
        share = batch_size // world
        return sampling.starts(self.offsets, step, batch_size, n_ctx, seed)[rank * share : (rank + 1) * share]

    def windows(self, n_ctx: int, batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
        """The whole stream, in order, as windows of n_ctx + 1 tokens that overlap by one: each token is predicted once.

        The first token is never predicted, nor are the fewer than n_ctx that are left over at the end.
        """
        self.check_fits(n_ctx)
        starts = np.arange(0, len(self) - n_ctx, n_ctx)
        for first in range(0, len(starts), batch_size):
            yield self.take(starts[first : first + batch_size], n_ctx + 1)

    @cached_property
    def documents(self) -> list[Int[Tensor, " pos"]]:
        """The tokens of each document by itself."""
        starts = self.offsets.starts
        return [self.take(starts[i : i + 1], int(starts[i + 1] - starts[i]))[0] for i in range(len(starts) - 1)]

    def check_fits(self, n_ctx: int) -> None:
        """Raises DataError unless the stream holds one window of n_ctx + 1 tokens."""
        if len(self) < n_ctx + 1:
            raise DataError(
                f"the {self.name} text has {len(self)} tokens and n_ctx={n_ctx} needs at least {n_ctx + 1}; give "
                "more text or a smaller n_ctx"
            )


@dataclass(frozen=True, eq=False)
class TokenStream(Stream):
    """The tokens of one file. `tokenizer` is the hash of the one that made them."""

    path: Path
    tokens: Int[np.ndarray, " token"]
    offsets: Offsets
    tokenizer: str
    sha256: str
    about: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

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
        if not len(tokens):
            raise DataError(f"no tokens for {path}: expected one or more, each from 0 to {tokenizer.d_vocab - 1}")
        try:
            with StreamWriter(path, tokenizer, about) as writer:
                writer.append(tokens, np.diff(offsets))
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
        offsets = Offsets(body[split:].view("<u8").astype(np.int64))
        return cls(path, body[:split].view(dtype), offsets, tokenizer, stream_sha256, about)

    def take(self, starts: Int[np.ndarray, " window"], length: int) -> Int[Tensor, "window length"]:
        return torch.from_numpy(self.tokens[starts[:, None] + np.arange(length)].astype(np.int64))

    def head(self, n: int) -> Int[np.ndarray, " token"]:
        return self.tokens[:n]


class StreamWriter(contextlib.AbstractContextManager):
    """Writes a token stream piece by piece, in constant memory but for 8 bytes a document.

    The file takes its place when the block ends, and leaves no trace when it raises or nothing was appended.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, about: dict[str, Any]) -> None:
        self.path, self.tokenizer, self.about = path, tokenizer, about
        self.n_tokens = self.n_documents = 0
        self.sha256 = ""  # of what was written, once it is
        self._dtype = token_dtype(tokenizer.d_vocab)
        self._digest = hashlib.sha256()
        self._offsets = [np.zeros(1, dtype="<u8")]
        self._opened = contextlib.ExitStack()
        self._file: BinaryIO | None = None

    def append(self, tokens: Int[np.ndarray, " token"], lengths: Int[np.ndarray, " document"]) -> None:
        """Adds documents: their tokens one after the other, and how many each has.

        Raises DataError for a token that the tokenizer lacks, OSError when the file cannot be written.
        """
        if not len(tokens):
            return
        if int(tokens.max()) >= self.tokenizer.d_vocab or int(tokens.min()) < 0:
            raise DataError(f"tokens for {self.path}: expected each from 0 to {self.tokenizer.d_vocab - 1}")
        if self._file is None:
            self._file = self._opened.enter_context(written_atomically(self.path))
            self._file.seek(HEADER_BYTES)
        self._offsets.append((self.n_tokens + np.cumsum(lengths)).astype("<u8"))
        self.n_tokens += len(tokens)
        self.n_documents += len(lengths)
        self._write(tokens.astype(self._dtype, copy=False))

    def __exit__(self, *error: Any) -> bool | None:
        if self._file is not None and error[0] is None:
            with self._opened:
                self._write(np.concatenate(self._offsets))
                self.sha256 = self._digest.hexdigest()
                self._file.seek(0)
                self._file.write(self._header())
            return None
        return self._opened.__exit__(*error)

    def _write(self, numbers: Int[np.ndarray, " number"]) -> None:
        self._digest.update(numbers)
        self._file.write(numbers)

    def _header(self) -> bytes:
        header = {
            "dtype": self._dtype,
            "n_tokens": self.n_tokens,
            "n_documents": self.n_documents,
            "tokenizer": self.tokenizer.sha256,
            "sha256": self.sha256,
            "about": self.about,
        }
        line = json.dumps(header).encode()
        assert len(line) < HEADER_BYTES - len(MAGIC), "a header says which text this is, it does not hold it"
        return MAGIC + line.ljust(HEADER_BYTES - len(MAGIC) - 1) + b"\n"


def token_dtype(d_vocab: int) -> str:
    """How tokens are stored: two bytes while they fit."""
    return "<u2" if d_vocab <= 2**16 else "<u4"


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
