"""Texts to tokens with the beginnings of their documents: independent documents, or one long text as it stands."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from interp_gpt2.data.corpora import pieces
from interp_gpt2.tokenizers import Tokenizer
from interp_gpt2.tokenizers.base import joined

Encoded = tuple[Int[np.ndarray, " token"], Int[np.ndarray, " document"]]  # tokens, and how many each document has


def encode_text(texts: Sequence[str], tokenizer: Tokenizer) -> Encoded:
    """Parts of one long text, or of a few, as they stand: nothing is put between them.

    Its documents begin with the first token after a blank line, every 2,000 characters or more.
    """
    tokens, _ = tokenizer.encode_documents(["".join(texts)])
    if tokenizer.eos_token_id is not None:
        tokens = tokens[:-1]
    lengths = tokenizer.token_lengths[tokens]
    piece_ends = np.cumsum([len(piece.encode()) for text in texts for piece in pieces(text)])
    token_starts = np.cumsum(lengths) - lengths
    inner = np.searchsorted(token_starts, piece_ends[:-1])
    return tokens, np.diff([0, *inner, len(tokens)])


def concatenated(parts: Sequence[Encoded]) -> Encoded:
    """The documents of all parts, in order."""
    return joined([tokens for tokens, _ in parts]), np.concatenate([np.empty(0, np.int64), *(lengths for _, lengths in parts)])
