"""Trials of training from the command line: killed and resumed, sent signals, interrupted while it compiles."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from interp_gpt2.cli.command_line import run_command
from interp_gpt2.runs.run import Run

TRAIN = ["train", "--data", "repeated-random", "--n-layers", "1", "--n-heads", "2", "--d-model", "16", "--n-ctx", "8",
         "--batch-size", "4", "--threads", "1"]  # fmt: skip


def command(words: list[str], out: Path, log: Path) -> None:
    """What a process of its own does: the command line, its stderr in a file."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    sys.exit(run_command([*words, "--out", str(out)]))


def fresh() -> Any:
    context = get_context("forkserver")
    context.set_forkserver_preload(["interp_gpt2.training.loop", "interp_gpt2.cli.train", "torch._dynamo"])
    return context


def wait_for(condition: Callable[[], bool], process: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.0005)


def last_step(run_dir: Path) -> int:
    with suppress(OSError, ValueError):
        return Run(run_dir).metrics()[-1]["step"] if (run_dir / "metrics.jsonl").stat().st_size else -1
    return -1


def trained(words: list[str], out: Path, log: Path) -> Run:
    process = fresh().Process(target=command, args=(words, out, log))
    process.start()
    process.join()
    assert process.exitcode == 0, log.read_text()
    return Run(out)


def same(one: Run, other: Run, last: int) -> bool:
    rows = [[{k: v for k, v in row.items() if k in ("step", "loss", "val_loss", "grad_norm", "lr")} for row in run.metrics()]
            for run in (one, other)]  # fmt: skip
    return rows[0] == rows[1] and one.checkpoint_hash(last) == other.checkpoint_hash(last)


def chain(folder: Path, n: int = 20, n_steps: int = 500) -> str:
    """One run of the command line, killed -9 and resumed."""
    words = [*TRAIN, "--steps", str(n_steps), "--checkpoint-every", "10"]
    out, draw = folder / "killed", random.Random(0)
    for kill in range(1, n + 1):
        resume = ["--resume"] if (out / "run.json").exists() else []
        process = fresh().Process(target=command, args=([*words, *resume], out, folder / "log"))
        process.start()
        # Anchors are every 50 steps: each life must come past one, so that the next begins later.
        wait_for(lambda target=kill * (n_steps - 20) // (n + 1): last_step(out) >= target, process)
        time.sleep(draw.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, (folder / "log").read_text()
    run = trained([*words, "--resume"], out, folder / "log")
    whole = trained(words, folder / "whole", folder / "log")
    steps = [row["step"] for row in run.metrics()]
    assert len(steps) == len(set(steps)), "a step logged twice"
    assert same(run, whole, n_steps)
    assert run.steps == whole.steps
    return f"{n} kills in one run of {n_steps} steps: metrics and weights are the uninterrupted run's, each step logged once"


def signals(folder: Path, n: int = 50) -> str:
    """SIGINT or SIGTERM at a random moment of the command line, from the first line of the command to the last step."""
    words, draw = [*TRAIN, "--steps", "60", "--eval-every", "3", "--checkpoint-every", "2"], random.Random(0)
    whole = trained(words, folder / "whole", folder / "log")
    began = time.monotonic()
    trained(words, folder / "timed", folder / "log")
    duration = time.monotonic() - began
    waits, finished, early = [], 0, 0
    for trial in range(n):
        out, signum, log = folder / f"run-{trial}", (signal.SIGINT, signal.SIGTERM)[trial % 2], folder / f"log-{trial}"
        process = fresh().Process(target=command, args=(words, out, log))
        process.start()
        wait_for(log.exists, process)  # the command has begun
        time.sleep(draw.uniform(0, duration))
        before, sent = last_step(out), time.monotonic()
        with suppress(ProcessLookupError):  # it has finished
            os.kill(process.pid, signum)
        process.join(120)
        said = log.read_text()
        if process.exitcode == 0:
            finished += 1
            continue
        if not (out / "run.json").exists():  # stopped before there was a run: nothing to lose
            assert process.exitcode in (130, 143, -signum) or "KeyboardInterrupt" in said, (process.exitcode, said)
            early += 1
            continue
        waits.append(time.monotonic() - sent)
        assert process.exitcode == 128 + signum, (process.exitcode, said)
        stopped = int(re.search(r"at step (\d+)", said)[1])
        assert stopped <= max(before, 0) + 3  # what was logged when it came, the update under way, and what the look missed
        assert same(trained([*words, "--resume"], out, folder / "log"), whole, 60)
    longest = max(waits, default=0)
    return (f"{len(waits)} signals at random moments: exit 130 or 143, a checkpoint, and a resumed run that is the uninterrupted "
            f"one; {early} came before there was a run, {finished} after its end; longest wait {longest:.1f} s")  # fmt: skip


def compiling(folder: Path, delays: tuple[float, ...] = (0.0, 0.2, 0.5, 1.0)) -> str:
    """Ctrl-C in a terminal, which reaches the C++ compiler too, while the first step is compiled."""
    if shutil.which("g++") is None:
        return "left out: no g++"
    for trial, delay in enumerate(delays):
        out = folder / f"run-{trial}"
        env = dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(folder / f"inductor-{trial}"))
        words = [sys.executable, "-m", "interp_gpt2", *TRAIN, "--steps", "30", "--compile", "--out", str(out)]
        with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            while process.poll() is None and not _compiler_runs(process.pid):
                time.sleep(0.01)
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGINT)
            said = process.communicate()[1]
        assert process.returncode == 130, said
        assert Run(out).newest_verified_step(resumable=True).step <= 1
    return f"{len(delays)} times Ctrl-C while g++ compiled: exit 130, a checkpoint at step 0 or 1"


def _compiler_runs(group: int) -> bool:
    return subprocess.run(["pgrep", "-g", str(group), "cc1plus"], capture_output=True).returncode == 0
