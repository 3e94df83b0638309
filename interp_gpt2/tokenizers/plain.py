"""Tokenizers without merges: a token for each byte, or for each character of a text."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from interp_gpt2.errors import TokenizerError
from interp_gpt2.tokenizers.base import ALPHABET, Tokenizer, utf8


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, each its own token; needs no files and encodes any text."""

    kind = "byte"
    d_vocab = 256

    def encode(self, text: str) -> list[int]:
        return list(utf8(text))

    def encode_documents(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " document"]]:
        contents = [utf8(text) for text in texts]
        return np.frombuffer(b"".join(contents), np.uint8), np.array([len(content) for content in contents], dtype=np.int64)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def _hf_tokenizer(self) -> Any:
        from tokenizers import Tokenizer as HFTokenizer
        from tokenizers import decoders, models, pre_tokenizers

        tokenizer = HFTokenizer(models.BPE(vocab={symbol: byte for byte, symbol in ALPHABET.items()}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer


class CharTokenizer(Tokenizer):
    """A token for each of the given characters, and for no other: text with an unknown one is refused by name.

    Token i is `characters[i]`. Raises TokenizerError if there are none, one occurs twice, or one is not a single character.
    """

    kind = "char"

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = tuple(characters)
        self.d_vocab = len(self.characters)
        self._token_of = {character: token for token, character in enumerate(self.characters)}
        if not self.characters or len(self._token_of) < self.d_vocab or any(len(char) != 1 for char in self.characters):
            raise TokenizerError(
                f"a character tokenizer needs one or more different single characters, got {list(self.characters)[:8]}"
            )
        utf8("".join(self.characters))

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """The tokenizer of the characters that occur in `text`, in code-point order."""
        return cls(sorted(set(text)))

    def encode(self, text: str) -> list[int]:
        try:
            return [self._token_of[character] for character in text]
        except KeyError:
            position = next(i for i, character in enumerate(text) if character not in self._token_of)
            raise TokenizerError(
                f"cannot encode {_named(text[position])} at character {position} (counting from 0); it is not one of the "
                f"{self.d_vocab} characters this tokenizer was made from: remove it, or train with the byte tokenizer"
            ) from None

    def encode_documents(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " document"]]:
        code_points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
        tokens = self._token_of_code_point[np.minimum(code_points, len(self._token_of_code_point) - 1)]
        if (tokens == self.d_vocab).any():
            return super().encode_documents(texts)  # which names the character
        return tokens, np.array([len(text) for text in texts], dtype=np.int64)

    @cached_property
    def _token_of_code_point(self) -> Int[np.ndarray, " code_point"]:
        """Token of each code point up to the highest that has one; d_vocab for those that have none, and after the last."""
        known = np.array([ord(character) for character in self.characters])
        table = np.full(known.max() + 2, self.d_vocab, dtype=np.uint32)
        table[known] = np.arange(self.d_vocab)
        return table

    def token_bytes(self, token: int) -> bytes:
        return self.characters[token].encode()

    def _hf_tokenizer(self) -> Any:
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as HFTokenizer

        # WordLevel without an unknown token refuses a strange character; BPE would drop it in silence.
        tokenizer = HFTokenizer(models.WordLevel(vocab=self._token_of))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return tokenizer


def _named(character: str) -> str:
    code = f"U+{ord(character):04X}"
    return f"{character!r} ({code})" if character.isprintable() else code
