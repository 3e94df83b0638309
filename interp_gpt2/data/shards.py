"""Streams made of others: many files read as one, and tokens resident on a device."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.data.sampling import Offsets
from interp_gpt2.data.streams import Stream, TokenStream
from interp_gpt2.errors import DataError


@dataclass(frozen=True, eq=False)
class ShardedStream(Stream):
    """Several files of tokens, one after the other; a window or a document may go on from one into the next."""

    name: str
    shards: tuple[TokenStream, ...]
    offsets: Offsets
    firsts: Int[np.ndarray, " shard_plus_1"]  # where each shard begins, and the end
    sha256: str
    about: dict[str, Any]

    @classmethod
    def open(cls, name: str, paths: Sequence[Path], about: dict[str, Any]) -> "ShardedStream":
        """Maps the files, every one of them verified as `TokenStream.open` does, side by side. Raises DataError."""
        if not paths:
            raise DataError(f"there are no tokens of the {name} text")
        with ThreadPoolExecutor() as threads:  # hashing leaves Python alone
            shards = tuple(threads.map(TokenStream.open, paths))
        firsts = np.cumsum([0, *map(len, shards)])
        starts = [shard.offsets.starts[:-1] + first for shard, first in zip(shards, firsts, strict=False)]
        digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
        return cls(name, shards, Offsets(np.concatenate([*starts, firsts[-1:]])), firsts, digest, about)

    def take(self, starts: Int[np.ndarray, " window"], length: int) -> Int[Tensor, "window length"]:
        taken = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(taken, starts.tolist(), strict=True):
            filled = 0
            shard = int(np.searchsorted(self.firsts, start, side="right")) - 1
            while filled < length:
                begin = start + filled - int(self.firsts[shard])
                piece = self.shards[shard].tokens[begin : begin + length - filled]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)
                shard += 1
        return torch.from_numpy(taken)

    def head(self, n: int) -> Int[np.ndarray, " token"]:
        n_shards = max(1, int(np.searchsorted(self.firsts, n)))
        return np.concatenate([shard.tokens for shard in self.shards[:n_shards]])[:n]


@dataclass(frozen=True, eq=False)
class ResidentStream(Stream):
    """A stream whose tokens were uploaded to a device, where batches are put together; which ones is decided as before."""

    stream: Stream
    tokens: Int[Tensor, " token"]  # the bits of uint16 or uint32, which torch can index only as signed
    name: str
    offsets: Offsets
    sha256: str
    about: dict[str, Any]

    @classmethod
    def upload(cls, stream: Stream, device: torch.device | str) -> "ResidentStream":
        """Copies the tokens, file by file, 2 or 4 bytes each."""
        shards = stream.shards if isinstance(stream, ShardedStream) else (stream,)
        signed = np.dtype(f"<i{shards[0].tokens.dtype.itemsize}")
        tokens = torch.empty(len(stream), dtype=getattr(torch, signed.name), device=device)
        filled = 0
        for shard in shards:
            tokens[filled : filled + len(shard)] = torch.from_numpy(shard.tokens.view(signed).copy())
            filled += len(shard)
        return cls(stream, tokens, stream.name, stream.offsets, stream.sha256, stream.about)

    def take(self, starts: Int[np.ndarray, " window"], length: int) -> Int[Tensor, "window length"]:
        places = torch.from_numpy(np.ascontiguousarray(starts)).to(self.tokens.device, non_blocking=True)
        index = places[:, None] + torch.arange(length, device=self.tokens.device)
        unsigned = (1 << 8 * self.tokens.itemsize) - 1
        return self.tokens[index].long() & unsigned

    def head(self, n: int) -> Int[np.ndarray, " token"]:
        return self.stream.head(n)

    def batch_documents(self, *where: Any, **more: Any) -> Int[Tensor, "share pos"]:
        return super().batch_documents(*where, **more).to(self.tokens.device, non_blocking=True)
