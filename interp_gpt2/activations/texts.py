"""The texts that activations are of: tokens, and of every token its document and its position."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp_gpt2.data.source import Source
from interp_gpt2.data.text_source import TextSource
from interp_gpt2.errors import StoreError
from interp_gpt2.tokenizers import Tokenizer

_AT_ONCE = 256  # sequences read from a source


@dataclass(frozen=True, eq=False)
class Texts:
    """Sequences of tokens, the first `lengths` of each real and the rest padding, with the document of every token.

    A token's position is its place in its sequence, which is what the model sees. What is stored of them are rows: the
    real tokens in order, sequence by sequence. `note` says where they come from.
    """

    tokens: Int[Tensor, "sequence pos"]
    lengths: Int[Tensor, "sequence"]
    documents: Int[Tensor, "sequence pos"]
    tokenizer: Tokenizer | None = None
    note: str = ""

    def __post_init__(self) -> None:
        whole = all(not part.is_floating_point() for part in (self.tokens, self.lengths, self.documents))
        shapes = [tuple(part.shape) for part in (self.tokens, self.lengths, self.documents)]
        if not whole or len(shapes[0]) != 2 or shapes[1:] != [shapes[0][:1], shapes[0]] or not self.tokens.numel():
            raise StoreError(f"tokens, lengths and documents of shapes {shapes[0]}, {shapes[1]} and {shapes[2]} are not whole "
                             "numbers (sequence, pos), (sequence,) and (sequence, pos) of at least one token")  # fmt: skip
        if int(self.lengths.min()) < 1 or int(self.lengths.max()) > self.tokens.shape[1]:
            raise StoreError(f"lengths run from {int(self.lengths.min())} to {int(self.lengths.max())}; a sequence of "
                             f"{self.tokens.shape[1]} tokens has 1 to {self.tokens.shape[1]} real ones")  # fmt: skip

    @classmethod
    def of(
        cls,
        tokens: Int[Tensor, "sequence pos"],
        lengths: Int[Tensor, "sequence"] | None = None,
        documents: Int[Tensor, "sequence"] | Int[Tensor, "sequence pos"] | None = None,
        tokenizer: Tokenizer | None = None,
        note: str = "",
    ) -> "Texts":
        """Whole sequences unless `lengths` says how long they are, each a document of its own unless `documents` says more."""
        if tokens.ndim != 2:
            raise StoreError(f"tokens of shape {tuple(tokens.shape)} are not (sequence, pos)")
        lengths = torch.full((len(tokens),), tokens.shape[1]) if lengths is None else lengths
        documents = torch.arange(len(tokens)) if documents is None else documents
        documents = documents[:, None].expand(tokens.shape) if documents.ndim == 1 else documents
        return cls(tokens, lengths, documents, tokenizer, note)

    @classmethod
    def from_source(cls, source: Source, n_ctx: int, n_tokens: int | None = None) -> "Texts":
        """The held-out split of a source in windows of `n_ctx`, in order, until they have `n_tokens` (None: all of it).

        A window of a text may hold the end of one document and the beginning of the next, as training's do.
        """
        if n_tokens is not None and n_tokens < 1:
            raise StoreError(f"n_tokens={n_tokens} must be at least 1")
        found, n = [], 0
        for windows in source.validation(n_ctx, _AT_ONCE):
            found.append(windows[:, :-1].to("cpu", torch.int32))
            n += found[-1].numel()
            if n_tokens is not None and n >= n_tokens:
                break
        tokens = torch.cat(found)
        if n_tokens is not None:
            tokens = tokens[: -(-n_tokens // n_ctx)]
        documents = None
        if isinstance(source, TextSource):
            starts = source.held_out.offsets.starts
            numbers = np.searchsorted(starts, np.arange(tokens.numel()), side="right") - 1
            documents = torch.from_numpy(numbers).view(tokens.shape)
        return cls.of(tokens, None, documents, source.tokenizer, f"held-out text of {source.name}")

    @cached_property
    def real(self) -> Bool[Tensor, "sequence pos"]:
        """Where there is a token and no padding."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    @property
    def n_tokens(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def columns(self) -> dict[str, Int[Tensor, "row"]]:
        """What is kept of every row: "tokens", "documents" and "positions"; and the "lengths" of the sequences."""
        positions = torch.arange(self.tokens.shape[1]).expand(self.tokens.shape)
        rows = {"tokens": self.tokens, "documents": self.documents, "positions": positions}
        found = {name: each[self.real].to(torch.int32) for name, each in rows.items()}
        return found | {"lengths": self.lengths.to(torch.int32)}

    @cached_property
    def sha256(self) -> str:
        """Of the tokens, their documents and the lengths, whatever stands at padding."""
        digest = hashlib.sha256()
        for name, values in self.columns.items():
            digest.update(f"{name} {len(values)} ".encode())
            digest.update(values.contiguous().numpy())
        return digest.hexdigest()

    @classmethod
    def from_columns(cls, columns: dict[str, Int[Tensor, "row"]], tokenizer: Tokenizer | None, note: str) -> "Texts":
        """The reverse of `columns`; padding is token 0 of document -1."""
        lengths = columns["lengths"].long()
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        grids = {name: torch.full(real.shape, fill) for name, fill in (("tokens", 0), ("documents", -1))}
        for name, grid in grids.items():
            grid[real] = columns[name].long()
        return cls(grids["tokens"], lengths, grids["documents"], tokenizer, note)
