"""JSON as we write it, and nothing else: no duplicate keys, no NaN, one object, one rendering."""

import json
from collections.abc import Mapping
from typing import Any

from interp_gpt2.errors import CheckpointError


def render(value: Mapping[str, Any]) -> bytes:
    """Indented JSON in the order of the keys. Raises ValueError for NaN and infinity, which JSON does not have."""
    return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=True) + "\n").encode("ascii")


def parse(data: bytes, where: object) -> dict[str, Any]:
    """The JSON object in `data`. Raises CheckpointError naming `where` for anything that is not exactly one."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CheckpointError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a JSON {type(value).__name__}, not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
