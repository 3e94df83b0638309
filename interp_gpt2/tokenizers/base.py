"""What every tokenizer can do, and GPT-2's printable alphabet of bytes."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from interp_gpt2.errors import TokenizerError
from interp_gpt2.files import written_atomically
from interp_gpt2.tokenizers.labels import visible

# GPT-2's alphabet: a printable character for each byte, the printable ones of Latin-1 standing for themselves.
_KEPT = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
_MOVED = [byte for byte in range(256) if byte not in _KEPT]
ALPHABET: dict[int, str] = {byte: chr(byte) for byte in _KEPT} | {byte: chr(256 + i) for i, byte in enumerate(_MOVED)}
END_OF_TEXT = "<|endoftext|>"


class Tokenizer(ABC):
    """What every tokenizer can do. `kind` names it; tokens are the ints 0 .. d_vocab - 1."""

    kind: str
    d_vocab: int
    eos_token_id: int | None = None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The tokens of `text`, nothing prepended. Raises TokenizerError naming a character it cannot encode."""

    def encode_documents(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " document"]]:
        """The tokens of each text by itself, one after the other, and how many each has.

        Where the tokenizer has an end-of-text token, it follows every text. Raises TokenizerError as `encode` does.
        """
        end = [] if self.eos_token_id is None else [self.eos_token_id]
        encoded = [np.array(self.encode(text) + end, dtype=np.uint32) for text in texts]
        return joined(encoded), np.array([len(tokens) for tokens in encoded], dtype=np.int64)

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes a token stands for, which may be part of a character."""

    @abstractmethod
    def _hf_tokenizer(self) -> Any:
        """The same tokenizer as a `tokenizers.Tokenizer`."""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`; bytes that are not UTF-8 together become U+FFFD. Raises TokenizerError for an unknown token."""
        pieces = []
        for position, token in enumerate(tokens):
            if not 0 <= int(token) < self.d_vocab:
                raise TokenizerError(
                    f"token {int(token)} at position {position} is outside the {self.kind} vocabulary of {self.d_vocab}"
                )
            pieces.append(self.token_bytes(int(token)))
        return b"".join(pieces).decode("utf-8", "replace")

    @cached_property
    def labels(self) -> list[str]:
        """A printable name for each token, all different: see `visible`."""
        return [visible(self.token_bytes(token)) for token in range(self.d_vocab)]

    @cached_property
    def token_lengths(self) -> Int[np.ndarray, " d_vocab"]:
        """How many bytes each token stands for."""
        return np.array([len(self.token_bytes(token)) for token in range(self.d_vocab)])

    @cached_property
    def sha256(self) -> str:
        """Hash of the kind and of what every token stands for: equal exactly when two tokenizers are the same."""
        digest = hashlib.sha256(self.kind.encode())
        for token in range(self.d_vocab):
            content = self.token_bytes(token)
            digest.update(len(content).to_bytes(4, "little") + content)
        return digest.hexdigest()

    @cached_property
    def _files(self) -> dict[str, bytes]:
        config = {
            # Without these two, AutoTokenizer beside a GPT-2 config.json rebuilds another tokenizer, and decoding drops spaces.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            # GPT-2 would add the embedding of a token_type_id to the stream.
            "model_input_names": ["input_ids", "attention_mask"],
            "interp_gpt2_kind": self.kind,
            "interp_gpt2_sha256": self.sha256,
        }
        if self.eos_token_id is not None:
            # With split_special_tokens the text "<|endoftext|>" is plain text there too, as it is here.
            config |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "split_special_tokens": True}
        return {
            "tokenizer.json": self._hf_tokenizer().to_str().encode(),
            "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
        }

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `load_tokenizer` and transformers' AutoTokenizer read."""
        for name, content in self._files.items():
            with written_atomically(Path(directory) / name) as file:
                file.write(content)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(d_vocab={self.d_vocab})"


def joined(arrays: Sequence[Int[np.ndarray, " token"]]) -> Int[np.ndarray, " token"]:
    """The tokens of all, none if there are none."""
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.uint32)


def utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"cannot encode U+{ord(text[error.start]):04X} at character {error.start} (counting from 0): half of a surrogate "
            "pair is not text; read the file as UTF-8"
        ) from error
