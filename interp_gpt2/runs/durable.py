"""Writing that survives kill -9, a full disk and a power cut: a directory appears whole or not at all.

Files are written under a temporary sibling, each forced to disk, then the directory, then the rename that makes it
visible, then its parent. A reader can never see half of one.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from interp_gpt2.errors import CheckpointWriteError
from interp_gpt2.runs.manifest import FileEntry

TEMPORARY = ".tmp-"
_PIECE = 1 << 20


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> FileEntry:
    """A new file with these bytes, on disk when this returns; its size and SHA-256. Raises OSError."""
    sha256, n_bytes = hashlib.sha256(), 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for chunk in chunks:
            n_bytes += write_hashed(fd, chunk, sha256)
        os.fsync(fd)
    finally:
        os.close(fd)
    return FileEntry(n_bytes, sha256.hexdigest())


def write_hashed(fd: int, chunk: bytes | memoryview, sha256: "hashlib._Hash") -> int:
    """Append to an open file and to its hash; how many bytes. Raises OSError."""
    whole = memoryview(chunk)
    for start in range(0, len(whole), _PIECE):  # small enough to be in the processor's cache for both
        rest = whole[start : start + _PIECE]
        sha256.update(rest)
        while rest:
            rest = rest[os.write(fd, rest) :]
    return len(whole)


def move_file(source: Path, target: Path) -> FileEntry:
    """A file that another library has written, under another name of the same disk; its size and SHA-256. Raises OSError."""
    sync_file(source)
    os.rename(source, target)
    with target.open("rb") as file:
        return FileEntry(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def sync_file(path: Path) -> None:
    """Force to disk what another library wrote. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Force to disk the names in a directory. Raises OSError."""
    if os.name != "nt":  # Windows cannot open a directory, and writes its names at once
        sync_file(path)


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `target` when the block ends, and leaves no trace when it raises.

    Never replaces a directory that holds anything, also if somebody else makes it meanwhile. Raises OSError.
    """
    if target.is_dir() and any(target.iterdir()):
        raise FileExistsError(None, "it already exists and is not empty", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        yield temporary
        sync_directory(temporary)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(target.parent)


def remove_directory(path: Path) -> None:
    """Take a directory out of sight in one step, then delete it: killed half-way, it leaves no half directory."""
    hidden = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    os.rename(path, hidden)
    shutil.rmtree(hidden)


def sweep_leftovers(directory: Path) -> list[Path]:
    """Delete what killed writers left in `directory`, and name it. Only for who holds the directory's lock."""
    patterns = (f"{TEMPORARY}*", ".*.tmp", "step-*/.*.tmp")  # the latter two from files written_atomically
    leftovers = [path for pattern in patterns for path in directory.glob(pattern)]
    for path in leftovers:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return leftovers


@contextmanager
def write_errors_named(path: Path, n_bytes: int) -> Iterator[None]:
    """Turn an OSError inside the block into a CheckpointWriteError naming the path and the bytes needed and free."""
    try:
        yield
    except OSError as error:
        raise CheckpointWriteError(
            f"{path} could not be written: {error.strerror or error} ({n_bytes:,} bytes needed, {free_bytes(path)} free); "
            "earlier checkpoints are untouched"
        ) from error


def free_bytes(path: Path) -> str:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return f"{shutil.disk_usage(path).free:,}"
    except OSError:
        return "unknown"
