"""Files that would run code when unpickled run nothing, whichever way they come in, and what is wrong with them is said."""

import contextlib
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.convert.nanogpt import load_nanogpt, load_state
from interp_gpt2.errors import CheckpointError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.pretrained import load_directory


class Call:
    """Unpickles as `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.function, self.arguments) if self.state is None else (self.function, self.arguments, self.state)


def touch(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


def zipped(path: Path, pickled: bytes) -> None:
    """An archive as torch.save lays it out, with this pickle in it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def old_tar(path: Path, canary: Path) -> None:
    """What torch wrote before 2017: pickles in a tar file."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(Call(eval, touch(canary)), protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def zip_bomb(path: Path, canary: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/data/0", b"\0" * 20_000_000)


def overlapping_zip(path: Path, canary: Path) -> None:
    """Many members that are the same bytes of the file: unpacked it is larger than on disk, though nothing is compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/data/0", b"\0" * 100_000)
        entry = archive.infolist()[-1]
        for index in range(1, 50):
            copy = zipfile.ZipInfo(entry.filename)
            for field in ("CRC", "compress_size", "file_size", "header_offset"):
                setattr(copy, field, getattr(entry, field))
            copy.filename = copy.orig_filename = f"archive/data/{index}"
            archive.filelist.append(copy)


def numpy_objects(path: Path, canary: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Call(eval, touch(canary))], dtype=object), allow_pickle=True)


def inside_a_tensor(path: Path, canary: Path) -> None:
    """The call is an argument of the function that rebuilds a tensor."""
    storage = Call(eval, touch(canary))
    torch.save({"transformer.wte.weight": Call(torch._utils._rebuild_tensor_v2, storage, 0, (1,), (1,), False, {})}, path)


MALICIOUS: dict[str, Callable[[Path, Path], Any]] = {
    "os.system": lambda path, canary: torch.save({"model": Call(os.system, f"touch {canary}")}, path),
    "eval": lambda path, canary: torch.save({"wte.weight": Call(eval, touch(canary))}, path),
    "exec": lambda path, canary: torch.save(Call(exec, touch(canary)), path),
    "open": lambda path, canary: torch.save([Call(open, str(canary), "w")], path),
    "a chain of getattr": lambda path, canary: zipped(
        path,
        b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(S'touch " + str(canary).encode() + b"'\ntR.",
    ),
    "the import of a module": lambda path, canary: zipped(path, b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."),
    "the instantiation of a class": lambda path, canary: zipped(path, b"(S'touch " + str(canary).encode() + b"'\nios\nsystem\n."),
    "a call within the arguments of a call": lambda path, canary: torch.save(
        {"model": Call(dict, [("a", Call(eval, touch(canary)))])}, path
    ),
    "the state of an allowed class": lambda path, canary: torch.save(
        Call(torch.nn.Parameter, torch.zeros(1), state=Call(eval, touch(canary))), path
    ),
    "a call in the place of a storage": inside_a_tensor,
    "an optimizer's state": lambda path, canary: torch.save(
        {"model": {}, "model_args": {}, "optimizer": Call(eval, touch(canary))}, path
    ),
    "the format of before 2020": lambda path, canary: torch.save(
        Call(eval, touch(canary)), path, _use_new_zipfile_serialization=False
    ),
    "a bare pickle": lambda path, canary: path.write_bytes(pickle.dumps(Call(eval, touch(canary)), protocol=2)),
    "the tar format": old_tar,
    "objects of numpy": numpy_objects,
    "a zip bomb": zip_bomb,
    "a zip file whose members overlap": overlapping_zip,
}


def in_a_directory(path: Path, model: GPT2) -> None:
    to_huggingface(model).config.save_pretrained(path.parent)
    load_directory(path.rename(path.with_name("pytorch_model.bin")).parent)


IMPORTERS: dict[str, Callable[[Path, GPT2], Any]] = {
    "nanoGPT's checkpoint": lambda path, model: load_nanogpt(path),
    "a bare state dict": lambda path, model: load_state(path),
    "a model directory": in_a_directory,
}


@pytest.mark.parametrize("importer", IMPORTERS)
@pytest.mark.parametrize("kind", MALICIOUS)
def test_nothing_in_a_malicious_file_runs(kind: str, importer: str, tmp_path: Path, model: GPT2) -> None:
    canary, path = tmp_path / "canary", tmp_path / "ckpt.pt"
    MALICIOUS[kind](path, canary)
    with pytest.raises(CheckpointError, match=r"ckpt\.pt|pytorch_model\.bin"):
        IMPORTERS[importer](path, model)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["os.system", "eval", "exec", "a chain of getattr", "the import of a module", "a bare pickle"])
def test_the_same_files_do_run_when_unpickled_without_care(kind: str, tmp_path: Path) -> None:
    """Or the test above would prove nothing."""
    canary, path = tmp_path / "canary", tmp_path / "ckpt.pt"
    MALICIOUS[kind](path, canary)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    else:
        data = path.read_bytes()
    pickle.loads(data)
    assert canary.exists()


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(1).expand(10**6, 10**6), r"a has shape \(1000000, 1000000\), more than the values that are stored"),
        (torch.zeros(3).to_sparse(), "a is not a plain dense tensor"),
        (torch.zeros(3, device="meta"), "a is not a plain dense tensor"),
        (3.0, "a is a float"),
    ],
)
def test_what_only_looks_like_a_weight_is_refused(tensor: Any, said: str, tmp_path: Path) -> None:
    torch.save({"a": tensor}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=said):
        load_state(tmp_path / "model.pt")


def test_tensors_that_share_their_values_are_read(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    torch.save({"whole": whole, "part": whole[1:], "turned": whole.T, "weight": torch.nn.Parameter(whole)}, tmp_path / "model.pt")
    read = load_state(tmp_path / "model.pt")
    assert torch.equal(read["turned"], whole.T)
    assert torch.equal(read["part"], whole[1:])
    assert not read["weight"].requires_grad


def test_60_damaged_archives_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(100.0), "other": torch.zeros(3, 4)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    draw = torch.Generator().manual_seed(0)
    for index in range(60):
        at, byte = (int(torch.randint(high, (1,), generator=draw)) for high in (len(whole), 256))
        data = whole[:at] if index % 3 == 0 else whole[:at] + bytes([byte]) + whole[at + 1 :]
        (tmp_path / "damaged.pt").write_bytes(data)
        with contextlib.suppress(CheckpointError):
            load_state(tmp_path / "damaged.pt")
