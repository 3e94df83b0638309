"""manifest.json: what a checkpoint directory must hold, to the byte.

Neither safetensors nor torch.save notices a flipped bit (1,490 of 1,500 load silently wrong), so each file's size and
SHA-256 stand here, and the manifest ends with its own SHA-256: it vouches for every byte of the directory, itself included.
"""

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from interp_gpt2.errors import CheckpointError
from interp_gpt2.runs.strict_json import parse, render

FORMAT = "interp_gpt2 checkpoint 1"
MANIFEST = "manifest.json"
CONFIG = "config.json"
HF_WEIGHTS = "model.safetensors"
NATIVE_WEIGHTS = "interp_gpt2.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
OPTIMIZER = "optimizer.safetensors"
TRAINER = "trainer.json"
RESUME_FILES = (OPTIMIZER, TRAINER)
KNOWN_FILES = frozenset({CONFIG, HF_WEIGHTS, NATIVE_WEIGHTS, *TOKENIZER_FILES, *RESUME_FILES})
_SHARD = re.compile(r"optimizer-\d{5}-of-\d{5}\.safetensors")  # the optimizer's state as several processes write it

_MAX_MANIFEST = 1 << 16
_STEP_NAME = re.compile(r"step-(\d{8,})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def step_name(step: int) -> str:
    """`step-00001000`: sorts by step in any listing."""
    return f"step-{step:08d}"


def step_of_name(name: str) -> int | None:
    """The step a directory is named after, or None if it is not named after one."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match and step_name(int(match[1])) == name else None


def shard_name(number: int, n: int) -> str:
    """`optimizer-00001-of-00004.safetensors`: one of the files that stand in the place of one with the optimizer's state."""
    return f"optimizer-{number:05d}-of-{n:05d}.safetensors"


def is_resume_file(name: str) -> bool:
    """Is it of use to training alone?"""
    return name in RESUME_FILES or _SHARD.fullmatch(name) is not None


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of one file."""

    bytes: int
    sha256: str


def entry_of(data: bytes) -> FileEntry:
    return FileEntry(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """`step` and `tokens_seen` are None for a model saved outside a run. `dropped` names resume files that were taken
    away to save space, and of which a killed process may have left one behind; nobody reads those."""

    step: int | None
    tokens_seen: int | None
    files: Mapping[str, FileEntry]
    dropped: tuple[str, ...] = ()

    @property
    def weights(self) -> str:
        """Name of the file with the weights."""
        return NATIVE_WEIGHTS if NATIVE_WEIGHTS in self.files else HF_WEIGHTS

    @property
    def can_resume(self) -> bool:
        return TRAINER in self.files and bool(self.optimizer_files)

    @property
    def optimizer_files(self) -> list[str]:
        """The file with the optimizer's state, or those that have it in shards."""
        return sorted(name for name in self.files if is_resume_file(name) and name != TRAINER)

    @property
    def model_sha256(self) -> str:
        """One hash for the model: of its config and weights. The same before and after resume files are dropped."""
        return hashlib.sha256("".join(self.files[n].sha256 for n in (CONFIG, self.weights)).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        content: dict[str, Any] = {
            "format": FORMAT,
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "files": {name: asdict(self.files[name]) for name in sorted(self.files)},
        }
        if self.dropped:
            content["dropped"] = sorted(self.dropped)
        return render(content | {"sha256": hashlib.sha256(render(content)).hexdigest()})


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint directory, checked against its own SHA-256 and the directory's name.

    Raises CheckpointError: no directory, no manifest, an altered one, or one of another step.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} does not exist or is not a directory")
    path = directory / MANIFEST
    with plain_file(path) as file:
        manifest = _parse_manifest(file.read(_MAX_MANIFEST), path)
    named = step_of_name(directory.name)
    if named is not None and manifest.step != named:
        raise CheckpointError(f"{path} is of step {manifest.step}, not of the step its directory is named after")
    return manifest


def _parse_manifest(data: bytes, path: Path) -> Manifest:
    content = parse(data, path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a manifest of format {FORMAT!r}, but {content.get('format')!r}")
    try:
        manifest = Manifest(
            content["step"],
            content["tokens_seen"],
            {name: FileEntry(**entry) for name, entry in content["files"].items()},
            tuple(content.get("dropped", ())),
        )
        whole = manifest.to_bytes() == data  # every byte: order, spaces, and the SHA-256 at the end
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} has been altered: it does not have the fields of a manifest") from error
    if not whole:
        raise CheckpointError(f"{path} has been altered: its own SHA-256 does not match its content")
    _check_content(manifest, path)
    return manifest


def _check_content(manifest: Manifest, path: Path) -> None:
    """A manifest can be consistent and still hostile: names that are paths, sizes that are not numbers."""
    for name in (*manifest.files, *manifest.dropped):
        if not isinstance(name, str) or not (name in KNOWN_FILES or is_resume_file(name)):  # so no name is ever a path
            raise CheckpointError(f"{path} names {name!r}, which is no file of a checkpoint")
    for name, entry in manifest.files.items():
        if type(entry.bytes) is not int or entry.bytes < 0:
            raise CheckpointError(f"{path}: the size of {name} is {entry.bytes!r}")
        if not isinstance(entry.sha256, str) or not _SHA256.fullmatch(entry.sha256):
            raise CheckpointError(f"{path}: the SHA-256 of {name} is {entry.sha256!r}")
    for name, value in (("step", manifest.step), ("tokens_seen", manifest.tokens_seen)):
        if value is not None and (type(value) is not int or value < 0):
            raise CheckpointError(f"{path}: {name} is {value!r}")
    if CONFIG not in manifest.files or (HF_WEIGHTS in manifest.files) == (NATIVE_WEIGHTS in manifest.files):
        raise CheckpointError(f"{path} must name {CONFIG} and either {HF_WEIGHTS} or {NATIVE_WEIGHTS}")
    if any(not is_resume_file(name) or name in manifest.files for name in manifest.dropped):
        raise CheckpointError(f"{path} drops files that it also names, or that no resume needs")


def read_one(directory: Path, name: str) -> bytes:
    """One file of a checkpoint, checked against the manifest; the others are not looked at. Raises CheckpointError."""
    manifest = read_manifest(directory)
    if name not in manifest.files:
        raise CheckpointError(f"{directory / MANIFEST} does not name {name}")
    return check_file(directory / name, manifest.files[name], wanted=True, verify=True)


def read_verified(directory: Path, wanted: Collection[str] = (), verify: bool = True) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the bytes of the `wanted` files that it names, after checking every file of the directory.

    What is hashed is what is returned: no file is read twice. `verify=False` checks names and sizes only.
    Raises CheckpointError naming the file that is missing, altered, truncated, extra, or not a plain file.
    """
    manifest = read_manifest(directory)
    try:
        return manifest, _check_files(directory, manifest, wanted, verify)
    except CheckpointError:
        # A run that is training drops resume files from older checkpoints: it writes the new manifest first.
        again = read_manifest(directory)
        if again == manifest:
            raise
        return again, _check_files(directory, again, wanted, verify)


def _check_files(directory: Path, manifest: Manifest, wanted: Collection[str], verify: bool) -> dict[str, bytes]:
    # Hidden files are left alone: desktops and network file systems make them, and no loader reads them.
    found = {name for name in os.listdir(directory) if not name.startswith(".")}
    for name in sorted(found - {MANIFEST, *manifest.files, *manifest.dropped}):
        raise CheckpointError(f"{directory / name} is not named in the manifest; move it elsewhere")
    checked = {name: check_file(directory / name, entry, name in wanted, verify) for name, entry in manifest.files.items()}
    return {name: data for name, data in checked.items() if name in wanted}


def check_file(path: Path, entry: FileEntry, wanted: bool, verify: bool) -> bytes:
    """The file's bytes if they are wanted, else none: an optimizer's state need not fit in memory to be checked.

    Raises CheckpointError naming the file if it is missing, no plain file, of another size or, with `verify`, altered.
    """
    with plain_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.bytes:
            what = "truncated" if size < entry.bytes else "longer than it was written"
            raise CheckpointError(f"{path} is {what}: {size:,} bytes, the manifest says {entry.bytes:,}")
        data = file.read() if wanted else b""
        if verify:
            sha256 = hashlib.sha256(data) if wanted else hashlib.file_digest(file, "sha256")
            if sha256.hexdigest() != entry.sha256:
                raise CheckpointError(f"{path} has been altered: its SHA-256 is not the manifest's")
        return data


@contextmanager
def plain_file(path: Path) -> Iterator[BinaryIO]:
    """A file opened for reading, never through a link. Raises CheckpointError if it is missing, unreadable or no file."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for somebody to write into it.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CheckpointError(f"{path} is not a plain file")
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read as a plain file: {error.strerror}") from error
