"""What a sweep keeps: a file for each analysis of each checkpoint, found again by all that its rows were computed from.

The checkpoint's hash, the analysis's fingerprint (its class, source and every field: its settings and its data), the code
that turns a checkpoint into numbers, and torch's version.
"""

import ast
import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from interp_gpt2.analysis.rows import ROW_KEYS, Analysis, Row
from interp_gpt2.errors import AnalysisError, CheckpointWriteError
from interp_gpt2.files import written_atomically

_READERS = ("checkpoint.py", "places.py", "pretrained.py", "tensor_files.py")
_FOLLOWED = ("interp_gpt2.analysis.", "interp_gpt2.causal.", "interp_gpt2.prompts.")  # rooms whose imports are looked at


@dataclass(frozen=True)
class Result:
    """The file that keeps one analysis's rows at one checkpoint, and what they must have been computed from."""

    path: Path
    key: dict[str, Any]

    def read(self) -> list[Row] | None:
        """The rows; None when there are none, or when the file is not as it was written."""
        try:
            stored = json.loads(self.path.read_bytes())
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None
        if not isinstance(stored, dict) or stored.get("key") != self.key or stored.get("sha256") != _digest(stored.get("rows")):
            return None
        return stored["rows"]

    def write(self, rows: list[Row]) -> None:
        """Whole, or not at all. Raises CheckpointWriteError naming the file and what is free."""
        content = json.dumps({"key": self.key, "sha256": _digest(rows), "rows": rows}).encode()
        try:
            with written_atomically(self.path) as file:
                file.write(content)
        except OSError as error:
            raise CheckpointWriteError(
                f"{self.path} could not be written: {error.strerror or error} ({len(content):,} bytes needed, "
                f"{_free(self.path)} free)"
            ) from error


def result_of(folder: Path, step: int, checkpoint: str, analysis: Analysis, fingerprint: str) -> Result:
    """Where `analysis` of the checkpoint with this hash is kept, under `folder`."""
    of = {"step": step, "checkpoint": checkpoint, "analysis": analysis.name, "fingerprint": fingerprint}
    key = of | {"code": code_hash(type(analysis).__module__), "torch": str(torch.__version__)}
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in analysis.name)[:60]
    return Result(folder / f"{name}-{fingerprint[:12]}" / f"step-{step:08d}-{_digest(key)[:12]}.json", key)


def plain_row(row: Row, analysis: Analysis) -> Row:
    """A row of Python's own numbers and strings, without nulls, in the order of the columns."""
    if unknown := set(row) - set(ROW_KEYS):
        raise AnalysisError(f"{analysis.name} gives rows with unknown keys {sorted(unknown)}; a row has {', '.join(ROW_KEYS)}")
    values = {key: row[key].item() if hasattr(row[key], "item") else row[key] for key in ROW_KEYS if key in row}
    return {key: value for key, value in values.items() if value is not None}


@lru_cache(maxsize=256)
def code_hash(module: str) -> str:
    """SHA-256 of the sources that can turn a checkpoint into the numbers of an analysis in `module`.

    The model and what reads it from disk, and of other analyses those that `module` imports, directly or not, as well as the
    modules beside it where it is somebody else's: after an edit to one of these, stored rows are stale; after an edit to
    another analysis, they are not.
    """
    package = Path(__file__).parents[1]
    files = {*package.glob("*.py"), *(package / "convert").glob("*.py")}
    files |= {path for path in (package / "runs" / name for name in _READERS) if path.is_file()}
    seen, ahead = set(), [_file(module)]
    while ahead:
        path = ahead.pop()
        if path is not None and path not in seen and path.is_file():
            seen.add(path)
            names = _imports(path)
            ahead += [_file(name) for name in names if name.startswith(_FOLLOWED)]
            if package not in path.parents:  # somebody else's, and so are the modules beside it
                ahead += [path.with_name(f"{name.rpartition('.')[2]}.py") for name in names]
    digest = hashlib.sha256()
    for path in sorted(files | seen):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _file(module: str) -> Path | None:
    """The file of one of this library's modules, or of another that is imported."""
    path = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")
    if path.is_file():
        return path
    found = getattr(sys.modules.get(module), "__file__", None)
    return Path(found) if found and Path(found).is_file() else None


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _free(path: Path) -> str:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return f"{shutil.disk_usage(path).free:,}"
    except OSError:
        return "unknown"
