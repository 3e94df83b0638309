"""Documents out of one file, from a position on. Each comes with the position after it, from which the same function goes on."""

import codecs
import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interp_gpt2.data.corpora import SEPARATOR
from interp_gpt2.errors import DataError


def parquet_rows(path: Path, column: str, begin: int) -> Iterator[tuple[str, int]]:
    """Rows of a Parquet file, a row group at a time; positions are numbers of rows."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise DataError(f"{path} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}")
            row = 0
            for group in range(file.num_row_groups):
                n_rows = file.metadata.row_group(group).num_rows
                if row + n_rows <= begin:
                    row += n_rows
                    continue
                for batch in file.iter_batches(1000, [group], [column]):
                    for text in batch.column(0).to_pylist():
                        if row >= begin:
                            yield text_of(text, f"{path}: row {row}"), row + 1
                        row += 1
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error


def json_lines(path: Path, column: str, begin: int) -> Iterator[tuple[str, int]]:
    """Lines of a JSONL file: objects with a `column`, or strings; positions are bytes."""
    with path.open("rb") as file:
        file.seek(begin)
        position = begin
        for line in file:
            position += len(line)
            if line.strip():
                yield _text_in(_parsed(line, path, f"the line that ends at byte {position}"), column, path), position


def json_array(path: Path, column: str, begin: int) -> Iterator[tuple[str, int]]:
    """Items of a JSON file that is one array, which has to fit into memory; positions are numbers of items."""
    rows = _parsed(path.read_bytes(), path, "it")
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a JSON {type(rows).__name__}, not an array of texts or of objects with a {column!r}")
    for number in range(begin, len(rows)):
        yield _text_in(rows[number], column, path), number + 1


def marked_documents(path: Path, begin: int) -> Iterator[tuple[str, int]]:
    """Texts between <|endoftext|> marks in a file; positions are bytes."""
    mark = SEPARATOR.encode()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        while begin < len(content):
            end = content.find(mark, begin)
            end = len(content) if end < 0 else end
            yield _plain(content[begin:end], path, begin).strip("\n"), min(end + len(mark), len(content))
            begin = end + len(mark)


def text_parts(path: Path, begin: int, cut: int, at_least: int) -> Iterator[tuple[str, int]]:
    """A long text in parts of about `at_least` bytes, never across `cut`; positions are bytes.

    Parts are cut before a line end that follows something visible. GPT-2's way of splitting never joins what is to the left
    of such a place with what is to the right, so that the tokens of the parts are those of the whole.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        while begin < size:
            stop, length = (cut if begin < cut else size), at_least
            while True:
                file.seek(begin)
                content = file.read(min(length, stop - begin))
                if begin + len(content) == stop:
                    break
                text = _decoded(content, path, begin, final=False)
                places = [found.end() for found in re.finditer(r"\S(?=\r?\n)", text)]
                if places:
                    content = text[: places[-1]].encode()
                    break
                length *= 2  # a line longer than the part
            yield _plain(content, path, begin), begin + len(content)
            begin += len(content)


def held_out_from(path: Path, share: float) -> int:
    """The byte where the held-out end of a text begins: after the first blank line, else line end, from its share on."""
    size = path.stat().st_size
    target = round(size * (1 - share))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for boundary in (b"\n\n", b"\n"):
            found = content.find(boundary, target, target + size // 20 + 1)
            if found >= 0 and found + len(boundary) < size:
                return found + len(boundary)
        while target < size and content[target] & 0xC0 == 0x80:  # inside a character
            target += 1
    return target


def text_of(value: object, where: str) -> str:
    """The text of a row. Raises DataError if it is none."""
    if not isinstance(value, str):
        raise DataError(f"{where} holds {type(value).__name__}, not text; name the text's column")
    return value


def _text_in(value: object, column: str, path: Path) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not isinstance(value.get(column), str):
        has = f"it has {', '.join(value)}" if isinstance(value, dict) else f"it is a JSON {type(value).__name__}"
        raise DataError(f"{path}: a row has no text under {column!r} ({has}); name the text's column")
    return value[column]


def _parsed(content: bytes, path: Path, where: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: {where} is not JSON ({error})") from error


def has_marks(path: Path) -> bool:
    """Whether a text file holds <|endoftext|> marks. Raises DataError if it is empty."""
    if not path.stat().st_size:
        raise DataError(f"{path} is empty; give a file with text in it")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(SEPARATOR.encode()) >= 0


def _plain(content: bytes, path: Path, begin: int) -> str:
    text = _decoded(content, path, begin, final=True).replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise DataError(f"{path} is a binary file (it has a zero byte); give a text file")
    return text.removeprefix("\ufeff") if begin == 0 else text


def _decoded(content: bytes, path: Path, begin: int, final: bool) -> str:
    """UTF-8, in which a character that is cut at the end is left out unless it is the `final` part."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(content, final)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x} at {begin + error.start}); convert it to UTF-8"
        ) from error
