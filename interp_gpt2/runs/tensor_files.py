"""safetensors files, looked at before they are believed.

safetensors refuses overlapping and missing bytes. It accepts duplicate names, headers of 100 MB and hundreds of thousands
of empty tensors, so the header is read here first; every name and shape is known before a byte of the values is touched.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from interp_gpt2.errors import CheckpointError
from interp_gpt2.runs.strict_json import parse

MAX_HEADER = 1 << 20  # GPT-2 XL's header is 60 kB
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F16": 2, "BF16": 2, "I16": 2, "F32": 4, "I32": 4, "F64": 8, "I64": 8}
WEIGHT_DTYPES = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def tensors_to_bytes(tensors: dict[str, Tensor]) -> bytes:
    """A safetensors file with these tensors, from any device."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(on_cpu, metadata={"format": "pt"})  # transformers refuses a file without this note


def header_of_bytes(data: bytes, where: object) -> dict[str, TensorInfo]:
    """Names, dtypes and shapes in a safetensors file. Raises CheckpointError naming `where` if it is not a sound one."""
    length = _header_length(data[:8], len(data), where)
    return _parse_header(data[8 : 8 + length], len(data) - 8 - length, where)


def header_of_file(path: Path) -> dict[str, TensorInfo]:
    """The same, reading the header only."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = _header_length(file.read(8), size, path)
        return _parse_header(file.read(length), size - 8 - length, path)


def tensors_of_bytes(data: bytes, where: object) -> dict[str, Tensor]:
    """The tensors of a file whose header has been looked at. Raises CheckpointError."""
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{where} is not a sound safetensors file: {error}") from error


def tensors_of_file(path: Path) -> dict[str, Tensor]:
    """The same from disk, without a second copy in memory."""
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a sound safetensors file: {error}") from error


def check_weight_dtypes(header: dict[str, TensorInfo], where: object) -> None:
    """Raise CheckpointError naming the first tensor that is not in a floating-point format torch computes in."""
    for name, info in header.items():
        if info.dtype not in WEIGHT_DTYPES:
            raise CheckpointError(f"{where}: tensor {name} is {info.dtype}; weights are {', '.join(WEIGHT_DTYPES)}")


def _header_length(first: bytes, size: int, where: object) -> int:
    length = int.from_bytes(first, "little")
    if len(first) < 8 or 8 + length > size:
        raise CheckpointError(f"{where} is truncated: {size} bytes cannot hold its safetensors header")
    if length > MAX_HEADER:
        raise CheckpointError(f"{where}: its safetensors header has {length:,} bytes; no GPT-2 needs more than {MAX_HEADER:,}")
    return length


def _parse_header(header: bytes, n_data: int, where: object) -> dict[str, TensorInfo]:
    entries = parse(header, f"the header of {where}")
    entries.pop("__metadata__", None)
    found, spans = {}, []
    for name, entry in entries.items():
        info, begin, end = _parse_entry(name, entry, where)
        found[name] = info
        spans.append((begin, end))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise CheckpointError(f"{where}: the tensors in its header overlap or leave holes at byte {at:,}")
        at = end
    if at != n_data:
        raise CheckpointError(f"{where} is truncated or padded: its header describes {at:,} bytes of values, it holds {n_data:,}")
    return found


def _parse_entry(name: str, entry: object, where: object) -> tuple[TensorInfo, int, int]:
    refusal = CheckpointError(f"{where}: its header describes no tensor under {name!r}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise refusal
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES or not isinstance(shape, list) or not isinstance(offsets, list):
        raise refusal
    if len(offsets) != 2 or any(type(n) is not int or n < 0 for n in (*shape, *offsets)):
        raise refusal
    if len(shape) > 8 or offsets[1] - offsets[0] != math.prod(shape) * _BYTES[dtype]:
        raise refusal
    return TensorInfo(dtype, tuple(shape)), *offsets
