"""Saving beside training: what is told to be on disk is there, and what goes wrong meanwhile is not lost."""

import errno
import os
import signal
import threading
from dataclasses import replace

import pytest
import torch

from interp_gpt2.cli.command_line import run_command
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointWriteError, DivergenceError
from interp_gpt2.runs.checkpoint import contents_of, verify_checkpoint
from interp_gpt2.runs.run import Run
from interp_gpt2.training import loop, saving
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.events import Finished, Logged, Saved
from interp_gpt2.training.loop import train
from interp_gpt2.training.saving import HostCopies
from interp_gpt2.training.signals import Interrupted

CONFIG = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=1, n_heads=2, d_model=16, n_ctx=8),
    n_steps=12,
    batch_size=4,
    lr=1e-2,
    warmup_steps=3,
    log_every=1,
    eval_every=100,
    threads=1,
    checkpoints=Checkpoints(per_doubling=0, every=4, resume_every=100, anchors=0),
)


def patched_writer(monkeypatch, before):
    """Each checkpoint is written after `before(step)`, which may take its time or raise."""
    real = saving.write_checkpoint

    def write(run_dir, contents):
        before(contents.step)
        return real(run_dir, contents)

    monkeypatch.setattr(saving, "write_checkpoint", write)


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(tmp_path, monkeypatch):
    whole = train(CONFIG, tmp_path / "whole")
    reached = {step: threading.Event() for step in range(13)}

    def progress(event):
        if isinstance(event, Logged):
            reached[event.step].set()

    def two_steps_later(step):
        assert step == 12 or reached[step + 2].wait(30), "training waits for the disk"

    patched_writer(monkeypatch, two_steps_later)
    run = train(CONFIG, tmp_path / "run", progress=progress)
    assert [run.checkpoint_hash(step) for step in run.steps] == [whole.checkpoint_hash(step) for step in whole.steps]


def test_a_checkpoint_is_told_of_when_it_is_on_disk_and_not_before(tmp_path, monkeypatch):
    told = []

    def progress(event):
        if isinstance(event, Saved):
            verify_checkpoint(event.path)
            told.append(event.step)

    released = threading.Event()
    patched_writer(monkeypatch, lambda step: released.wait(30))

    def logged(event):
        if isinstance(event, Logged) and event.step == 3:
            assert not told
            released.set()
        progress(event)

    train(CONFIG, tmp_path / "run", progress=logged)
    assert told == [0, 4, 8, 12]


@pytest.mark.parametrize(("at", "noticed"), [(4, range(4, 9)), (12, [12])])
def test_what_goes_wrong_while_writing_stops_training_at_a_boundary_and_names_the_checkpoint(tmp_path, monkeypatch, at, noticed):
    def full(step):
        if step == at:
            monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))

    patched_writer(monkeypatch, full)
    events = []
    with pytest.raises(CheckpointWriteError, match=rf"step-000000{at:02d} could not be written: No space left.*bytes needed"):
        train(CONFIG, tmp_path / "run", progress=events.append)
    monkeypatch.undo()
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "cache"))
    assert [event.step for event in events if isinstance(event, Logged)][-1] in noticed
    assert not any(isinstance(event, Finished) for event in events)
    run = Run(tmp_path / "run")
    assert [event.step for event in events if isinstance(event, Saved)] == run.steps == list(range(0, at, 4))
    for step in run.steps:
        verify_checkpoint(run.checkpoint(step))
    assert not list(run.path.glob(".tmp-*"))
    train(CONFIG, run.path, resume=True)
    assert run.checkpoint_hash(12) == train(CONFIG, tmp_path / "whole").checkpoint_hash(12)


def test_a_full_disk_is_exit_code_4_and_one_line(tmp_path, monkeypatch, capsys):
    real = os.write

    def full(fd, data):
        if len(data) > 4000:  # the weights, not the metrics
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    words = [
        "train",
        "--data",
        "repeated-random",
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "3",
        "--n-ctx",
        "16",
        "--threads",
        "1",
    ]
    assert run_command(words) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("interp-gpt2:")]
    assert "No space left on device" in line
    assert "bytes needed" in line


def test_an_interruption_waits_for_what_is_being_written(tmp_path, monkeypatch):
    def progress(event):
        if isinstance(event, Logged) and event.step == 5:
            signal.raise_signal(signal.SIGTERM)

    patched_writer(monkeypatch, lambda step: threading.Event().wait(0.2))
    with pytest.raises(Interrupted) as stopped:
        train(CONFIG, tmp_path / "run", progress=progress)
    assert verify_checkpoint(stopped.value.path).can_resume
    assert Run(tmp_path / "run").steps == [0, 4, 5]


def test_an_error_of_the_writer_is_added_to_the_one_that_training_stops_with(tmp_path, monkeypatch):
    def unwritable(step):
        if step == 4:
            raise CheckpointWriteError("nothing can be written")

    patched_writer(monkeypatch, unwritable)
    boundary = loop.Trainer.boundary

    def diverging(self, step):
        boundary(self, step)
        if step == 4:
            raise DivergenceError("as if")

    monkeypatch.setattr(loop.Trainer, "boundary", diverging)
    with pytest.raises(DivergenceError, match="as if") as error:
        train(CONFIG, tmp_path / "run")
    assert error.value.__notes__ == ["nothing can be written"]


def test_the_copies_share_no_memory_with_the_model_and_are_used_again():
    config = replace(CONFIG.model, d_vocab=9)
    from interp_gpt2.model import GPT2

    model = GPT2(config)
    copies = HostCopies()
    first = copies.of(contents_of(0, model.state_dict(), config, 0))
    (file,) = first.tensors
    before = {name: tensor.clone() for name, tensor in first.tensors[file].items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.tensors[file].items())
    second = copies.of(contents_of(1, model.state_dict(), config, 0))
    for name, tensor in second.tensors[file].items():
        assert torch.equal(tensor, before[name] + 1)
        assert tensor.data_ptr() == first.tensors[file][name].data_ptr()
