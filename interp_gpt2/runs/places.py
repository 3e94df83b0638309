"""Where one model of a foreign run lies, and how it is told from another: a directory, a file of nanoGPT's, a step on the Hub."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from interp_gpt2.config import ActFn, GPT2Config
from interp_gpt2.convert.huggingface import model_of_state
from interp_gpt2.convert.nanogpt import load_nanogpt, nanogpt_header
from interp_gpt2.errors import CheckpointError, TokenizerError
from interp_gpt2.runs.hub import HubStep
from interp_gpt2.runs.manifest import CONFIG, TOKENIZER_FILES, read_manifest
from interp_gpt2.runs.pretrained import config_of_directory, is_ours, load_directory, weight_files

if TYPE_CHECKING:
    from interp_gpt2.model import GPT2
    from interp_gpt2.tokenizers import Tokenizer

_TOKENIZER_NAMES = (TOKENIZER_FILES[0], "vocab.json")
_GPT2_ROWS = (50257, 50304)  # the second with nanoGPT's padding


class Place(Protocol):
    """One model. Each method raises CheckpointError or ConversionError naming the file that is not as it should be."""

    def directory(self) -> Path: ...

    def model(self) -> "GPT2": ...

    def config(self) -> GPT2Config: ...

    def sha256(self) -> str: ...

    def stamp(self) -> str: ...  # another once the files are replaced; nothing is read

    def tokenizer(self) -> "Tokenizer": ...

    def tokenizer_sha256(self) -> str | None: ...


@dataclass(frozen=True)
class Directory:
    """Any model directory that `GPT2.from_pretrained` reads: Hugging Face's, or one of ours."""

    path: Path

    def directory(self) -> Path:
        return self.path

    def model(self) -> "GPT2":
        return model_of_state(*load_directory(self.path))

    def config(self) -> GPT2Config:
        return config_of_directory(self.path)

    def sha256(self) -> str:
        """Of the config and the weights, as `Run.checkpoint_hash` has it."""
        if is_ours(self.path):
            return read_manifest(self.path).model_sha256
        digests = [sha256_of_file(path) for path in (self.path / CONFIG, *weight_files(self.path))]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def stamp(self) -> str:
        if is_ours(self.path):
            return self.sha256()
        return _stamp(self.path / CONFIG, *weight_files(self.path))

    def tokenizer(self) -> "Tokenizer":
        from interp_gpt2.tokenizers import load_tokenizer

        return load_tokenizer(self.path)

    def tokenizer_sha256(self) -> str | None:
        return _tokenizer_sha256(self.path)


@dataclass(frozen=True)
class NanoGPTFile:
    """A checkpoint that nanoGPT's train.py has written."""

    path: Path
    d_vocab: int | None = None
    act_fn: ActFn = "gelu"

    def directory(self) -> Path:
        return self.path.parent

    def model(self) -> "GPT2":
        return load_nanogpt(self.path, self.d_vocab, self.act_fn)

    def config(self) -> GPT2Config:
        return nanogpt_header(self.path, self.d_vocab, self.act_fn).config

    def sha256(self) -> str:
        return hashlib.sha256(f"{sha256_of_file(self.path)} {self.d_vocab} {self.act_fn}".encode()).hexdigest()

    def stamp(self) -> str:
        return _stamp(self.path)

    def tokenizer(self) -> "Tokenizer":
        """GPT-2's, where the vocabulary has its size: the file does not say."""
        from interp_gpt2.tokenizers import tokenizer_named

        if self.config().d_vocab not in _GPT2_ROWS:
            raise TokenizerError(
                f"{self.path} does not say what its {self.config().d_vocab} tokens stand for: nanoGPT keeps that in "
                "data/<dataset>/meta.pkl, a program that is not run here; pass tokenizer="
            )
        return tokenizer_named("gpt2")

    def tokenizer_sha256(self) -> None:
        return None


@dataclass(frozen=True)
class OnHub:
    """A step of a repository on the Hub, whose files come from the local cache, or to it when they are asked for."""

    at: HubStep

    def directory(self) -> Path:
        return self.at.directory()

    def model(self) -> "GPT2":
        return model_of_state(*load_directory(self.directory()))

    def config(self) -> GPT2Config:
        return config_of_directory(self.at.config_directory())

    def sha256(self) -> str:
        return self.at.sha256

    def stamp(self) -> str:
        return self.at.sha256

    def tokenizer(self) -> "Tokenizer":
        from interp_gpt2.tokenizers import load_tokenizer

        return load_tokenizer(self.at.tokenizer_directory())

    def tokenizer_sha256(self) -> str | None:
        """Of what is in the cache: nothing is downloaded to be compared."""
        return None if self.at.cached is None else _tokenizer_sha256(self.at.cached)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, computed again when its size or its time of change are others. Raises CheckpointError."""
    try:
        stat = path.stat()
        return _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(*paths: Path) -> str:
    """Sizes and times of change. Raises CheckpointError."""
    try:
        return " ".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in (path.stat() for path in paths))
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error


def _tokenizer_sha256(directory: Path) -> str | None:
    found = next((directory / name for name in _TOKENIZER_NAMES if (directory / name).is_file()), None)
    return None if found is None else sha256_of_file(found)
