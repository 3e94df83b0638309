"""Texts to train on, as documents: Python's own documentation (on every machine), TinyShakespeare, and the user's files."""

import ast
import gc
import hashlib
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from interp_gpt2.errors import DataError
from interp_gpt2.files import user_cache_dir, written_atomically

SEPARATOR = "<|endoftext|>"  # between documents in one file, as GPT-2's and TinyStories' texts are written
SHAKESPEARE = Path("tinyshakespeare") / "input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
MIN_DOCUMENTS = 100  # fewer, and a tenth of them would say little about the rest
PIECE_CHARACTERS = 2000  # a few contexts long, for texts that have no documents of their own
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Document:
    """One text and the name it is known by, which decides whether it is held out."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order; `notes` say what was left out or is not as expected."""

    name: str
    documents: tuple[Document, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def text(self) -> str:
        return "".join(document.text for document in self.documents)

    @cached_property
    def sha256(self) -> str:
        """Hash of every name and text, in order."""
        return hash_of(self.documents)


@dataclass(frozen=True)
class Split:
    """A corpus in two: `validation` is never trained on. `by_document` says whether whole documents were held out."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    by_document: bool

    @property
    def how(self) -> str:
        whole = "whole documents, a tenth of the text, in the order of the hashes of their names"
        return whole if self.by_document else "the last tenth of each document, from a blank line on where there is one"


def split(corpus: Corpus) -> Split:
    """Holds out about a tenth, the same one every time.

    From 100 documents on, whole documents in the order of the hashes of their names, as long as they make up no more than a
    tenth of the text, and none of them more than a tenth of that. With fewer, the last tenth of each document, as nanoGPT
    does with Shakespeare, cut at the nearest blank line or else line end. Raises DataError for a text too short to be cut.
    """
    documents = corpus.documents
    if len(documents) >= MIN_DOCUMENTS:
        names = _held_out_names(corpus)
        train = tuple(document for document in documents if document.name not in names)
        return Split(train, tuple(document for document in documents if document.name in names), True)
    cuts = [_cut(document.text) for document in documents]
    train = tuple(Document(doc.name, doc.text[:cut]) for doc, cut in zip(documents, cuts, strict=True) if cut)
    validation = tuple(Document(doc.name, doc.text[cut:]) for doc, cut in zip(documents, cuts, strict=True))
    if not train:
        raise DataError(f"{corpus.name} has {len(corpus.text)} characters, too few to hold out a tenth; give more text")
    return Split(train, validation, False)


def _held_out_names(corpus: Corpus) -> set[str]:
    names, room = set(), len(corpus.text) // 10
    longest = room // 10  # the validation loss should not be that of one long document
    for document in sorted(corpus.documents, key=lambda document: hashlib.sha256(document.name.encode()).digest()):
        if len(document.text) <= min(room, longest):
            names.add(document.name)
            room -= len(document.text)
    return names


def _cut(text: str) -> int:
    """The start of the last tenth: the nearest blank line within a twentieth of the text, else line end, else character."""
    target = len(text) * 9 // 10
    for boundary in (r"\n\n+", r"\n"):
        ends = [found.end() for found in re.finditer(boundary, text) if found.end() < len(text)]
        nearest = min(ends, key=lambda end: abs(end - target), default=0)
        if nearest and abs(nearest - target) <= len(text) / 20:
            return nearest
    return target


def pieces(text: str, at_least: int = PIECE_CHARACTERS) -> list[str]:
    """`text` in pieces that end with a blank line and have `at_least` characters, the last excepted; joined, they are it."""
    cuts = [0]
    for found in re.finditer(r"\n\n+", text):
        if found.end() - cuts[-1] >= at_least:
            cuts.append(found.end())
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True) if start < end]


def load_corpus(data: str) -> Corpus:
    """The corpus called "python-docs" or "tiny-shakespeare", or the text file or folder at the path `data`.

    Raises DataError when there is none, or nothing in it is text.
    """
    if data == "python-docs":
        return python_docs()
    if data == "tiny-shakespeare":
        return tiny_shakespeare()
    path = Path(os.path.expanduser(data))
    if data and path.is_dir():
        return text_folder(path)
    if data and path.exists():
        return text_file(path)
    raise DataError(
        f"there is no file or folder at {data!r}; give the path of a text file or folder, or one of python-docs, "
        "tiny-shakespeare, markov, repeated-random"
    )


def python_docs(cache: Path | None = None) -> Corpus:
    """CPython's documentation as every installation carries it: `pydoc_data.topics`, and the standard library's docstrings.

    A document is a topic, or the docstrings of one module in the order of its source (unindented, tests left out, a text
    that occurs twice kept once). About 2.2 million characters, 114 of them different; the text depends on the Python
    version. Docstrings take seconds to collect and are then kept in `cache`, by default `user_cache_dir()`. Where the
    library's sources are not installed, a note says that only the topics are there. Raises DataError if neither is.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        topics = {}
    documents = [Document(f"topics/{name}", closed(text)) for name, text in sorted(topics.items())]
    docstrings = _cached_docstrings(cache or user_cache_dir())
    if not documents and not docstrings:
        raise DataError(
            "this Python carries neither pydoc_data.topics nor its library's sources; give the path of a text instead"
        )
    notes = [] if docstrings else ["topics only: this Python's library sources are not installed"]
    notes += [] if documents else ["docstrings only: this Python has no pydoc_data.topics"]
    return Corpus("python-docs", (*documents, *docstrings), tuple(notes))


def _cached_docstrings(folder: Path) -> list[Document]:
    library = Path(sysconfig.get_path("stdlib"))
    key = hashlib.sha256(f"1 {sys.version} {library}".encode()).hexdigest()[:16]  # 1: the way they are collected
    path = folder / f"docstrings-{key}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # absent or damaged: collected again below
        kept = json.loads(path.read_bytes())
        documents = [Document(name, text) for name, text in kept["documents"]]
        if hash_of(documents) == kept["sha256"]:
            return documents
    with _no_garbage_collection():  # it would look through every syntax tree again and again, and take half of the time
        documents = list(docstrings(library))
    kept = {"python": sys.version, "sha256": hash_of(documents), "documents": [[doc.name, doc.text] for doc in documents]}
    if documents:
        with suppress(OSError), written_atomically(path) as file:  # a home that cannot be written costs time, nothing else
            file.write(json.dumps(kept).encode())
    return documents


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def docstrings(library: Path) -> Iterator[Document]:
    """The docstrings of the Python sources below `library`, a document for each module that has any new ones."""
    seen: set[str] = set()
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if _NOT_LIBRARY & set(name.parts):
            continue
        try:
            module = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # a template or a sample of bad code, which a library may carry
        found = [ast.get_docstring(node) for node in _documented(module)]
        new = [text for text in dict.fromkeys(found) if text and text not in seen]
        seen.update(new)
        if new:
            yield Document(f"docstrings/{name.as_posix()}", closed("\n\n".join(new)))


def _documented(node: ast.AST) -> Iterator[ast.AST]:
    """Modules, classes and functions at and below `node`, in the order of the source."""
    if isinstance(node, _DOCUMENTED):
        yield node
    for field in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, field, ()):
            yield from _documented(child)


def tiny_shakespeare() -> Corpus:
    """The 1,115,394 characters of Shakespeare that char-rnn and nanoGPT train on, from a file on this machine.

    Looked for as tinyshakespeare/input.txt in $INTERP_GPT2_DATA and in ./data; a note says so if it is not the published
    text. Raises DataError naming the files that would serve.
    """
    folders = [os.environ.get("INTERP_GPT2_DATA"), "data"]
    places = [Path(folder) / SHAKESPEARE for folder in folders if folder]
    for path in places:
        if path.is_file():
            corpus = text_file(path)
            published = hashlib.sha256(path.read_bytes()).hexdigest() == SHAKESPEARE_SHA256
            notes = () if published else (f"{path} is not the published text: its SHA-256 differs",)
            return Corpus("tiny-shakespeare", corpus.documents, notes)
    raise DataError(
        f"tiny-shakespeare is not on this machine: put its input.txt at {places[-1]}, or set INTERP_GPT2_DATA to a folder that "
        f"holds {SHAKESPEARE}"
    )


def text_file(path: Path) -> Corpus:
    """A UTF-8 text file: one document, or one for each part between <|endoftext|> marks where there are any.

    Line ends become \\n. Raises DataError for a file that is empty, or not UTF-8 text.
    """
    text = read_text(path)
    parts = [part.strip("\n") for part in text.split(SEPARATOR)]
    if len(parts) == 1:
        return Corpus(path.name, (Document(path.name, text),))
    documents = (Document(f"{path.name}#{i}", closed(part)) for i, part in enumerate(parts) if part.strip())
    return Corpus(path.name, _not_none(tuple(documents), path))


def text_folder(path: Path) -> Corpus:
    """Every text file below a folder, a document each; hidden ones are passed over, and a note names those that are not text.

    Raises DataError if there is no text in it.
    """
    documents, left_out = [], []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if not file.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        try:
            documents.append(Document(name.as_posix(), closed(read_text(file))))
        except DataError:
            left_out.append(name.as_posix())
    listed = ", ".join(left_out[:5])[:300] + (", ..." if len(left_out) > 5 else "")
    notes = (f"{len(left_out)} files that are empty or not UTF-8 text were left out: {listed}",) if left_out else ()
    return Corpus(path.resolve().name, _not_none(tuple(documents), path), notes)


def _not_none(documents: tuple[Document, ...], path: Path) -> tuple[Document, ...]:
    if not documents:
        raise DataError(f"there is no text in {path}; give a UTF-8 text file, or a folder of them")
    return documents


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, line ends as \\n. Raises DataError for one that is empty or is no such text."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x} at {error.start}); convert it to UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{path} is a binary file (it has a zero byte); give a text file")
    if not text.strip():
        raise DataError(f"{path} is empty; give a file with text in it")
    return text


def closed(text: str) -> str:
    """A document ends in a blank line, so that the next one does not run on from it."""
    return text.strip("\n") + "\n\n"


def hash_of(documents: Iterable[Document]) -> str:
    """SHA-256 of every name and text, in order."""
    return hashlib.sha256(json.dumps([[document.name, document.text] for document in documents]).encode()).hexdigest()
