"""What torch.save has written, read without running any of it.

A pickle is a program. torch's restricted unpickler (`weights_only=True`) runs only the few calls that rebuild tensors; what
it leaves open is closed here: archives that unpack to more than they weigh, tar files, tensors that claim more values than
are stored (a stride of 0 makes a terabyte of one number), and tensors of other kinds than a weight.
"""

import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # the name of an error; nothing here unpickles except torch.load(weights_only=True)
from typing import Any

import torch
from torch import Tensor

from interp_gpt2.errors import CheckpointError

# What torch.load raises for files that are damaged, made by hand or refused.
_REFUSALS = (
    UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError,
    NotImplementedError, AssertionError, OverflowError, MemoryError, RecursionError, ImportError,
)  # fmt: skip


def read_archive(path: Path, mapped: bool = False) -> Any:
    """Tensors, numbers, strings and containers of them, as torch.save has written them since 2020: in a zip file.

    On the CPU; `mapped` leaves values on the disk until they are looked at. Raises CheckpointError for anything else, before
    a byte of it is unpacked.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path.name} is not a zip file, as torch.save writes them; older and other formats are not read")
    return _read(path, mapped)


def read_old_or_archive(path: Path) -> Any:
    """The same, and also the bare pickles that torch.save wrote before 2020, as in old model directories."""
    if not zipfile.is_zipfile(path) and tarfile.is_tarfile(path):
        raise CheckpointError(f"{path.name} is a tar file, which torch has not written since 2017; it is not read")
    return _read(path)


def _read(path: Path, mapped: bool = False) -> Any:
    if zipfile.is_zipfile(path):
        _check_members(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _REFUSALS as error:
        raise CheckpointError(f"{path.name} is damaged, or holds more than tensors: {_first_line(error)}") from error


def _check_members(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise CheckpointError(f"{path.name} is not a sound zip file: {error}") from error
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > path.stat().st_size:
        raise CheckpointError(f"{path.name} is compressed, which torch.save never does; it is not read")
    if len({member.filename for member in members}) != len(members):
        raise CheckpointError(f"{path.name} holds two members of one name")


def tensors_by_name(value: Any, where: str) -> dict[str, Tensor]:
    """`value` if it is a dictionary of plain tensors by name, each with all its values in memory.

    Raises CheckpointError naming `where` and what is not one.
    """
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{where} is not a dictionary of tensors by name, but a {type(value).__name__}")
    for name, tensor in value.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{where} is not a dictionary of tensors by name: {name!r} is no name")
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            raise CheckpointError(f"{where} is not a dictionary of tensors by name: {name} is a {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"{where}: {name} is not a plain dense tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{where}: {name} has shape {tuple(tensor.shape)}, more than the values that are stored of it")
    return {name: tensor.detach() for name, tensor in value.items()}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
