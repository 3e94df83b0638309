"""Byte-level byte-pair encodings: GPT-2's, and one trained on a corpus."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from interp_gpt2 import vocab_bpe
from interp_gpt2.errors import TokenizerError
from interp_gpt2.tokenizers.base import ALPHABET, END_OF_TEXT, Tokenizer, joined, utf8

GPT2_D_VOCAB = 50257


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
        utf8(text)  # tiktoken would replace a lone surrogate and say nothing
        return self._encoding.encode_ordinary(text)

    def encode_documents(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " document"]]:
        """As the base class says, in one call that leaves Python alone: end-of-text marks part the documents for tiktoken."""
        marked = "".join(text + END_OF_TEXT for text in texts)
        utf8(marked)
        if not texts or marked.count(END_OF_TEXT) > len(texts):  # a document has the mark's characters in its own text
            return super().encode_documents(texts)
        tokens = self._encoding.encode_to_numpy(marked, allowed_special={END_OF_TEXT})
        return tokens, np.diff(np.flatnonzero(tokens == self.eos_token_id), prepend=-1)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def _hf_tokenizer(self) -> Any:
        return _with_end_of_text(_byte_level(self._symbols, self.merges))


class BPETokenizer(Tokenizer):
    """A byte-level BPE with merges of its own, made as GPT-2's was: 256 bytes, the merges in order, then the end of text.

    Texts are split as GPT-2 splits them, so any text can be encoded. Run by the `tokenizers` library. Sennrich et al. 2016,
    "Neural Machine Translation of Rare Words with Subword Units"; Radford et al. 2019 for the bytes.
    Raises TokenizerError for a merge of what no earlier merge made.
    """

    kind = "bpe"

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        self.merges = [tuple(merge) for merge in merges]
        known = dict.fromkeys(ALPHABET.values())
        for first, second in self.merges:
            if first not in known or second not in known:
                raise TokenizerError(f"{first!r} and {second!r} are merged before they are made; train the tokenizer again")
            known[first + second] = None  # some tokens are made in two ways
        self._symbols = [*known, END_OF_TEXT]
        byte_of = {symbol: byte for byte, symbol in ALPHABET.items()}
        self._bytes = [bytes(byte_of[character] for character in symbol) for symbol in known] + [END_OF_TEXT.encode()]
        self.d_vocab = len(self._symbols)
        self.eos_token_id = self.d_vocab - 1

    @classmethod
    def train(cls, texts: Iterable[str], d_vocab: int) -> "BPETokenizer":
        """The merges of the most frequent pairs in `texts`, until there are `d_vocab` tokens; ties by the pair's tokens.

        No pair that occurs only once is merged. Raises TokenizerError if that leaves fewer tokens than asked for.
        """
        from tokenizers import Tokenizer as HFTokenizer
        from tokenizers import models, pre_tokenizers, trainers

        if d_vocab < len(ALPHABET) + 1:
            raise TokenizerError(f"a byte-level BPE of {d_vocab} tokens has no room for 256 bytes and the end of text")
        tokenizer = HFTokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=d_vocab - 1, min_frequency=2, show_progress=False, initial_alphabet=list(ALPHABET.values())
        )
        tokenizer.train_from_iterator((utf8(text).decode() for text in texts), trainer)
        trained = cls([tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]])
        if trained.d_vocab < d_vocab:
            raise TokenizerError(f"the text has pairs for no more than {trained.d_vocab} tokens; ask for bpe:{trained.d_vocab}")
        return trained

    def encode(self, text: str) -> list[int]:
        utf8(text)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_documents(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " document"]]:
        for text in texts:
            utf8(text)
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        encoded = [np.array([*found_in_one.ids, self.eos_token_id], dtype=np.uint32) for found_in_one in found]
        return joined(encoded), np.array([len(tokens) for tokens in encoded], dtype=np.int64)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    @cached_property
    def sha256(self) -> str:
        """Hash of the merges in their order, which decide what every token stands for."""
        return hashlib.sha256(f"{self.kind} {json.dumps(self.merges)}".encode()).hexdigest()

    @cached_property
    def _tokenizer(self) -> Any:
        return _byte_level(self._symbols, self.merges)

    def _hf_tokenizer(self) -> Any:
        return _with_end_of_text(_byte_level(self._symbols, self.merges))


def _byte_level(symbols: Sequence[str], merges: Sequence[tuple[str, str]]) -> Any:
    """A `tokenizers.Tokenizer` with these tokens and GPT-2's way of splitting; the end of text never comes out of it."""
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    tokenizer = HFTokenizer(models.BPE(vocab={symbol: token for token, symbol in enumerate(symbols)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_end_of_text(tokenizer: Any) -> Any:
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer
