"""The disk a run will take is known, and found wanting, before its first step."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from interp_gpt2.cli.command_line import run_command
from interp_gpt2.config import GPT2Config
from interp_gpt2.data.source import load_source
from interp_gpt2.errors import CheckpointWriteError
from interp_gpt2.training import disk
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.disk import check_disk, disk_needed
from interp_gpt2.training.events import Started
from interp_gpt2.training.loop import train

CONFIG = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=2, n_heads=2, d_model=32, d_vocab=64, n_ctx=16),
    n_steps=40,
    batch_size=2,
    eval_every=100,
    threads=1,
    checkpoints=Checkpoints(every=10, resume_every=7, anchors=4),
)
Usage = namedtuple("Usage", "total used free")


def with_free(monkeypatch, n_bytes):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(10**12, 0, n_bytes))


def taken_by(run_dir: Path) -> int:
    """Bytes of its checkpoints on disk, in whole blocks, folders counted."""
    return sum(path.stat().st_blocks * 512 for step in run_dir.glob("step-*") for path in (step, *step.iterdir()))


@pytest.mark.parametrize(
    ("changes", "model"),
    [({}, {}), ({"data": "markov"}, {}), ({"optimizer": "muon"}, {}), ({}, {"attn_only": True})],
    ids=str,
)
def test_what_is_said_to_be_needed_is_what_a_run_takes_while_it_grows(tmp_path, changes, model):
    config = replace(CONFIG, **changes, model=replace(CONFIG.model, **model))
    most, said = [0], []

    def progress(event):
        if isinstance(event, Started):
            said.append(event.disk)
        most.append(taken_by(tmp_path / "run"))

    run = train(config, tmp_path / "run", progress=progress)
    (needed,) = said
    assert needed.checkpoints == len(run.steps) == len({0, 1, 2, 4, 8, 16, 32, 10, 20, 30, 40, 7, 14, 21, 28, 35})
    # The rolling ones are counted apart from the anchors, though they may meet; and Muon has one moment where two are counted.
    assert max(most) <= needed.total <= (1.5 if config.optimizer == "muon" else 1.25) * max(most)


def test_a_run_that_does_not_fit_is_refused_with_both_figures_before_anything_is_written(tmp_path, monkeypatch, capsys):
    source = load_source(CONFIG.data)
    total = disk_needed(CONFIG, source, tmp_path / "run").total
    with_free(monkeypatch, total)
    check_disk(disk_needed(CONFIG, source, tmp_path / "run"), tmp_path / "run")
    with_free(monkeypatch, total - 1)
    with pytest.raises(CheckpointWriteError, match=rf"need {total:,} bytes and {total - 1:,} are free: 16 of .*keep fewer"):
        train(CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    words = ["train", "--data", "repeated-random", "--out", str(tmp_path / "cli"), "--steps", "40"]
    with_free(monkeypatch, 1000)
    assert run_command(words) == 4
    assert "1,000 are free" in capsys.readouterr().err
    assert not (tmp_path / "cli").exists()


def test_anchors_are_in_the_figure_and_turned_off_out_of_it(tmp_path):
    source = load_source(CONFIG.data)
    with_anchors, without = (
        disk_needed(replace(CONFIG, checkpoints=replace(CONFIG.checkpoints, anchors=n)), source, tmp_path / "run") for n in (4, 0)
    )
    assert with_anchors.resumable - without.resumable == 4
    assert with_anchors.total - without.total == 4 * with_anchors.optimizer


def test_a_resumed_run_needs_what_is_still_to_come_and_one_that_overwrites_gets_the_old_space_back(tmp_path, monkeypatch):
    run = train(replace(CONFIG, n_steps=20, schedule="constant"), tmp_path / "run")
    source = load_source(CONFIG.data)
    whole = disk_needed(CONFIG, source, tmp_path / "elsewhere")
    rest = disk_needed(CONFIG, source, run.path)
    assert rest.checkpoints == len({21, 28, 30, 32, 35, 40})
    assert rest.total <= whole.total - 10 * whole.weights
    anew = disk_needed(CONFIG, source, run.path, overwrite=True)
    assert anew.checkpoints == 16
    assert whole.total - anew.total == pytest.approx(taken_by(run.path), rel=0.1)  # its folders are not counted on


def test_the_terminal_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 5 * 10**9))
    words = [
        "train",
        "--data",
        "repeated-random",
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "2",
        "--n-ctx",
        "8",
        "--threads",
        "1",
    ]
    assert run_command(words) == 0
    assert "3 checkpoints to come take at most" in capsys.readouterr().err
