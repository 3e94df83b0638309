"""From what a user calls a corpus to the reader of its documents."""

import os
from dataclasses import dataclass
from pathlib import Path

from interp_gpt2.data.corpora import load_corpus
from interp_gpt2.data.hub import hub_reader
from interp_gpt2.data.reading import CorpusReader, FileReader, Reader, Validation, file_reader
from interp_gpt2.errors import DataError

HUB = "hf:"


@dataclass(frozen=True)
class Published:
    """A dataset of the Hub that has a name here, and where a copy of its files is looked for first."""

    dataset: str
    config: str | None
    files: tuple[str, ...]  # below ./data and $INTERP_GPT2_DATA; the first that is there is read

    def local(self) -> list[Path]:
        folders = ["data", *filter(None, [os.environ.get("INTERP_GPT2_DATA")])]
        return [Path(folder) / file for folder in folders for file in self.files]


PUBLISHED = {
    "tinystories": Published("roneneldan/TinyStories", None, ("tinystories/TinyStories-train.txt", "TinyStories-train.txt")),
    "fineweb-edu": Published("HuggingFaceFW/fineweb-edu", "sample-10BT", ("fineweb-edu/sample/10BT", "fineweb-edu.jsonl")),
}


def reader_for(data: str, config: str | None = None, column: str = "text", validation: Validation | None = None) -> Reader:
    """The reader of a corpus by name, of files at a path, or of a Hub dataset written hf:owner/name.

    Raises DataError if there is none, naming what would serve; or for a rule of validation where the corpus has its own.
    """
    if data in ("python-docs", "tiny-shakespeare"):
        if validation is not None:
            raise DataError(f"{data} is divided as training on it by name divides it; leave out --validation")
        return CorpusReader(load_corpus(data))
    if data in PUBLISHED:
        return _published(data, config, column, validation)
    if data.startswith(HUB):
        return hub_reader(data.removeprefix(HUB), config, column, validation)
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(
            f"there is no file or folder at {data!r}; give the path of a text, JSONL or Parquet file, one of python-docs, "
            f"tiny-shakespeare, {', '.join(PUBLISHED)}, or hf:owner/name for a dataset of the Hugging Face Hub"
        )
    return file_reader(path, column, validation)


def _published(name: str, config: str | None, column: str, validation: Validation | None) -> Reader:
    known = PUBLISHED[name]
    config = config or known.config
    places = known.local() if config == known.config else []
    for place in places:
        if place.exists():
            return named(file_reader(place, column, validation), name)
    try:
        return hub_reader(known.dataset, config, column, validation)
    except DataError as error:
        serve = f"; or put a copy at {places[0]}, or give the path of one in place of {name}" if places else ""
        raise DataError(f"{error}{serve}") from error


def named(reader: FileReader, name: str) -> FileReader:
    """The same reader under another name."""
    return FileReader(name, reader.paths, reader.column, reader.chosen, reader.notes)
