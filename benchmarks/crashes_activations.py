"""Trials of activation stores: writers killed, bits flipped, read and written at the same time, a full disk."""

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import torch

from interp_gpt2.activations.creating import Recording, create_store
from interp_gpt2.activations.record import MANIFEST
from interp_gpt2.activations.store import ActivationStore
from interp_gpt2.activations.texts import Texts
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError, CheckpointWriteError, RunError, StoreError
from interp_gpt2.model import GPT2

FORK = get_context("fork")
SHAPE = GPT2Config(n_layers=2, n_heads=2, d_model=64, d_vocab=64, n_ctx=32)
RECORDING = Recording(["*resid_post", "*mlp.post"], batch_size=4, shard_bytes=200_000)  # 4 files of up to 65 kB a shard


def texts() -> Texts:
    return Texts.of(torch.randint(0, 64, (128, 32), generator=torch.Generator().manual_seed(0)))


def write(directory: Path) -> ActivationStore:
    torch.set_num_threads(1)
    return create_store(directory, GPT2(SHAPE).eval(), texts(), RECORDING)


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def killed_after(seconds: float, directory: Path) -> bool:
    """Start a writer and kill -9 it; whether it left a file that it had not finished or not entered."""
    writer = FORK.Process(target=write, args=(directory,))
    writer.start()
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    if not (directory / MANIFEST).is_file():
        return any(directory.glob("*")) if directory.is_dir() else False
    named = set(ActivationStore(directory, partial=True).record.entries())
    return any(name not in named and name != MANIFEST for name in contents(directory))


def store_kills(folder: Path, n: int = 200) -> str:
    """Writers of activation stores, killed -9 at random moments and begun again."""
    whole = write(folder / "whole")
    expected, rows = contents(whole.path), {name: whole[name][:] for name in whole.hook_points}
    draw, inside, finished, trial = random.Random(0), 0, 0, 0
    for _ in range(n):
        directory = folder / f"killed-{trial}"
        inside += killed_after(draw.uniform(0.01, 0.25), directory)
        if not (directory / MANIFEST).is_file():
            continue
        store = ActivationStore(directory, partial=True)
        assert store.damage() == [], "half a shard in sight"
        for name, values in rows.items() if store.record.shards_done else ():
            assert torch.equal(store[name][:], values[: len(store[name])])
        if store.complete:
            assert contents(directory) == expected, "other bytes"
            finished, trial = finished + 1, trial + 1
            shutil.rmtree(directory)
    write(folder / f"killed-{trial}")
    assert contents(folder / f"killed-{trial}") == expected
    return (
        f"{n} kills, {inside} of them with a file begun or not yet entered: readers saw whole shards only; {finished + 1} stores "
        "finished by those that went on, each with the bytes of one that was never interrupted"
    )


def store_flips(folder: Path, n: int = 1000) -> str:
    """A flipped bit anywhere in a store, and truncations."""
    store, draw = write(folder / "store"), random.Random(0)
    files = [path for path in store.path.rglob("*") if path.is_file() and path.name != ".lock"]
    found = {"flip": 0, "truncation": 0}
    for kind, trials in (("flip", n), ("truncation", n // 5)):
        for _ in range(trials):
            path = draw.choices(files, [path.stat().st_size for path in files])[0] if draw.random() < 0.5 else draw.choice(files)
            before = path.read_bytes()
            data = bytearray(before)
            if kind == "flip":
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            else:
                del data[draw.randrange(len(data)) :]
            path.write_bytes(data)
            try:
                said = ActivationStore(store.path).damage()
            except (CheckpointError, StoreError) as error:
                said = [str(error)]
            found[kind] += len(said) == 1 and path.name in said[0]
            path.write_bytes(before)
    assert found == {"flip": n, "truncation": n // 5}, found
    return f"{n:,} flipped bits and {n // 5} truncations: `cache verify` names the file each time, and no other"


def store_readers(folder: Path, n: int = 1000) -> str:
    """Readers and a second writer beside the first."""
    expected = write(folder / "whole")["mlp.post", 1][:]
    reads = torn = refused = writers = 0
    while reads < n:
        directory = folder / f"{writers}"
        writer = FORK.Process(target=write, args=(directory,))
        writer.start()
        writers += 1
        tried = False
        while writer.is_alive() and reads < n:
            with suppress(StoreError):  # no manifest yet
                rows = ActivationStore(directory, partial=True)["mlp.post", 1]
                if rows.shards:
                    reads += 1
                    torn += not torch.equal(rows[:], expected[: len(rows)])
                    if not tried:
                        tried = True
                        try:
                            write(directory)
                        except RunError as error:
                            refused += f"process {writer.pid}" in str(error)
        writer.join()
        shutil.rmtree(directory)
    assert torn == 0
    return f"{n:,} reads beside {writers} writers: 0 torn; {refused} second writers refused, naming the first"


def store_full_disk(folder: Path, n: int = 10) -> str:
    """A tmpfs that fills up while a store is written to it, and is enlarged."""
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], capture_output=True).returncode:
        return "left out: this user may not mount a tmpfs"
    expected, refused, draw = contents(write(folder / "whole").path), 0, random.Random(0)
    try:
        for trial in range(n):
            directory = disk / f"{trial}"
            (disk / "filler").write_bytes(bytes(draw.randrange(3_500_000, 8_000_000)))
            try:
                with_preflight_blind(directory)
            except CheckpointWriteError as error:
                refused += "No space left on device" in str(error)
            if (directory / MANIFEST).is_file():
                assert ActivationStore(directory, partial=True).damage() == []
            assert not list(directory.rglob("*.tmp"))
            (disk / "filler").unlink()
            write(directory)
            assert contents(directory) == expected
            shutil.rmtree(directory)
        (disk / "filler").write_bytes(bytes(7_000_000))
        said = ""
        try:
            write(disk / "never")
        except CheckpointWriteError as error:
            said = str(error)
        assert "are free; store fewer" in said
        return (
            f"{refused} of {n} writers say 'No space left on device', what was finished verifies, and with room the same command "
            "ends with the same bytes; what cannot fit is refused before it begins"
        )
    finally:
        subprocess.run(["umount", disk], check=True)


def with_preflight_blind(directory: Path) -> None:
    """Write as if somebody else took the space meanwhile."""
    real = shutil.disk_usage
    shutil.disk_usage = lambda path: real(path)._replace(free=1 << 40)
    try:
        write(directory)
    finally:
        shutil.disk_usage = real
