"""safetensors files, looked at before they are believed.

safetensors refuses overlapping and missing bytes. It accepts duplicate names, headers of 100 MB and hundreds of thousands
of empty tensors, so the header is read here first; every name and shape is known before a byte of the values is touched.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from interp_gpt2.errors import CheckpointError
from interp_gpt2.runs.strict_json import parse

MAX_HEADER = 1 << 20  # GPT-2 XL's header is 60 kB
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F16": 2, "BF16": 2, "I16": 2, "F32": 4, "I32": 4, "F64": 8, "I64": 8}
_ORDER = ("BOOL", "U8", "I8", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")  # the library's own, from narrow to wide
_NAMES = {torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16",
          torch.bfloat16: "BF16", torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}  # fmt: skip
WEIGHT_DTYPES = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def tensor_chunks(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """A safetensors file with these tensors, from any device, in pieces: its header, then each tensor.

    Byte for byte what the library writes. It copies every value twice on the way, and keeps all other threads waiting
    meanwhile; these pieces are the tensors' own memory wherever they lie contiguously on the CPU.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    infos = {name: TensorInfo(_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in on_cpu.items()}
    bodies = [memoryview(on_cpu[name].reshape(-1).view(torch.uint8).numpy()) for name in _file_order(infos)]
    return [header_bytes(infos), *bodies]


def file_size(infos: Mapping[str, TensorInfo]) -> int:
    """Bytes of the safetensors file with tensors of these dtypes and shapes."""
    return len(header_bytes(infos)) + sum(math.prod(info.shape) * _BYTES[info.dtype] for info in infos.values())


def _file_order(infos: Mapping[str, TensorInfo]) -> list[str]:
    """The widest dtypes first, so that every tensor is aligned; by name among those of one dtype."""
    return sorted(infos, key=lambda name: (-_ORDER.index(infos[name].dtype), name))


def header_bytes(infos: Mapping[str, TensorInfo]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without this note
    end = 0
    for name in _file_order(infos):
        begin, end = end, end + math.prod(infos[name].shape) * _BYTES[infos[name].dtype]
        entries[name] = {"dtype": infos[name].dtype, "shape": infos[name].shape, "data_offsets": (begin, end)}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


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
