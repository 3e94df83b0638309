"""From documents to a prepared directory: in parallel, in constant memory, and wherever it is killed, to the same tokens.

Threads tokenize chunks of about a megabyte (tiktoken leaves Python alone meanwhile); what they give is written in the order
it was read. A shard appears whole, then prepared.json names it and the place in the data after it. Killed at any moment, the
work goes on from there: what was not named is made again, nothing twice.
"""

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from interp_gpt2.data.corpora import closed
from interp_gpt2.data.encoding import Encoded, encode_text
from interp_gpt2.data.prepared import RECORD, Record, Shard, is_prepared, read_record
from interp_gpt2.data.reading import Chunk, Cursor, Reader, Validation
from interp_gpt2.data.streams import StreamWriter, token_dtype
from interp_gpt2.errors import DataError
from interp_gpt2.tokenizers import Tokenizer, load_tokenizer, tokenizer_for

SHARD_TOKENS = 100_000_000
BPE_CHARACTERS = 100_000_000  # of which a tokenizer is trained; more hardly changes it, and counts of words take memory
LOCK = ".lock"

Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass(frozen=True)
class Preparation:
    """How to prepare: the tokenizer's name, when to stop, and with how many threads (None: one for each core).

    `max_tokens` of the training part are reached by the document that is the last. Raises DataError for numbers below 1.
    """

    tokenizer: str = "gpt2"
    max_tokens: int | None = None
    n_threads: int | None = None
    shard_tokens: int = SHARD_TOKENS

    def __post_init__(self) -> None:
        for name in ("max_tokens", "n_threads", "shard_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise DataError(f"{name}={value} must be at least 1")


@dataclass(frozen=True)
class Progress:
    """How far it is: tokens and documents in all, and tokens per second since this process began."""

    n_tokens: int
    n_documents: int
    tokens_per_s: float


def silent(progress: Progress) -> None:
    """Shows nothing."""


def prepare(reader: Reader, directory: Path, how: Preparation, progress: Callable[[Progress], None] = silent) -> Record:
    """Tokenize what `reader` reads into shards in `directory`, or go on with that; returns the finished record.

    The tokens depend on the documents, the tokenizer and the rule for validation, not on threads or interruptions.
    Raises DataError if the directory was begun otherwise, is in use, holds other files or cannot be written, or if no
    document was held out; TokenizerError for a document that cannot be encoded.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _only_writer(directory):
            record, tokenizer = _begun(reader, directory, how)
            if not record.complete:
                record = _Shards(reader, tokenizer, directory, how, progress).write_from(record)
    except OSError as error:
        raise DataError(
            f"{error.filename or directory}: {error.strerror}; what {RECORD} in {directory} names is kept, and the same command "
            "goes on"
        ) from error
    if not record.validation:
        raise DataError(
            f"none of the {record.n_documents:,} documents was held out ({record.held_out}); delete {directory} and prepare "
            "it again with a number of documents to hold out, such as --validation 10"
        )
    return record


class _Shards:
    """Writes one pair of shards after another, each as a whole."""

    def __init__(
        self, reader: Reader, tokenizer: Tokenizer, directory: Path, how: Preparation, progress: Callable[[Progress], None]
    ) -> None:
        self.reader, self.tokenizer, self.directory, self.how, self.progress = reader, tokenizer, directory, how, progress
        self.began = self.shown = time.perf_counter()
        self.n_before = 0

    def write_from(self, record: Record) -> Record:
        self.n_before = record.n_train_tokens + record.n_validation_tokens
        n_threads = self.how.n_threads or _n_cores()
        encode = partial(encode_chunk, tokenizer=self.tokenizer, validation=self.reader.validation)
        with (
            ThreadPoolExecutor(n_threads) as threads,
            closing(in_order(threads, encode, self.reader.chunks(record.cursor), 2 * n_threads)) as chunks,
        ):
            while not record.complete:
                record = self.one_shard(record, chunks)
                record.write(self.directory)
        self.show(record, ())
        return record

    def one_shard(self, record: Record, chunks: Iterator["EncodedChunk"]) -> Record:
        """The next shard of each part, up to the end of a chunk."""
        numbers = {part: len(getattr(record, part)) for part in ("train", "validation")}
        names = {part: f"{part}-{number:05d}.tokens" for part, number in numbers.items()}
        about = {"data": record.data, "of": str(self.directory.resolve().name)}
        train, held_out = (StreamWriter(self.directory / name, self.tokenizer, about) for name in names.values())
        left = self.how.max_tokens and self.how.max_tokens - record.n_train_tokens
        n_empty, cursor, complete = record.n_empty, record.cursor, False
        with train, held_out:
            while train.n_tokens < self.how.shard_tokens and not complete:
                chunk = next(chunks, None)
                if chunk is None:
                    complete = True
                    break
                held_out.append(*chunk.validation)
                train.append(*up_to(chunk.train, left and left - train.n_tokens))
                complete = left is not None and train.n_tokens >= left
                n_empty, cursor = n_empty + chunk.n_empty, chunk.cursor
                self.show(record, (train, held_out))
        shards = {
            part: (*getattr(record, part), Shard(names[part], writer.n_tokens, writer.n_documents, writer.sha256))
            for part, writer in (("train", train), ("validation", held_out))
            if writer.n_tokens
        }
        return replace(record, **shards, n_empty=n_empty, cursor=None if complete else cursor, complete=complete)

    def show(self, record: Record, writers: Iterable[StreamWriter]) -> None:
        """Tells the progress, at most twice a second."""
        now = time.perf_counter()
        if not record.complete and now - self.shown < 0.5:
            return
        self.shown = now
        n_tokens = record.n_train_tokens + record.n_validation_tokens + sum(writer.n_tokens for writer in writers)
        n_documents = record.n_documents + sum(writer.n_documents for writer in writers)
        self.progress(Progress(n_tokens, n_documents, (n_tokens - self.n_before) / (now - self.began)))


@dataclass(frozen=True)
class EncodedChunk:
    """The tokens of a chunk's documents by part, and where the next chunk begins."""

    train: Encoded
    validation: Encoded
    n_empty: int
    cursor: Cursor


def encode_chunk(chunk: Chunk, tokenizer: Tokenizer, validation: Validation | None) -> EncodedChunk:
    """Tokenizes one chunk. Raises TokenizerError naming the documents among which one cannot be encoded."""
    texts, n_empty = divided(chunk, validation, closing=tokenizer.eos_token_id is None)
    encode = partial(_encode, chunk=chunk, tokenizer=tokenizer)
    return EncodedChunk(encode(texts[0]), encode(texts[1]), n_empty, chunk.cursor)


def _encode(texts: list[str], chunk: Chunk, tokenizer: Tokenizer) -> Encoded:
    if chunk.whole:
        tokens, lengths = tokenizer.encode_documents(texts)
    else:
        tokens, lengths = encode_text(texts, tokenizer)
        if chunk.closes and texts and tokenizer.eos_token_id is not None:
            tokens = np.append(tokens, np.uint32(tokenizer.eos_token_id))
            lengths[-1] += 1
    return tokens.astype(token_dtype(tokenizer.d_vocab), copy=False), lengths


def divided(chunk: Chunk, validation: Validation | None, closing: bool) -> tuple[tuple[list[str], list[str]], int]:
    """A chunk's texts for training and for validation, and how many were left out because there is nothing in them.

    `closing` ends each document with a blank line, for a tokenizer that has no token to say so.
    """
    parts: tuple[list[str], list[str]] = ([], [])
    n_empty = 0
    for number, text in enumerate(chunk.texts, start=chunk.first):
        if chunk.whole and not text.strip():
            n_empty += 1
            continue
        held_out = chunk.held_out if chunk.held_out is not None else is_held_out(validation, number, text)
        parts[held_out].append(closed(text) if closing and (chunk.whole or chunk.closes) else text)
    return parts, n_empty


def is_held_out(validation: Validation, number: int, text: str) -> bool:
    """Whether document `number` is held out. By share, its text's hash decides, so that copies stay together."""
    if validation.first:
        return number < validation.first
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < validation.share * 2**64


def up_to(encoded: Encoded, n_tokens: int | None) -> Encoded:
    """The first documents, as many as it takes to have `n_tokens` (None: all of them)."""
    tokens, lengths = encoded
    if n_tokens is None or n_tokens >= len(tokens):
        return encoded
    ends = np.cumsum(lengths)
    n_documents = int(np.searchsorted(ends, n_tokens)) + 1 if n_tokens > 0 else 0
    return tokens[: ends[n_documents - 1] if n_documents else 0], lengths[:n_documents]


def in_order(
    threads: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], at_once: int
) -> Iterator[Result]:
    """The results of `function`, in the order of the items, of which never more than `at_once` are waited for."""
    waiting: deque[Any] = deque()
    try:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) >= at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _begun(reader: Reader, directory: Path, how: Preparation) -> tuple[Record, Tokenizer]:
    """The record to go on from, that of `directory`, swept of what it does not name, or a new one; and the tokenizer."""
    settings = {
        "reader": reader.identity(),
        "tokenizer": how.tokenizer,
        "validation": asdict(reader.validation) if reader.validation else None,
        "max_tokens": how.max_tokens,
        "shard_tokens": how.shard_tokens,
    }
    settings = json.loads(json.dumps(settings))  # as it will be read back
    if not is_prepared(directory):
        return _new(reader, directory, how, settings)
    record = read_record(directory)
    for name in settings:
        if record.settings.get(name) != settings[name]:
            was, is_ = (str(values.get(name))[:200] for values in (record.settings, settings))
            raise DataError(f"{directory} was begun with {name} {was}, which is now {is_}; delete it or choose another place")
    named = {shard.file for shard in (*record.train, *record.validation)}
    for path in (*directory.glob("*.tokens"), *directory.glob(".*.tmp")):
        if path.name not in named:
            path.unlink()
    if missing := sorted(name for name in named if not (directory / name).is_file()):
        raise DataError(f"{directory / missing[0]} is gone; delete {directory} to prepare it again")
    tokenizer = load_tokenizer(directory)
    if tokenizer.sha256 != record.tokenizer["sha256"]:
        raise DataError(f"the tokenizer in {directory} is not the one it was begun with; delete it to prepare it again")
    return record, tokenizer


def _new(reader: Reader, directory: Path, how: Preparation, settings: dict[str, Any]) -> tuple[Record, Tokenizer]:
    ours = ("tokenizer.json", "tokenizer_config.json", LOCK)
    others = [path.name for path in directory.iterdir() if path.name not in ours and not path.name.endswith(".tmp")]
    if others:
        raise DataError(f"{directory} holds other files ({', '.join(sorted(others)[:3])}); choose a new or empty directory")
    tokenizer = tokenizer_for(how.tokenizer, _texts(reader, (0, 1)), _characters(_texts(reader, (0,)), BPE_CHARACTERS))
    tokenizer.save(directory)
    record = Record(
        data=reader.name,
        settings=settings,
        tokenizer={"kind": how.tokenizer, "d_vocab": tokenizer.d_vocab, "sha256": tokenizer.sha256},
        held_out=reader.how_held_out,
        notes=reader.notes,
        versions={name: version(name) for name in ("interp_gpt2", "tiktoken", "tokenizers", "datasets", "pyarrow")},
    )
    record.write(directory)
    return record, tokenizer


def _texts(reader: Reader, parts: tuple[int, ...]) -> Iterator[str]:
    """Every text as it will be encoded, of training (0), validation (1), or both. Nothing is read until it is asked for."""
    for chunk in reader.chunks(None):
        texts, _ = divided(chunk, reader.validation, closing=1 in parts)
        for part in parts:
            yield from texts[part]


def _characters(texts: Iterator[str], at_most: int) -> Iterator[str]:
    """The first texts, until they have so many characters."""
    n = 0
    for text in texts:
        yield text
        n += len(text)
        if n >= at_most:
            return


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _only_writer(directory: Path) -> Iterator[None]:
    """Held through flock, so it is free again the moment its holder dies. Raises DataError if another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows, where nothing keeps two from writing at once
        yield
        return
    with (directory / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{directory} is being prepared by another process; wait for it or stop it") from None
        yield
