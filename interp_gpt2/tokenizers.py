"""Text to tokens and back: bytes, characters, and GPT-2's BPE. Text never enters the model; tokens do.

Every tokenizer here is lossless (`decode(encode(text)) == text`) and adds nothing of its own: no token is prepended, and
special text such as `<|endoftext|>` is encoded as the characters it is made of.
"""

import hashlib
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from interp_gpt2 import vocab_bpe
from interp_gpt2.errors import TokenizerError
from interp_gpt2.files import written_atomically

# GPT-2's alphabet: a printable character for each byte, the printable ones of Latin-1 standing for themselves.
_KEPT = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
_MOVED = [byte for byte in range(256) if byte not in _KEPT]
ALPHABET: dict[int, str] = {byte: chr(byte) for byte in _KEPT} | {byte: chr(256 + i) for i, byte in enumerate(_MOVED)}
END_OF_TEXT = "<|endoftext|>"
GPT2_D_VOCAB = 50257


class Tokenizer(ABC):
    """What every tokenizer can do. `kind` names it; tokens are the ints 0 .. d_vocab - 1."""

    kind: str
    d_vocab: int
    eos_token_id: int | None = None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The tokens of `text`, nothing prepended. Raises TokenizerError naming a character it cannot encode."""

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


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, each its own token; needs no files and encodes any text."""

    kind = "byte"
    d_vocab = 256

    def encode(self, text: str) -> list[int]:
        return list(_utf8(text))

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
        _utf8("".join(self.characters))

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


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-level BPE, run by tiktoken. Token 50256 ends a document and never comes out of `encode`.

    Built from the published merges (`vocab_bpe.gpt2_merges`) or read back by `load_tokenizer`; checked to have 50,257
    tokens and to encode "Hello world" as [15496, 995]. Radford et al. 2019.
    """

    kind = "gpt2"
    d_vocab = GPT2_D_VOCAB
    eos_token_id = GPT2_D_VOCAB - 1

    def __init__(self, merges: list[tuple[str, str]] | None = None) -> None:
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str

        self.merges = vocab_bpe.gpt2_merges() if merges is None else merges
        byte_of = {symbol: byte for byte, symbol in ALPHABET.items()}
        symbols = [*ALPHABET.values(), *(first + second for first, second in self.merges)]
        self._bytes = [bytes(byte_of[character] for character in symbol) for symbol in symbols] + [END_OF_TEXT.encode()]
        self._symbols = [*symbols, END_OF_TEXT]
        self._encoding = tiktoken.Encoding(
            "interp_gpt2_gpt2",  # a name of its own, so that pickling carries the ranks instead of looking up "gpt2"
            pat_str=r50k_pat_str,
            mergeable_ranks={content: token for token, content in enumerate(self._bytes[:-1])},
            special_tokens={END_OF_TEXT: self.eos_token_id},
        )
        if len(self._bytes) != GPT2_D_VOCAB or self.encode("Hello world") != [15496, 995]:
            raise TokenizerError(
                f"these merges are not GPT-2's: {len(self._bytes)} tokens instead of {GPT2_D_VOCAB:,}, and 'Hello world' "
                f"is {self.encode('Hello world')} instead of [15496, 995]; load the tokenizer with tokenizer_named('gpt2')"
            )

    def encode(self, text: str) -> list[int]:
        _utf8(text)  # tiktoken would replace a lone surrogate and say nothing
        return self._encoding.encode_ordinary(text)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def _hf_tokenizer(self) -> Any:
        from tokenizers import AddedToken, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as HFTokenizer

        vocab = {symbol: token for token, symbol in enumerate(self._symbols)}
        tokenizer = HFTokenizer(models.BPE(vocab=vocab, merges=self.merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        return tokenizer


def tokenizer_named(kind: str) -> Tokenizer:
    """The tokenizer that needs no text to be made: "byte" or "gpt2". Raises TokenizerError for any other name."""
    if kind == "byte":
        return ByteTokenizer()
    if kind == "gpt2":
        return GPT2Tokenizer()
    if kind == "char":
        raise TokenizerError("a character tokenizer is made from a text: use CharTokenizer.from_text(text)")
    raise TokenizerError(f"no tokenizer is called {kind!r}; choose byte, char or gpt2")


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """The tokenizer saved in `directory`, rebuilt from its tokenizer.json alone, with no network.

    Also reads the tokenizer.json of a published GPT-2. What it finds is verified: GPT-2's merges by their SHA-256, and
    every kind against the hash in tokenizer_config.json where we wrote one. Raises TokenizerError naming the file.
    """
    path = Path(directory) / "tokenizer.json"
    parsed, config = _read_json(path), {}
    if (path.parent / "tokenizer_config.json").exists():
        config = _read_json(path.parent / "tokenizer_config.json")
    try:
        tokenizer = _rebuild(parsed)
    except (KeyError, TypeError, AttributeError, TokenizerError) as error:
        raise TokenizerError(
            f"{path} holds no tokenizer this library can read exactly (bytes, single characters, or GPT-2's BPE)"
        ) from error
    expected = config.get("interp_gpt2_sha256", tokenizer.sha256)
    if tokenizer.sha256 != expected:
        raise TokenizerError(
            f"{path} was altered: its SHA-256 begins with {tokenizer.sha256[:8]}, {expected[:8]} was saved; copy it again"
        )
    return tokenizer


def _rebuild(parsed: dict[str, Any]) -> Tokenizer:
    model, split = parsed["model"], parsed["pre_tokenizer"]
    by_token = [symbol for symbol, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    if sorted(model["vocab"].values()) != list(range(len(by_token))) or parsed["normalizer"] is not None:
        raise TokenizerError("tokens are not numbered 0, 1, 2, ..., or text is changed before it is split")
    if model["type"] == "WordLevel" and split["type"] == "Split":
        return CharTokenizer(by_token)
    if model["type"] != "BPE" or split["type"] != "ByteLevel" or split["add_prefix_space"]:
        raise TokenizerError(f"{model['type']} with {split['type']}")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if not merges and by_token == [ALPHABET[byte] for byte in range(256)] and not split["use_regex"]:
        return ByteTokenizer()
    tokenizer = GPT2Tokenizer(merges) if vocab_bpe.are_gpt2s(merges) else None
    if tokenizer is None or by_token not in (tokenizer._symbols, tokenizer._symbols[:-1]):
        raise TokenizerError("a byte-level BPE, but not GPT-2's")
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"no tokenizer to load: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise TokenizerError(f"{path} is damaged: it is not JSON ({error})") from error


_MARKS = {" ": "·", "\n": "↵", "\t": "→"}
_RESERVED = set(_MARKS.values()) | {"⟨", "⟩"}  # these characters themselves are spelled out, so that no two labels meet
_BLANK_LETTERS = set("\u115f\u1160\u2800\u3164\uffa0")  # letters and symbols by category, nothing to see
_INVISIBLE_CATEGORIES = "CZM"  # control, format and unassigned; separators; marks, which have no width of their own


def visible(raw: bytes) -> str:
    """`raw` as printable text that no other bytes share.

    A space is ·, a newline ↵, a tab →. Bytes that are not UTF-8 are in hex, ⟨e2 80⟩; whatever else could not be seen, or
    could be mistaken for one of these, is spelled out, ⟨U+200B⟩.
    """
    text = raw.decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]+|.", lambda found: _visible_piece(found.group()), text, flags=re.DOTALL)


def _visible_piece(piece: str) -> str:
    if "\udc80" <= piece[0] <= "\udcff":
        return "⟨" + " ".join(f"{ord(character) - 0xDC00:02x}" for character in piece) + "⟩"
    if piece in _MARKS:
        return _MARKS[piece]
    hidden = unicodedata.category(piece)[0] in _INVISIBLE_CATEGORIES or not piece.isprintable()
    return f"⟨U+{ord(piece):04X}⟩" if hidden or piece in _RESERVED or piece in _BLANK_LETTERS else piece


def _named(character: str) -> str:
    code = f"U+{ord(character):04X}"
    return f"{character!r} ({code})" if character.isprintable() else code


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"cannot encode U+{ord(text[error.start]):04X} at character {error.start} (counting from 0): half of a surrogate "
            "pair is not text; read the file as UTF-8"
        ) from error
