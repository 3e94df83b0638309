"""Trials of the writer of checkpoints: killed, refused by the system, out of disk, damaged afterwards, raced."""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from crashes_training import TRAIN

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError, CheckpointWriteError, RunError
from interp_gpt2.hf_format import our_shapes
from interp_gpt2.runs.checkpoint import ResumeState, load_resume, load_weights, save_checkpoint, verify_checkpoint
from interp_gpt2.runs.manifest import step_name, step_of_name
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import create_run, run_lock
from interp_gpt2.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer("abcde")
TINY = GPT2Config(n_layers=1, n_heads=2, d_model=4, d_vocab=5, n_ctx=6)
LARGER = GPT2Config(n_layers=2, n_heads=2, d_model=128, d_vocab=64, n_ctx=64)  # 5 MB with moments
FORK = get_context("fork")


def state_at(step: int, config: GPT2Config) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, float(step)) for name, shape in our_shapes(config).items()}


def visible_steps(run_dir: Path) -> list[int]:
    return sorted(step for path in run_dir.iterdir() if (step := step_of_name(path.name)) is not None)


def save(run_dir: Path, step: int, config: GPT2Config) -> Path:
    state = state_at(step, config)
    return save_checkpoint(run_dir, step, state, config, step, TOKENIZER, ResumeState(state, {"step": step}))


# -------------------------------------------------------------------------------------------------------------- kills


def write_for_ever(run_dir: Path, acknowledged: Any) -> None:
    torch.set_num_threads(1)
    with run_lock(run_dir):
        step = max(visible_steps(run_dir), default=-1) + 1
        while True:
            save(run_dir, step, LARGER)
            acknowledged.value = step
            step += 1


def kills(folder: Path, n: int = 1000) -> str:
    """Writers of checkpoints of 5 MB, killed -9 at random moments."""
    run_dir, draw = create_run(folder / "run", {}, TOKENIZER).path, random.Random(0)
    saving = corrupt = lost = 0
    for _ in range(n):
        acknowledged, first = FORK.Value("q", -1), max(visible_steps(run_dir), default=-1) + 1
        writer = FORK.Process(target=write_for_ever, args=(run_dir, acknowledged))
        writer.start()
        deadline = time.monotonic() + 60
        while acknowledged.value < first and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        saving += any(run_dir.glob(".tmp-*"))
        steps = visible_steps(run_dir)
        lost += acknowledged.value not in steps
        for step in steps:
            try:
                _, state = load_weights(run_dir / step_name(step))
                corrupt += not all((tensor == step).all() for tensor in state.values())
            except CheckpointError:
                corrupt += 1
            if step < steps[-1]:
                shutil.rmtree(run_dir / step_name(step))
    with run_lock(run_dir):
        left = len(list(run_dir.glob(".tmp-*")))
    assert (corrupt, lost, left) == (0, 0, 0)
    return f"{n:,} kills, {saving:,} of them inside a save: 0 corrupt, 0 acknowledged lost, 0 leftovers after the next start"


# ------------------------------------------------------------------------------------------------------------- faults


def save_when_told(run_dir: Path, step: int, go: Any, told: Any) -> None:
    """Exit 0 when it is saved, 4 when it is refused by name; what it says lies in `told`, for saying it takes a system call."""
    go.acquire()
    try:
        save(run_dir, step, TINY)
    except CheckpointWriteError as error:
        told.value = str(error).encode()[:500]
        os._exit(4)
    os._exit(0)


def fault(folder: Path, call: str, code: str, k: int) -> tuple[str, bool]:
    """Fail the k-th `call` of a save. What became of it, and whether there were that many calls."""
    go, told = FORK.Semaphore(0), FORK.Array("c", 512, lock=False)
    writer = FORK.Process(target=save_when_told, args=(folder, k, go, told))
    writer.start()
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:error={code}:when={k}"]
    log = folder.parent / "strace.log"
    strace = subprocess.Popen(["strace", "-f", "-p", str(writer.pid), "-o", log, *inject], stderr=subprocess.PIPE)
    strace.stderr.readline()  # "attached"
    go.release()
    writer.join()
    strace.communicate()
    if "INJECTED" not in log.read_text():
        return "saved" if writer.exitcode == 0 else f"exit {writer.exitcode}", False
    if writer.exitcode == 0:
        return "harmless", True
    said = told.value.decode()
    named = step_name(k) in said and os.strerror(getattr(errno, code)) in said and "bytes needed" in said
    return "refused" if writer.exitcode == 4 and named else f"exit {writer.exitcode}: {said}", True


def faults(folder: Path) -> str:
    """The k-th open, write, fsync, rename, mkdir of a save fails from outside the process, for every k."""
    if shutil.which("strace") is None:
        return "left out: no strace"
    counts: dict[str, dict[str, int]] = {}
    for call in ("openat", "write", "fsync", "rename", "mkdir"):
        counts[call] = dict.fromkeys(("refused", "harmless"), 0)
        for code in ("ENOSPC", "EIO", "EACCES"):
            run_dir = folder / f"{call}-{code}" / "run"
            earlier = save(run_dir, 0, TINY)
            k, injected = 0, True
            while injected:
                k += 1
                outcome, injected = fault(run_dir, call, code, k)
                verify_checkpoint(earlier)
                for step in visible_steps(run_dir):
                    verify_checkpoint(run_dir / step_name(step))
                assert not list(run_dir.glob(".tmp-*")), "left behind"
                assert outcome in ("refused", "harmless") if injected else outcome == "saved", (call, code, k, outcome)
                if injected:
                    counts[call][outcome] += 1
    total = sum(sum(each.values()) for each in counts.values())
    each = ", ".join(
        f"{call} {n['refused']}" + (f" (+{n['harmless']} harmless)" if n["harmless"] else "") for call, n in counts.items()
    )
    return f"{total} failed calls (ENOSPC, EIO, EACCES; {each}): each one typed error with path and bytes, what was there loads"


def full_disk(folder: Path, n: int = 10) -> str:
    """A tmpfs of 10 MB that fills up, under the writer and under the command line."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "none", disk], capture_output=True).returncode == 0
    if not mounted:
        return "left out: this user may not mount a tmpfs"
    try:
        refused = sum(fill(disk / f"run-{trial}", trial) for trial in range(n))
        env = dict(os.environ, INTERP_GPT2_CACHE=str(folder / "cache"), COLUMNS="200")
        command = [sys.executable, "-m", "interp_gpt2", *TRAIN, "--steps", "100000", "--checkpoint-every", "5"]
        preflight = subprocess.run([*command, "--out", disk / "never"], env=env, capture_output=True, text=True)
        assert preflight.returncode == 4, preflight.stderr
        assert "are free" in preflight.stderr
        command[command.index("100000")] = "400"
        with subprocess.Popen([*command, "--out", disk / "cli"], env=env, stderr=subprocess.PIPE, text=True) as process:
            while len(list(disk.glob("cli/step-*"))) < 5 and process.poll() is None:
                time.sleep(0.01)
            with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(1 << 12))
            said = process.communicate()[1]
        assert process.returncode == 4, said
        assert "No space left on device" in said
        run = Run(disk / "cli")
        for step in run.steps:
            verify_checkpoint(run.checkpoint(step))
        (disk / "filler").unlink()
        return (f"{refused} of {n} writers and the command line (exit 4) say 'No space left on device', every earlier checkpoint "
                "loads; a run that cannot fit is refused before step 0 (exit 4)")  # fmt: skip
    finally:
        subprocess.run(["umount", disk], check=True)


def fill(run_dir: Path, trial: int) -> bool:
    config = GPT2Config(n_layers=2, n_heads=2, d_model=96 + 4 * trial, d_vocab=64, n_ctx=64)
    step, said = 0, ""
    while not said:
        try:
            save(run_dir, step, config)
            step += 1
        except CheckpointWriteError as error:
            said = str(error)
    assert re.search(r"No space left on device \([\d,]+ bytes needed", said), said
    assert visible_steps(run_dir) == list(range(step))
    for saved in range(step):
        assert all((tensor == saved).all() for tensor in load_weights(run_dir / step_name(saved))[1].values())
    assert not list(run_dir.glob(".tmp-*"))
    shutil.rmtree(run_dir)
    return step > 0


def flips(folder: Path, n: int = 1000) -> str:
    """Single bits anywhere in a checkpoint of 5 MB, in proportion to the files' sizes; and files cut off anywhere."""
    n_truncations = max(1, n // 5)
    step_dir, draw = save(folder / "run", 3, LARGER), random.Random(0)
    files = sorted(step_dir.iterdir())
    sizes = [path.stat().st_size for path in files]
    refused = {"flip": 0, "truncation": 0}
    for trial in range(n + n_truncations):
        kind = "flip" if trial < n else "truncation"
        path = draw.choices(files, sizes)[0] if trial % 2 else draw.choice(files)
        original = path.read_bytes()
        damaged = bytearray(original)
        if kind == "flip":
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        else:
            del damaged[draw.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        for load in (load_weights, load_resume):
            try:
                load(step_dir)
            except CheckpointError as error:
                refused[kind] += path.name in str(error)
        path.write_bytes(original)
    load_resume(step_dir)
    assert refused == {"flip": 2 * n, "truncation": 2 * n_truncations}, refused
    return f"{n:,} flipped bits and {n_truncations} truncations: all refused by the file's name, by both loaders"


def try_to_write(run_dir: Path, gate: Any, outcome: Any) -> None:
    gate.wait()
    began = time.monotonic()
    try:
        with run_lock(run_dir):
            outcome[0] += 1
            save(run_dir, 1, TINY)
            time.sleep(0.2)
    except RunError as error:
        outcome[1] += re.search(r"is being written by (process \d+ on|another process)", str(error)) is not None
        outcome[2] = max(outcome[2], int(1000 * (time.monotonic() - began)))


def races(folder: Path, n: int = 50) -> str:
    """Two writers that start at once."""
    slowest = 0
    for trial in range(n):
        run_dir = create_run(folder / f"run-{trial}", {}, TOKENIZER).path
        gate, outcome = FORK.Barrier(2), FORK.Array("i", 3)
        writers = [FORK.Process(target=try_to_write, args=(run_dir, gate, outcome)) for _ in range(2)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert tuple(outcome[:2]) == (1, 1), tuple(outcome)
        verify_checkpoint(run_dir / step_name(1))
        slowest = max(slowest, outcome[2])
    return f"{n} races of two writers: one writes, the other is refused by name, after {slowest} ms at most"
