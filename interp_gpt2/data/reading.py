"""Documents out of files of any size, in order, a chunk at a time, each chunk saying where the next begins.

What is read after a chunk depends on its cursor alone, so reading that was interrupted goes on with the very next document.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from interp_gpt2.data.corpora import SEPARATOR, Corpus, read_text, split
from interp_gpt2.data.formats import has_marks, held_out_from, json_array, json_lines, marked_documents, parquet_rows, text_parts
from interp_gpt2.errors import DataError

CHUNK_CHARACTERS = 1_000_000  # enough for a thread to be busy for a while, and little beside a shard
HELD_OUT_BYTES = 10_000_000  # unless told otherwise: a tenth of the text, but no more than some 2.5 million tokens
MANY_FILES = 100  # as many text files are documents, each one; fewer are long texts, of each of which the end is held out
_ROWS = {".parquet": "Parquet", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON"}
_PACKED = {".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".tgz"}

Cursor = dict[str, Any]  # ready for JSON; "document" counts those before it, the rest is the reader's own


@dataclass(frozen=True)
class Chunk:
    """Some texts and where the next ones begin.

    `held_out`: whether they are the validation's; None leaves it to the rule for documents. `first` is the number of the
    first of them. Texts are documents, or, where not `whole`, parts of a long text that go on from one chunk to the next;
    `closes` says that such a text ends here and another follows.
    """

    texts: tuple[str, ...]
    cursor: Cursor = field(default_factory=dict)
    first: int = 0
    held_out: bool | None = None
    whole: bool = True
    closes: bool = False


@dataclass(frozen=True)
class Validation:
    """Which documents are held out: the first so many, or a share of them by the hash of their text."""

    first: int = 0
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.first < 0 or not 0 <= self.share < 1 or (self.first > 0) == (self.share > 0):
            raise DataError(
                f"documents are held out as a share of them, such as 0.01, or as a number of them, such as 2000, not as "
                f"{self.share or self.first}"
            )

    @classmethod
    def parse(cls, text: str) -> "Validation":
        """From "0.01" or "2000". Raises DataError."""
        if re.fullmatch(r"\d+", text):
            return cls(first=int(text))
        if re.fullmatch(r"\d*\.\d+", text):
            return cls(share=float(text))
        raise DataError(f"{text!r} is neither a share of the documents, such as 0.01, nor a number of them, such as 2000")


class Reader(Protocol):
    """Where documents come from. `n_bytes` is the size of the files, where that is known."""

    name: str
    n_bytes: int | None
    validation: Validation | None  # for documents whose chunk does not say; None where every chunk does
    how_held_out: str
    notes: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """What must be the same for a cursor to mean the same, ready for JSON."""
        ...

    def chunks(self, cursor: Cursor | None) -> Iterator[Chunk]:
        """The chunks from a cursor on (None: all), the same ones every time."""
        ...


@dataclass(frozen=True)
class CorpusReader:
    """A corpus that fits into memory, divided as training on it by name divides it."""

    corpus: Corpus
    n_bytes: int | None = None
    validation: Validation | None = None

    @property
    def name(self) -> str:
        return self.corpus.name

    @property
    def how_held_out(self) -> str:
        return split(self.corpus).how

    @property
    def notes(self) -> tuple[str, ...]:
        return self.corpus.notes

    def identity(self) -> dict[str, Any]:
        return {"sha256": self.corpus.sha256}

    def chunks(self, cursor: Cursor | None) -> Iterator[Chunk]:
        parts, done, first = split(self.corpus), (cursor or {"part": 0})["part"], 0
        for number, (held_out, documents) in enumerate(((True, parts.validation), (False, parts.train))):
            if number >= done:
                texts = tuple(document.text for document in documents)
                at = {"part": number + 1, "document": first + len(texts)}
                yield Chunk(texts, at, first, held_out, whole=parts.by_document)
            first += len(documents)


@dataclass(frozen=True)
class FileReader:
    """Text, JSONL, JSON or Parquet files, all of one kind, from which rows' `column` is read.

    A text file with <|endoftext|> marks holds the documents between them. Of text files without, a hundred or more are a
    document each; fewer are long texts, encoded as they stand, and the end of each is held out.
    """

    name: str
    paths: tuple[Path, ...]
    column: str = "text"
    chosen: Validation | None = None
    notes: tuple[str, ...] = ()
    chunk_characters: int = CHUNK_CHARACTERS
    _long: tuple[bool, ...] = field(init=False)

    def __post_init__(self) -> None:
        few = len(self.paths) < MANY_FILES
        long = tuple(few and path.suffix.lower() not in _ROWS and not has_marks(path) for path in self.paths)
        object.__setattr__(self, "_long", long)
        if any(long) and self.validation.first:
            raise DataError(
                f"{self.paths[long.index(True)]} is one long text without {SEPARATOR} between documents; hold out a share of "
                "it, such as 0.1"
            )

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    @property
    def validation(self) -> Validation:
        return self.chosen or Validation(share=min(0.1, HELD_OUT_BYTES / max(1, self.n_bytes)))

    @property
    def how_held_out(self) -> str:
        if self.validation.first:
            return f"the first {self.validation.first:,} documents"
        long, documents = "each long text, its end", "the documents, by the hash of their text"
        parts = [what for what, there in ((documents, not all(self._long)), (long, any(self._long))) if there]
        return f"{self.validation.share:.3g} of {', and of '.join(parts)}"

    def identity(self) -> dict[str, Any]:
        files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in self.paths]
        return {"files": files, "column": self.column, "chunk_characters": self.chunk_characters}

    def chunks(self, cursor: Cursor | None) -> Iterator[Chunk]:
        at = cursor or {"file": 0, "at": 0, "document": 0}
        for number in range(at["file"], len(self.paths)):
            path, begin = self.paths[number], at["at"] if number == at["file"] else 0
            found = self._parts(path, begin) if self._long[number] else self._documents(path, begin)
            for chunk, position in found:
                first = at["document"]
                at = {"file": number, "at": position, "document": first + len(chunk.texts)}
                yield replace(chunk, cursor=at, first=first)

    def _documents(self, path: Path, begin: int) -> Iterator[tuple[Chunk, int]]:
        texts, size, position = [], 0, begin
        for text, position in self._items(path, begin):
            texts.append(text)
            size += len(text)
            if size >= self.chunk_characters:
                yield Chunk(tuple(texts)), position
                texts, size = [], 0
        if texts:
            yield Chunk(tuple(texts)), position

    def _parts(self, path: Path, begin: int) -> Iterator[tuple[Chunk, int]]:
        cut = held_out_from(path, self.validation.share)
        ends = (cut, path.stat().st_size) if len(self.paths) > 1 else ()
        for text, position in text_parts(path, begin, cut, self.chunk_characters):
            yield Chunk((text,), held_out=position > cut, whole=False, closes=position in ends), position

    def _items(self, path: Path, begin: int) -> Iterator[tuple[str, int]]:
        """The documents of a file from a position on, and the position after each."""
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            return parquet_rows(path, self.column, begin)
        if suffix in (".jsonl", ".ndjson"):
            return json_lines(path, self.column, begin)
        if suffix == ".json":
            return json_array(path, self.column, begin)
        if len(self.paths) < MANY_FILES:
            return marked_documents(path, begin)
        return iter([(read_text(path), path.stat().st_size)] if begin == 0 else [])


def file_reader(path: Path, column: str = "text", validation: Validation | None = None) -> FileReader:
    """The reader of a file, or of a folder's files of one kind; what is no text, and hidden files, are passed over.

    Raises DataError where there is nothing to read, or a folder holds several kinds.
    """
    if path.is_file():
        paths, others = [path], []
    elif path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file.relative_to(path))]
        paths = [file for file in files if file.suffix.lower() in {*_ROWS, ".txt"}] or files
        taken = set(paths)
        others = [file.relative_to(path).as_posix() for file in files if file not in taken]
        kinds = sorted({file.suffix.lower() for file in paths})
        if len(kinds) > 1 and paths is not files:
            raise DataError(f"{path} holds {', '.join(kinds)} files; give the folder or file of one kind")
    else:
        raise DataError(f"there is no file or folder at {str(path)!r}")
    if packed := [file for file in paths if file.suffix.lower() in _PACKED]:
        raise DataError(f"{packed[0]} is packed; unpack it first")
    if not paths:
        raise DataError(f"there is no text in {path}; give text, JSONL or Parquet files")
    listed = ", ".join(others[:5])[:300] + (", ..." if len(others) > 5 else "")
    notes = (f"{len(others)} files of other kinds were left out: {listed}",) if others else ()
    return FileReader(path.resolve().name, tuple(paths), column, validation, notes)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
