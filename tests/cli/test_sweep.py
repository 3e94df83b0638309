"""`interp-gpt2 sweep`, and what the shell is told of a checkpoint that is damaged."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from interp_gpt2.cli.command_line import FILES, USAGE, run_command
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import load_rows, sweep


@pytest.fixture
def run(markov_run: Run, tmp_path: Path) -> Run:
    shutil.copytree(markov_run.path, tmp_path / "chains", ignore=shutil.ignore_patterns("sweeps"))  # nothing is known yet
    return Run(tmp_path / "chains")


def test_the_table_is_the_librarys(run: Run, tmp_path: Path, capsys: Any) -> None:
    names = ["induction_heads", "loss_by_position"]
    command = ["sweep", str(run.path), "--analyses", ",".join(names), "--steps", "0,9", "--out", str(tmp_path / "t.csv")]
    assert run_command([*command, "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "induction_heads: 10 rows at 2 of 2 steps\n" in out
    assert load_rows(tmp_path / "t.csv").equals(sweep(run, names, [0, 9], workers=1))


def test_a_damaged_checkpoint_is_named_and_the_rest_is_written(run: Run, tmp_path: Path, capsys: Any) -> None:
    weights = run.checkpoint(3) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    out = tmp_path / "t.json"
    assert run_command(["sweep", str(run.path), "--analyses", "induction_heads", "--out", str(out), "--workers", "1"]) == FILES
    said = capsys.readouterr()
    assert "induction_heads: 45 rows at 9 of 10 steps" in said.out
    assert "1 of 10 checkpoints failed, 9 finished and are kept: step 3: " in said.err
    assert set(load_rows(out).step) == {0, 1, 2, 4, 5, 6, 7, 8, 9}
    assert run_command(["heads", str(run.path), "--all"]) == FILES
    said = capsys.readouterr()
    assert "the best head by step" in said.out
    assert "step 3: " in said.err


def test_mistakes_are_one_line(run: Run, tmp_path: Path, capsys: Any) -> None:
    out = ["--out", str(tmp_path / "t.csv")]
    for words, told in (
        (["--analyses", "induction_head", *out], "did you mean 'induction_heads'?"),
        (["--analyses", "induction_heads", "--out", str(tmp_path / "t.txt")], "ends in .csv or .json"),
        (["--analyses", "induction_heads", "--steps", "0,77", *out], "no checkpoint at step 77"),
        (["--analyses", "induction_heads", "--dask", "tcp://127.0.0.1:1", "--workers", "2", *out], "give one of them"),
    ):
        assert run_command(["sweep", str(run.path), *words]) == USAGE
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
