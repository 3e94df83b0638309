"""A prepared directory: a corpus as shards of tokens, its tokenizer, and prepared.json, which says how far it has come.

    prepared.json                          what it was made from, with what, its shards with their hashes, and the cursor of
                                           what comes next, or that all is there
    tokenizer.json, tokenizer_config.json
    train-00000.tokens, train-00001.tokens, ..., validation-00000.tokens, ...    as streams.py writes them

prepared.json is replaced after its shards are on disk, all of one time together: what it does not name does not count.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from interp_gpt2.data.shards import ShardedStream
from interp_gpt2.errors import DataError
from interp_gpt2.files import written_atomically
from interp_gpt2.tokenizers import Tokenizer, load_tokenizer

RECORD = "prepared.json"
FORMAT = "interp_gpt2 prepared data 1"
PARTS = ("train", "validation")


@dataclass(frozen=True)
class Shard:
    """A file of tokens, and the hash that its header must have."""

    file: str
    n_tokens: int
    n_documents: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """prepared.json. `settings` is what has to be the same for the work to go on; `cursor` where it does."""

    data: str
    settings: dict[str, Any]
    tokenizer: dict[str, Any]
    held_out: str
    notes: tuple[str, ...]
    versions: dict[str, str]
    train: tuple[Shard, ...] = ()
    validation: tuple[Shard, ...] = ()
    n_empty: int = 0  # texts with nothing visible in them, left out
    cursor: dict[str, Any] | None = None
    complete: bool = False

    @property
    def n_train_tokens(self) -> int:
        return sum(shard.n_tokens for shard in self.train)

    @property
    def n_validation_tokens(self) -> int:
        return sum(shard.n_tokens for shard in self.validation)

    @property
    def n_documents(self) -> int:
        return sum(shard.n_documents for shard in (*self.train, *self.validation))

    @property
    def sha256(self) -> str:
        """Hash of the hashes of all shards, in order."""
        return hashlib.sha256("".join(shard.sha256 for shard in (*self.train, *self.validation)).encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Puts it in the place of the one before. Raises OSError."""
        _sync(directory)  # the names of the shards first
        with written_atomically(directory / RECORD) as file:
            file.write((json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode())
        _sync(directory)


def is_prepared(path: Path) -> bool:
    """Whether there is a prepared directory at `path`, complete or not."""
    return (path / RECORD).is_file()


def read_record(directory: Path) -> Record:
    """prepared.json. Raises DataError if it is missing, damaged, or of another format."""
    path = directory / RECORD
    try:
        fields = json.loads(path.read_bytes())
        if fields.pop("format") != FORMAT:
            raise DataError(f"{path} is of another format; prepare the data again")
        record = Record(**fields)
        shards = {part: tuple(Shard(**shard) for shard in fields[part]) for part in PARTS}
        return replace(record, notes=tuple(record.notes), **shards)
    except OSError as error:
        raise DataError(f"{directory} is not a prepared directory ({RECORD}: {error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged ({error}); prepare the data again in another directory") from error


def open_prepared(directory: Path) -> tuple[Tokenizer, ShardedStream, ShardedStream]:
    """The tokenizer, the training and the validation stream of a prepared directory, each file verified by its hash.

    Raises DataError if it is not complete, or a shard is missing, altered, or of another tokenizer; TokenizerError.
    """
    record = read_record(directory)
    if not record.complete:
        raise DataError(
            f"{directory} is not complete: it has {record.n_train_tokens:,} training tokens so far; the command of "
            "`interp-gpt2 data prepare` that it was begun with goes on"
        )
    tokenizer = load_tokenizer(directory)
    about = {
        "data": record.data,
        "sha256": record.sha256,
        "n_documents": record.n_documents,
        "held_out": record.held_out,
        "notes": list(record.notes),
        "prepared_with": record.versions,
    }
    streams = []
    for part in PARTS:
        shards = getattr(record, part)
        stream = ShardedStream.open(part, [directory / shard.file for shard in shards], about)
        for shard, found in zip(shards, stream.shards, strict=True):
            if found.sha256 != shard.sha256 or found.tokenizer != tokenizer.sha256:
                raise DataError(f"{found.path} is not the file that {RECORD} names, or its tokenizer is another; prepare again")
        streams.append(stream)
    return tokenizer, *streams


def _sync(directory: Path) -> None:
    """Forces the names in a directory to disk."""
    if os.name == "nt":  # which cannot open a directory, and writes its names at once
        return
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
