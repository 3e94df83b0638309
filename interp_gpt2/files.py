"""Where files that can be made again are kept, and how a file is written so that it is whole or absent."""

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def user_cache_dir() -> Path:
    """Folder for what can be collected or downloaded again, by the platform's own rule; it may not exist yet.

    $INTERP_GPT2_CACHE when that is set, else `interp_gpt2` under $XDG_CACHE_HOME or ~/.cache (Linux), ~/Library/Caches
    (macOS) or %LOCALAPPDATA% (Windows).
    """
    if chosen := os.environ.get("INTERP_GPT2_CACHE"):
        return Path(chosen)
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(base) / "interp_gpt2"


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends, and leaves no trace when it raises.

    Readers see the old file or the whole new one, also when the process is killed or the machine loses power.
    Raises OSError when the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(partial)):
            error.filename = str(path)  # a full disk does not say what it is too full for
        raise
