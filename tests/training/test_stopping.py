"""Ctrl-C and SIGTERM, whatever training is at: within one step there is a checkpoint that goes on exactly."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from interp_gpt2.cli.command_line import run_command
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import RunError
from interp_gpt2.runs.checkpoint import verify_checkpoint
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import run_lock
from interp_gpt2.training import loop, saving, update
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.events import Event, Saved
from interp_gpt2.training.loop import train
from interp_gpt2.training.signals import Interrupted
from interp_gpt2.training.speed import MEASURED

CONFIG = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=1, n_heads=2, d_model=16, n_ctx=8, dropout=0.1),
    n_steps=12,
    batch_size=4,
    lr=1e-2,
    warmup_steps=3,
    log_every=1,
    eval_every=5,
    threads=1,
    checkpoints=Checkpoints(per_doubling=0, every=4, resume_every=100, anchors=0),
)


def signalling(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, signum: int, call: int = 1) -> None:
    """Call number `call` of `owner.name` is interrupted: the signal comes just before it does its work."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), signum)  # also from the thread that writes: the process is what gets it
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted)


ANY = set(range(13))  # checkpoints are written beside training, which may be at any step when the signal comes

# What is interrupted, and the steps after which training may have stopped.
MOMENTS = {
    "reading the data": (loop, "source_of", 1, {0}),
    "making the model": (update, "GPT2", 1, {0}),
    "making the run": (loop, "create_run", 1, {0}),
    "the first evaluation": (loop, "validation_loss", 1, {0}),
    "a later evaluation": (loop, "validation_loss", 2, {5}),
    "the first pass": (update.NextTokenLoss, "forward", 1, {1}),
    "a later pass": (update.NextTokenLoss, "forward", 7, {7}),
    "the optimizer": (torch.optim.AdamW, "step", 3, {3}),
    "logging": (loop, "append_metrics", 4, {3}),
    "copying the state": (saving.HostCopies, "of", 2, {4, 5}),
    "writing the first checkpoint": (saving, "write_checkpoint", 1, ANY),
    "writing a later checkpoint": (saving, "write_checkpoint", 2, ANY),
    "forcing it to disk": (os, "fsync", 12, ANY),
}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_leaves_a_checkpoint_that_goes_on_exactly(tmp_path, monkeypatch, moment, signum):
    owner, name, call, steps = MOMENTS[moment]
    with monkeypatch.context() as patched:
        signalling(patched, owner, name, signum, call)
        with pytest.raises(Interrupted) as stopped:
            train(CONFIG, tmp_path / "run")
    assert stopped.value.exit_code == 128 + signum
    assert stopped.value.step in steps
    assert verify_checkpoint(stopped.value.path).can_resume
    run = Run(tmp_path / "run")
    assert run.metrics()[-1]["step"] == stopped.value.step == run.steps[-1]
    train(CONFIG, run.path, resume=True)
    whole = train(CONFIG, tmp_path / "whole")
    assert run.checkpoint_hash(12) == whole.checkpoint_hash(12)
    assert rows(run) == rows(whole)


def rows(run: Run) -> list[dict[str, str]]:
    return [{name: repr(value) for name, value in row.items() if name not in MEASURED} for row in run.metrics()]


@pytest.mark.parametrize("moment", ["reading the data", "restoring"])
def test_a_signal_while_resuming_stops_after_at_most_one_step(tmp_path, monkeypatch, moment):
    train(replace(CONFIG, n_steps=6, schedule="constant"), tmp_path / "run")
    with monkeypatch.context() as patched:
        signalling(
            patched, loop if moment == "reading the data" else saving, {"restoring": "restored"}.get(moment, "source_of"), 2
        )
        with pytest.raises(Interrupted) as stopped:
            train(replace(CONFIG, schedule="constant"), tmp_path / "run", resume=True)
    assert stopped.value.step in (6, 7)
    assert verify_checkpoint(stopped.value.path).can_resume


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_shell_is_told_which_signal_it_was(tmp_path, monkeypatch, capsys, signum, code):
    signalling(monkeypatch, loop, "validation_loss", signum)
    words = [
        "train",
        "--data",
        "repeated-random",
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "5",
        "--n-ctx",
        "8",
        "--threads",
        "1",
    ]
    assert run_command(words) == code
    assert "--resume goes on" in capsys.readouterr().err


def test_a_second_ctrl_c_leaves_what_was_acknowledged_and_no_half_checkpoint(tmp_path, monkeypatch):
    told = []

    def twice(event: Event) -> None:
        if isinstance(event, Saved):
            told.append(event.step)
            if event.step == 4:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        train(CONFIG, tmp_path / "run", progress=twice)
    assert not isinstance(stopped.value, Interrupted)
    run = Run(tmp_path / "run")
    assert set(told) == {0, 4} <= set(run.steps)
    assert not list(run.path.glob(".tmp-*"))
    for step in run.steps:
        verify_checkpoint(run.checkpoint(step))
    train(CONFIG, run.path, resume=True)


def test_a_second_trainer_is_refused_by_name_and_changes_nothing(tmp_path):
    run = train(replace(CONFIG, n_steps=4, schedule="constant"), tmp_path / "run")
    before = run.settings, run.steps, run.metrics()
    with run_lock(run.path):
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(RunError, match=rf"is being written by process {os.getpid()} on "):
                train(replace(CONFIG, schedule="constant"), run.path, **options)
    assert (run.settings, run.steps, run.metrics()) == before


def test_training_in_a_thread_of_its_own_is_not_stopped_by_signals_it_cannot_get(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(train(CONFIG, tmp_path / "run").steps))
    thread.start()
    thread.join()
    assert done == [[0, 4, 8, 12]]
