"""The source that reads a text, from a file, a corpus, or a prepared directory."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.data import synthetic
from interp_gpt2.data.corpora import Corpus, hash_of, split
from interp_gpt2.data.encoding import encode_text
from interp_gpt2.data.ngrams import SMOOTHING, NGramModel
from interp_gpt2.data.prepared import open_prepared, read_record
from interp_gpt2.data.protocol import Reference
from interp_gpt2.data.sampling import RANDOM, Sampling
from interp_gpt2.data.shards import ResidentStream
from interp_gpt2.data.streams import Stream, TokenStream
from interp_gpt2.errors import DataError
from interp_gpt2.tokenizers import Tokenizer

COUNTED_TOKENS = 10_000_000  # for n-grams: enough to be hard to beat at first, and counted in seconds


@dataclass(frozen=True)
class TextSource:
    """A text, tokenized once into two verified streams on disk: training windows from one, validation from the other.

    `sampling` says which windows. References are n-gram models of the training tokens (of a text with more than ten million
    of them, the first ten million), on every prediction of the validation windows.
    """

    tokenizer: Tokenizer
    train: Stream
    held_out: Stream
    sampling: Sampling = RANDOM

    @property
    def name(self) -> str:
        return self.train.about["data"]

    def batch(self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1) -> Int[Tensor, "share pos"]:
        return self.train.batch(step, batch_size, n_ctx, seed, rank, world, self.sampling)

    def batch_documents(
        self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1
    ) -> Int[Tensor, "share pos"]:
        return self.train.batch_documents(step, batch_size, n_ctx, seed, rank, world, self.sampling)

    def to_device(self, device: torch.device | str) -> "TextSource":
        uploaded = (ResidentStream.upload(stream, device) for stream in (self.train, self.held_out))
        return TextSource(self.tokenizer, *uploaded, self.sampling)

    def validation(self, n_ctx: int, batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
        return self.held_out.windows(n_ctx, batch_size)

    def validation_documents(self) -> list[Int[Tensor, " pos"]]:
        return self.held_out.documents

    def scored_positions(self, n_ctx: int) -> range:
        return range(n_ctx)

    def references(self, n_ctx: int) -> list[Reference]:
        self.held_out.check_fits(n_ctx)
        counted, model = self.train.head(COUNTED_TOKENS), self.ngrams()
        n = (len(self.held_out) - 1) // n_ctx * n_ctx
        found = []
        for order, name in enumerate(("unigram", "bigram", "trigram"), start=1):
            losses = torch.from_numpy(model.token_losses(self.held_out.head(n + 1), order))
            mean, stderr = synthetic.mean_and_stderr(losses.view(-1, n_ctx))
            first = "" if len(counted) == len(self.train) else f"first {len(counted):,} of the "
            note = f"{SMOOTHING}, counted on the {first}{len(self.train):,} training tokens"
            found.append(Reference(name, mean, stderr, n, note))
        return found

    def ngrams(self) -> NGramModel:
        """The unigram, bigram and trigram model of the (first ten million) training tokens, counted once."""
        return _counted(self.train, self.tokenizer.d_vocab)

    def fingerprint(self) -> dict[str, Any]:
        return {
            **{key: value for key, value in self.train.about.items() if key != "part_sha256"},
            "n_train_tokens": len(self.train),
            "n_validation_tokens": len(self.held_out),
            "train_sha256": self.train.sha256,
            "validation_sha256": self.held_out.sha256,
            "tokenizer_sha256": self.tokenizer.sha256,
            "python": sys.version,
            "numpy": np.__version__,
        }


@lru_cache(maxsize=1)
def _counted(stream: Stream, d_vocab: int) -> NGramModel:
    return NGramModel.fit(stream.head(COUNTED_TOKENS), d_vocab, order=3)


def tokenized(corpus: Corpus, tokenizer: Tokenizer, directory: Path) -> TextSource:
    """The source of a corpus, written to `directory` as train.tokens and validation.tokens unless it is there already."""
    parts = split(corpus)
    about = {
        "data": corpus.name,
        "sha256": corpus.sha256,
        "n_documents": len(corpus.documents),
        "n_characters": len(corpus.text),
        "held_out": parts.how,
        "notes": list(corpus.notes),
    }
    streams = []
    for name, documents in (("train", parts.train), ("validation", parts.validation)):
        path = directory / f"{name}.tokens"
        described = {**about, "part_sha256": hash_of(documents)}
        stream = _kept(path, tokenizer, described)
        if stream is None:
            texts = [document.text for document in documents]
            tokens, lengths = tokenizer.encode_documents(texts) if parts.by_document else encode_text(texts, tokenizer)
            stream = TokenStream.write(path, tokens, np.cumsum([0, *lengths]), tokenizer, described)
        streams.append(stream)
    return TextSource(tokenizer, *streams)


def open_source(directory: Path | str, tokenizer: Tokenizer) -> TextSource:
    """The text source that `load_source` wrote to `directory`, from its verified streams alone: the text may be gone.

    Raises DataError if they are missing, damaged, or of another tokenizer.
    """
    train, held_out = (TokenStream.open(Path(directory) / f"{name}.tokens") for name in ("train", "validation"))
    of_one_text = train.about.get("sha256") == held_out.about.get("sha256")
    if {train.tokenizer, held_out.tokenizer} != {tokenizer.sha256} or not of_one_text:
        raise DataError(f"the streams in {directory} are not of one text and of this {tokenizer.kind} tokenizer; make them again")
    return TextSource(tokenizer, train, held_out)


def _kept(path: Path, tokenizer: Tokenizer, about: dict[str, Any]) -> TokenStream | None:
    """The stream at `path` if it is whole and of this text; one that is not is made again from the text."""
    if not path.exists():
        return None
    try:
        stream = TokenStream.open(path)
    except DataError:
        return None
    return stream if (stream.tokenizer, stream.about) == (tokenizer.sha256, about) else None


def prepared_source(directory: Path, tokenizer: str) -> TextSource:
    """The text source of a prepared directory, every shard verified.

    Raises DataError unless it is complete and was prepared with the tokenizer of that name.
    """
    made_with = read_record(directory).tokenizer["kind"]
    if tokenizer != made_with:
        raise DataError(f"{directory} was prepared with the tokenizer {made_with}, not {tokenizer}; ask for {made_with}")
    return TextSource(*open_prepared(directory))
