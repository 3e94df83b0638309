"""Tokenizers by name, and back from the files they were saved in."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interp_gpt2 import vocab_bpe
from interp_gpt2.errors import TokenizerError
from interp_gpt2.tokenizers.base import ALPHABET, END_OF_TEXT, Tokenizer
from interp_gpt2.tokenizers.bpe import BPETokenizer, GPT2Tokenizer
from interp_gpt2.tokenizers.plain import ByteTokenizer, CharTokenizer


def tokenizer_named(kind: str) -> Tokenizer:
    """The tokenizer that needs no text to be made: "byte" or "gpt2". Raises TokenizerError for any other name."""
    if kind == "byte":
        return ByteTokenizer()
    if kind == "gpt2":
        return GPT2Tokenizer()
    if kind == "char":
        raise TokenizerError("a character tokenizer is made from a text: use CharTokenizer.from_text(text)")
    if kind.startswith("bpe"):
        raise TokenizerError("this BPE is trained on a text: use BPETokenizer.train(texts, d_vocab)")
    raise TokenizerError(f"no tokenizer is called {kind!r}; choose byte, char or gpt2, or bpe:4096 to train one")


def tokenizer_for(kind: str, texts: Iterable[str], training_texts: Iterable[str]) -> Tokenizer:
    """The tokenizer called `kind`, made from these texts if it needs any.

    "byte" and "gpt2" read none; "char" has a token for each character of `texts`, in code-point order, for a held-out text
    must be encodable too; "bpe:4096" trains 4,096 tokens on `training_texts` alone. Raises TokenizerError.
    """
    if kind == "char":
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return CharTokenizer(sorted(characters))
    if kind.startswith("bpe"):
        return BPETokenizer.train(training_texts, _size_of(kind))
    return tokenizer_named(kind)


def _size_of(kind: str) -> int:
    name, _, size = kind.partition(":")
    if name != "bpe" or not (size.isascii() and size.isdigit()):
        raise TokenizerError(f"no tokenizer is called {kind!r}; a BPE of 4,096 tokens is bpe:4096")
    return int(size)


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """The tokenizer saved in `directory`, rebuilt from its tokenizer.json alone, with no network.

    Also reads the tokenizer.json of a published GPT-2, or the vocab.json and merges.txt that older ones have. What it finds is
    verified: GPT-2's merges by their SHA-256, every kind against the hash in tokenizer_config.json where we wrote one. Raises
    TokenizerError naming the file.
    """
    path = Path(directory) / "tokenizer.json"
    older = not path.exists() and (path.parent / "vocab.json").exists()
    parsed, config = _of_merges(path.parent) if older else _read_json(path), {}
    if (path.parent / "tokenizer_config.json").exists():
        config = _read_json(path.parent / "tokenizer_config.json")
    try:
        tokenizer = _rebuild(parsed)
    except (KeyError, TypeError, AttributeError, TokenizerError) as error:
        raise TokenizerError(
            f"{path} holds no tokenizer this library can read exactly (bytes, single characters, or a byte-level BPE)"
        ) from error
    expected = config.get("interp_gpt2_sha256", tokenizer.sha256)
    if tokenizer.sha256 != expected:
        raise TokenizerError(
            f"{path} was altered: its SHA-256 begins with {tokenizer.sha256[:8]}, {expected[:8]} was saved; copy it again"
        )
    return tokenizer


def _of_merges(directory: Path) -> dict[str, Any]:
    """What tokenizer.json would say, from the two files that GPT-2 was published with."""
    path = directory / "merges.txt"
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"no tokenizer to load: {path} cannot be read, which {directory / 'vocab.json'} needs") from error
    merges = [line for line in lines if line and not line.startswith("#version")]
    return {
        "model": {"type": "BPE", "vocab": _read_json(directory / "vocab.json"), "merges": merges},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "normalizer": None,
        "added_tokens": [],
    }


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
    is_gpt2 = vocab_bpe.are_gpt2s(merges)
    tokenizer = GPT2Tokenizer(merges) if is_gpt2 else BPETokenizer(merges)
    as_published = is_gpt2 and by_token == tokenizer._symbols[:-1]  # with the end of text among the added tokens
    added = {token["content"] for token in parsed["added_tokens"]}
    if not (as_published or by_token == tokenizer._symbols) or not split["use_regex"] or added - {END_OF_TEXT}:
        raise TokenizerError("its tokens are not the bytes and the merges in order, or it has others, or another way to split")
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"no tokenizer to load: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise TokenizerError(f"{path} is damaged: it is not JSON ({error})") from error
