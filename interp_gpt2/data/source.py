"""What training and reports read from: a source gives batches, a fixed validation split, and reference losses on it."""

import hashlib
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.data import synthetic
from interp_gpt2.data.batches import HELD_OUT, check_shares, rng_at, share_of
from interp_gpt2.data.corpora import Corpus, Document, hash_of, load_corpus, pieces, split
from interp_gpt2.data.ngrams import SMOOTHING, NGramModel
from interp_gpt2.data.streams import TokenStream
from interp_gpt2.errors import DataError
from interp_gpt2.files import user_cache_dir
from interp_gpt2.tokenizers import CharTokenizer, Tokenizer, tokenizer_named

NAMED_SOURCES = ("python-docs", "tiny-shakespeare", "markov", "repeated-random")  # anything else is a path


@dataclass(frozen=True)
class Reference:
    """A loss to hold a model's against, in nats per token, measured on the source's validation split.

    `loss` is the mean of `n` predictions, those made at the source's `scored_positions`; `stderr` its standard error with
    one observation per sequence, or None where the loss is exact. `note` says how it was computed.
    """

    name: str
    loss: float
    stderr: float | None
    n: int
    note: str


class Source(Protocol):
    """Sequences are n_ctx + 1 tokens long: the inputs are sequence[:-1], and position p predicts sequence[p + 1]."""

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def batch(self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1) -> Int[Tensor, "share pos"]:
        """Training sequences, a pure function of the arguments; rank r gets slice r of the same global batch."""
        ...

    def validation(self, n_ctx: int, batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
        """The whole held-out split, always the same and in the same order; the last batch may be smaller."""
        ...

    def validation_documents(self) -> list[Int[Tensor, " pos"]]:
        """The held-out split as whole documents, for analyses that must not mix them; empty for synthetic sources."""
        ...

    def scored_positions(self, n_ctx: int) -> range:
        """The positions whose predictions `references` averages; a model is compared with them on the same ones."""
        ...

    def references(self, n_ctx: int) -> list[Reference]:
        """Losses of simple or best possible predictors on the validation split, at `scored_positions`."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data, ready for JSON: hashes, counts, and the versions they depend on."""
        ...


@dataclass(frozen=True)
class MarkovSource:
    """In-context Markov chains (`synthetic.markov_chains`), one character for each of the 16 states.

    References are on the second half of the positions, where a chain has been seen long enough to be predicted: with
    n_ctx = 64, the predictions made at input positions 32 .. 63 of 4,096 held-out chains, that is of their states 33 .. 64.
    """

    name: str = "markov"
    tokenizer: Tokenizer = field(default_factory=lambda: CharTokenizer(synthetic.STATE_NAMES))

    def batch(self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1) -> Int[Tensor, "share pos"]:
        check_shares(batch_size, rank, world)
        return share_of(synthetic.markov_chains(rng_at(seed, step), batch_size, n_ctx + 1), rank, world)

    def validation(self, n_ctx: int, batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
        yield from synthetic.held_out_chains(n_ctx).clone().split(batch_size)

    def validation_documents(self) -> list[Int[Tensor, " pos"]]:
        return []

    def scored_positions(self, n_ctx: int) -> range:
        return range(n_ctx // 2, n_ctx)

    def references(self, n_ctx: int) -> list[Reference]:
        chains, scored = synthetic.held_out_chains(n_ctx), self.scored_positions(n_ctx)
        predictors = {
            "Bayes bigram": (
                synthetic.bayes_bigram,
                "exact posterior mean under Dirichlet(0.1); no predictor is better on average",
            ),
            "in-context unigram": (synthetic.in_context_unigram, "add-one counts of the states so far; not a bound"),
        }
        found = []
        for name, (predict, note) in predictors.items():
            losses = synthetic.losses_of(predict(chains), chains)[:, scored.start :]
            mean, stderr = synthetic.mean_and_stderr(losses)
            where = f"positions {scored.start} to {n_ctx - 1} of {len(chains):,} held-out chains"
            found.append(Reference(name, mean, stderr, losses.numel(), f"{note}; {where}"))
        return found

    def fingerprint(self) -> dict[str, Any]:
        return _fingerprint(self, synthetic.markov_chains(rng_at(0, 0), 64, 65), n_validation_sequences=synthetic.N_HELD_OUT)


@dataclass(frozen=True)
class RepeatedSource:
    """Random tokens said again: `period` tokens, uniform over the tokenizer's vocabulary, repeated to fill the sequence.

    The period is half of n_ctx unless given. From position period - 1 on, a model that copies is always right.
    """

    tokenizer: Tokenizer
    period: int | None = None
    name: str = "repeated-random"
    n_held_out: int = 1024

    def batch(self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1) -> Int[Tensor, "share pos"]:
        check_shares(batch_size, rank, world)
        return share_of(self._draw(rng_at(seed, step), batch_size, n_ctx), rank, world)

    def validation(self, n_ctx: int, batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
        held_out = self._draw(rng_at(seed=1, step=n_ctx, stream=HELD_OUT), self.n_held_out, n_ctx)
        yield from torch.from_numpy(held_out).split(batch_size)

    def validation_documents(self) -> list[Int[Tensor, " pos"]]:
        return []

    def scored_positions(self, n_ctx: int) -> range:
        return range(n_ctx)

    def references(self, n_ctx: int) -> list[Reference]:
        period, n = self._period(n_ctx), self.n_held_out * n_ctx
        uniform = log(self.tokenizer.d_vocab)
        copied = max(0, n_ctx - period + 1)  # predictions of a token that stood `period` tokens before
        return [
            Reference(
                "perfect copying",
                (1 - copied / n_ctx) * uniform,
                None,
                n,
                f"ln d_vocab until the first repeat, then 0; period {period}",
            ),
            Reference("no copying", uniform, None, n, "ln d_vocab everywhere"),
        ]

    def fingerprint(self) -> dict[str, Any]:
        return _fingerprint(self, self._draw(rng_at(0, 0), 64, 64), n_validation_sequences=self.n_held_out)

    def _period(self, n_ctx: int) -> int:
        return self.period or max(1, n_ctx // 2)

    def _draw(self, rng: np.random.Generator, n_sequences: int, n_ctx: int) -> Int[np.ndarray, "sequence pos"]:
        return synthetic.repeated_tokens(rng, n_sequences, n_ctx + 1, self.tokenizer.d_vocab, self._period(n_ctx))


@dataclass(frozen=True)
class TextSource:
    """A text, tokenized once into two verified streams on disk: training windows from one, validation from the other.

    References are n-gram models of the training tokens, on every prediction of the validation windows.
    """

    tokenizer: Tokenizer
    train: TokenStream
    held_out: TokenStream

    @property
    def name(self) -> str:
        return self.train.about["data"]

    def batch(self, step: int, batch_size: int, n_ctx: int, seed: int, rank: int = 0, world: int = 1) -> Int[Tensor, "share pos"]:
        return self.train.batch(step, batch_size, n_ctx, seed, rank, world)

    def validation(self, n_ctx: int, batch_size: int) -> Iterator[Int[Tensor, "batch pos"]]:
        return self.held_out.windows(n_ctx, batch_size)

    def validation_documents(self) -> list[Int[Tensor, " pos"]]:
        return self.held_out.documents

    def scored_positions(self, n_ctx: int) -> range:
        return range(n_ctx)

    def references(self, n_ctx: int) -> list[Reference]:
        self.held_out.check_fits(n_ctx)
        model = NGramModel.fit(self.train.tokens, self.tokenizer.d_vocab, order=3)
        n = (len(self.held_out) - 1) // n_ctx * n_ctx
        found = []
        for order, name in enumerate(("unigram", "bigram", "trigram"), start=1):
            losses = torch.from_numpy(model.token_losses(self.held_out.tokens[: n + 1], order))
            mean, stderr = synthetic.mean_and_stderr(losses.view(-1, n_ctx))
            note = f"{SMOOTHING}, counted on the {len(self.train):,} training tokens"
            found.append(Reference(name, mean, stderr, n, note))
        return found

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


def load_source(data: str, tokenizer: str = "char", directory: Path | str | None = None) -> Source:
    """The source called "python-docs", "tiny-shakespeare", "markov" or "repeated-random", or of the text file or folder `data`.

    `tokenizer` is byte, char (made from all of the text, held-out part included) or gpt2. A text is tokenized into
    `directory`, by default a folder of `user_cache_dir()`, and streams found there are reused if they verify and are of
    this very text. Raises DataError or TokenizerError.
    """
    if data == "markov":
        if tokenizer != "char":
            raise DataError(
                f"markov chains have a character for each state; leave the tokenizer at char instead of {tokenizer!r}"
            )
        return MarkovSource()
    if data == "repeated-random":
        alphabet = CharTokenizer(string.ascii_letters + string.digits + "+-")
        return RepeatedSource(alphabet if tokenizer == "char" else tokenizer_named(tokenizer))
    corpus = load_corpus(data)
    chosen = CharTokenizer.from_text(corpus.text) if tokenizer == "char" else tokenizer_named(tokenizer)
    default = user_cache_dir() / "streams" / f"{corpus.sha256[:12]}-{chosen.sha256[:12]}"
    return tokenized(corpus, chosen, Path(directory or default))


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
            tokens, offsets = _encoded(documents, tokenizer, parts.by_document)
            stream = TokenStream.write(path, tokens, offsets, tokenizer, described)
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


def _encoded(
    documents: tuple[Document, ...], tokenizer: Tokenizer, by_document: bool
) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " document_plus_1"]]:
    """Tokens of the documents, one after the other, and where each begins (with the end added).

    Independent documents are encoded one by one, the end-of-text token after each where the tokenizer has one. Parts of
    longer texts are encoded as they stand, and documents begin with the first token after a blank line, every 2,000
    characters or more.
    """
    if by_document:
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        encoded = [tokenizer.encode(document.text) + end for document in documents]
        tokens = np.fromiter((token for document in encoded for token in document), dtype=np.uint32)
        return tokens, np.cumsum([0, *map(len, encoded)])
    tokens = np.array(tokenizer.encode("".join(document.text for document in documents)), dtype=np.uint32)
    lengths = np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.d_vocab)])[tokens]
    piece_ends = np.cumsum([len(piece.encode()) for document in documents for piece in pieces(document.text)])
    token_starts = np.cumsum(lengths) - lengths
    inner = np.searchsorted(token_starts, piece_ends[:-1])
    return tokens, np.array([0, *inner, len(tokens)])


def _fingerprint(source: Source, sample: Int[np.ndarray, "sequence pos"], **facts: Any) -> dict[str, Any]:
    """For data that is drawn as it is needed, the hash of a sample stands for all of it."""
    return {
        "data": source.name,
        "sha256": hashlib.sha256(sample.astype("<i8").tobytes()).hexdigest(),
        "tokenizer_sha256": source.tokenizer.sha256,
        **facts,
        "python": sys.version,
        "numpy": np.__version__,
    }
