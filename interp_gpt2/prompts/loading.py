"""A user's own pairs: from a CSV file, a Hugging Face dataset, or rows at hand."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_gpt2.data.hub import ANSWER_WITHIN_S
from interp_gpt2.errors import DataError
from interp_gpt2.prompts.pairs import PromptPairs
from interp_gpt2.tokenizers import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


@dataclass(frozen=True)
class Columns:
    """What the columns are called. `incorrect` may be None: pairs without incorrect answers."""

    clean: str = "clean"
    corrupted: str = "corrupted"
    correct: str = "correct"
    incorrect: str | None = "incorrect"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in astuple(self) if name is not None)


DEFAULT = Columns()


def pairs_from_rows(
    tokenizer: Tokenizer, rows: Iterable[Mapping[str, Any]], columns: Columns = DEFAULT, bos: bool = False
) -> PromptPairs:
    """Pairs out of dictionaries. An answer is a text, or a list of texts where a pair has several.

    Nothing is added to a text: with GPT-2's tokens, " Mary" and "Mary" are different answers. Raises DataError for a row
    that lacks a column, and as `PromptPairs.from_text` does, naming the row, counted from 0.
    """
    return _pairs(tokenizer, ((f"row {i}", row) for i, row in enumerate(rows)), columns, bos)


def pairs_from_csv(tokenizer: Tokenizer, path: Path | str, columns: Columns = DEFAULT, bos: bool = False) -> PromptPairs:
    """Pairs out of a CSV file in UTF-8 whose first line names its columns; others than those asked for are not read.

    Spaces count, so that answers may begin with one. A cell such as `[" Mary", " Anna"]`, a JSON list of texts, holds
    several answers. Raises DataError for a file that cannot be read, and as `pairs_from_rows` does, naming the line.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            return _pairs(tokenizer, _csv_rows(reader, Path(path), columns), columns, bos)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num} is not CSV: {error}; quote texts that hold quotes or commas") from error


def pairs_from_dataset(
    tokenizer: Tokenizer,
    dataset: "Dataset | IterableDataset | str",
    columns: Columns = DEFAULT,
    split: str = "train",
    n: int | None = None,
    bos: bool = False,
) -> PromptPairs:
    """Pairs out of the first `n` rows (None: all) of a Hugging Face dataset, or of the split of one that is named.

    A named one is read from its folder or streamed from the Hub. Raises DataError where it cannot be reached, and as
    `pairs_from_rows` does.
    """
    if not isinstance(dataset, str):
        return pairs_from_rows(tokenizer, islice(dataset, n), columns, bos)
    from datasets import load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        if not Path(dataset).is_dir():  # without a network, datasets would try again for 25 s
            HfApi().dataset_info(dataset, timeout=ANSWER_WITHIN_S)
        rows = list(islice(load_dataset(dataset, split=split, streaming=True), n))
    except (OSError, ValueError, HTTPError) as error:
        raise DataError(
            f"the {split} split of dataset {dataset} could not be read ({type(error).__name__}: {str(error)[:200]}); give rows, "
            "a CSV file, or a dataset that is loaded already"
        ) from error
    return pairs_from_rows(tokenizer, rows, columns, bos)


def _pairs(tokenizer: Tokenizer, rows: Iterable[tuple[str, Mapping[str, Any]]], columns: Columns, bos: bool) -> PromptPairs:
    names, cells = [], []
    for name, row in rows:
        if not isinstance(row, Mapping):
            raise DataError(f"{name} is {type(row).__name__}, not a dictionary with {', '.join(columns.names)}")
        _check_columns(name, list(row), columns)
        names.append(name)
        cells.append([row[column] for column in columns.names])
    if not names:
        raise DataError(f"there are no rows; give at least one with {', '.join(columns.names)}")
    clean, corrupted, *answers = ([row[i] for row in cells] for i in range(len(columns.names)))
    pairs = PromptPairs.from_text(tokenizer, clean, corrupted, *answers, labels=names, bos=bos)
    return replace(pairs, labels=tuple(clean))


def _csv_rows(reader: Any, path: Path, columns: Columns) -> Iterable[tuple[str, Mapping[str, Any]]]:
    header = next(reader, None)
    if header is None:
        raise DataError(f"{path} is empty; its first line must name the columns {', '.join(columns.names)}")
    _check_columns(str(path), header, columns)
    if twice := [name for name in columns.names if header.count(name) > 1]:
        raise DataError(f"{path} has more than one column {twice[0]!r}; rename all but one")
    for row in reader:
        name = f"{path.name} line {reader.line_num}"
        if not row:  # a blank line
            continue
        if len(row) != len(header):
            raise DataError(f"{name} has {len(row)} cells, and there are {len(header)} columns; quote texts that hold a comma")
        cells = dict(zip(header, row, strict=True))
        yield name, cells | {column: _several(cells[column]) for column in (columns.correct, columns.incorrect) if column}


def _several(cell: str) -> str | list[str]:
    if not cell.startswith("["):
        return cell
    try:
        texts = json.loads(cell)
    except ValueError:
        return cell  # an answer that begins with a bracket
    return texts if texts and all(isinstance(text, str) for text in texts) else cell


def _check_columns(where: str, present: list[str], columns: Columns) -> None:
    missing = [name for name in columns.names if name not in present]
    if missing:
        nearest = get_close_matches(missing[0], [str(name) for name in present], 1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise DataError(
            f"{where} has no column {missing[0]!r}{hint}; it has {', '.join(map(str, present))}. Name columns with "
            "Columns(clean=..., corrupted=..., correct=..., incorrect=...)"
        )
