"""kill -9, again and again: the run that goes on each time is the run that nobody killed."""

import os
import random
import signal
import time
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest

from interp_gpt2.config import GPT2Config
from interp_gpt2.runs.checkpoint import verify_checkpoint
from interp_gpt2.runs.manifest import OPTIMIZER, read_manifest
from interp_gpt2.runs.run import Run
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.events import Event, Logged, Saved
from interp_gpt2.training.loop import train
from interp_gpt2.training.speed import MEASURED

pytestmark = pytest.mark.slow

CONFIG = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=1, n_heads=2, d_model=16, n_ctx=8, dropout=0.1),
    n_steps=500,
    batch_size=4,
    lr=1e-2,
    warmup_steps=20,
    log_every=1,
    eval_every=100,
    threads=1,
    checkpoints=Checkpoints(resume_every=10, anchors=0),
)
KILLS = 20


def fresh_processes() -> ForkServerContext:
    """Processes that start from imports alone."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["interp_gpt2.training.loop", "torch._dynamo"])
    return context


def go_on(config: TrainConfig, run_dir: Path, logged: "Synchronized[int]", saved: "Synchronized[int]") -> None:
    def progress(event: Event) -> None:
        if isinstance(event, Logged):
            logged.value = event.step
        if isinstance(event, Saved):
            saved.value = event.step

    train(config, run_dir, resume=(run_dir / "run.json").is_file(), progress=progress)


def test_a_run_killed_20_times_is_the_run_that_was_not_and_logs_each_step_once(tmp_path):
    context, draw = fresh_processes(), random.Random(0)
    run_dir, lost = tmp_path / "killed", []
    for kill in range(1, KILLS + 1):
        logged, saved = context.Value("q", -1), context.Value("q", -1)
        process = context.Process(target=go_on, args=(CONFIG, run_dir, logged, saved))
        process.start()
        target = kill * 500 // (KILLS + 1)  # so that all of them happen before the end
        deadline = time.monotonic() + 60
        while logged.value < target and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.01))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it had ended before it was killed"
        lost += [saved.value] if saved.value not in (-1, *Run(run_dir).steps) else []
    assert not lost, "checkpoints that had been acknowledged"
    run = train(CONFIG, run_dir, resume=True)
    whole = train(CONFIG, tmp_path / "whole")
    assert [row["step"] for row in run.metrics()] == list(range(501))
    assert rows(run) == rows(whole)
    assert run.steps == whole.steps
    for step in run.steps:
        verify_checkpoint(run.checkpoint(step))
        assert run.checkpoint_hash(step) == whole.checkpoint_hash(step)
    ends = [read_manifest(each.checkpoint(500)).files[OPTIMIZER].sha256 for each in (run, whole)]
    assert ends[0] == ends[1]
    assert not [path.name for path in run_dir.iterdir() if "tmp" in path.name]


def rows(run: Run) -> list[dict[str, str]]:
    return [{name: repr(value) for name, value in row.items() if name not in MEASURED} for row in run.metrics()]


def test_killed_while_the_first_checkpoint_is_written_it_starts_again(tmp_path):
    run_dir = tmp_path / "run"
    config = replace(CONFIG, n_steps=5)
    context = fresh_processes()
    logged, saved = context.Value("q", -1), context.Value("q", -1)
    process = context.Process(target=go_on, args=(config, run_dir, logged, saved))
    process.start()
    deadline = time.monotonic() + 60
    while logged.value < 0 and time.monotonic() < deadline:
        time.sleep(0.0005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    run = train(config, run_dir, resume=True)
    assert run.checkpoint_hash(5) == train(config, tmp_path / "whole").checkpoint_hash(5)
