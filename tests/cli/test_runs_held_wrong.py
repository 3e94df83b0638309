"""Runs that are not as they should be, before every command: a clear line, the exit code, and what was finished kept."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interp_gpt2 import cli
from interp_gpt2.model import GPT2
from interp_gpt2.report.from_json import report_from_json
from interp_gpt2.runs.checkpoint import save_checkpoint
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import load_rows

Make = Callable[..., Run]
OF_A_RUN = {
    "heads": [], "generate": ["AB"], "lens": ["AB"], "neurons": [], "report": [], "contract": ["--quick"],
    "convert": ["--to", "huggingface", "--out", "converted"], "push": ["--repo", "a/b", "--dry-run"],
    "cache": ["--at", "embed", "--steps", "all"], "sweep": ["--analyses", "head_scores", "--out", "t.csv", "--workers", "1"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make(markov_run: Run, tmp_path: Path) -> Make:
    """A copy of a run with some of its steps."""

    def copied(name: str, steps: list[int]) -> Run:
        others = [f"step-{step:08d}" for step in markov_run.steps if step not in steps]
        return Run(shutil.copytree(markov_run.path, tmp_path / name, ignore=shutil.ignore_patterns("sweeps", *others)))

    return copied


def put(run: Run, step: int, model: GPT2, tokenizer: Any = None) -> None:
    """Another model in the place of a step's."""
    shutil.rmtree(run.checkpoint(step))
    save_checkpoint(run.path, step, model.state_dict(), model.config, 8 * step, tokenizer or run.tokenizer())


def told(capsys: Any, command: str, run: Run, *more: str) -> tuple[int, str]:
    words = [command, *(["create"] if command == "cache" else []), str(run.path), *(more or OF_A_RUN[command])]
    code = cli.main(words)
    return code, capsys.readouterr().err


@pytest.mark.parametrize("command", OF_A_RUN)
def test_a_run_without_checkpoints_is_one_line_before_every_command(make: Make, capsys: Any, command: str) -> None:
    code, err = told(capsys, command, make("empty", []))
    assert code == 2
    assert "empty has no checkpoints" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", OF_A_RUN)
def test_one_checkpoint_is_enough_for_every_command(make: Make, capsys: Any, command: str) -> None:
    assert told(capsys, command, make("one", [9])) == (0, "")


def test_another_architecture_in_a_run_is_named_by_the_commands_that_meet_it(make: Make, capsys: Any) -> None:
    run = make("mixed", [0, 4, 9])
    put(run, 4, GPT2(replace(run.config, n_layers=3)))
    code, err = told(capsys, "sweep", run)
    assert code == 4
    assert "step 4: another model than at step 9 of mixed (n_layers=3, not 2)" in err
    assert set(load_rows("t.csv").step) == {0, 9}
    code, err = told(capsys, "cache", run)
    assert code == 2
    assert "step 4 of mixed is a model of another shape than step 9's" in err
    assert told(capsys, "lens", run, "AB", "--step", "4")[0] == 0  # by itself it is a model like others


def test_another_tokenizer_in_a_run_is_named_by_the_commands_that_meet_it(make: Make, capsys: Any) -> None:
    run = make("mixed", [0, 4, 9])
    ours = run.tokenizer()
    put(run, 4, run.model(4), type(ours)(ours.characters[::-1]))
    code, err = told(capsys, "sweep", run)
    assert code == 4
    assert "step 4: another tokenizer than at step 9 of mixed" in err
    assert set(load_rows("t.csv").step) == {0, 9}
    assert "step 4 of mixed has another tokenizer" in told(capsys, "cache", run)[1]
    for command in ("lens", "generate"):
        code, err = told(capsys, command, run, "AB", "--step", "4")
        assert code == 2
        assert "step 4 of mixed has another tokenizer" in err
        assert told(capsys, command, run, "AB", "--step", "0")[0] == 0


def test_a_damaged_run_does_not_hide_the_others(make: Make, capsys: Any, tmp_path: Path) -> None:
    make("good", [9])
    (make("bad", [9]).path / "run.json").write_text("{")
    assert cli.main(["runs", str(tmp_path)]) == 4
    said = capsys.readouterr()
    assert "good" in said.out
    assert "bad cannot be read: " in said.err
    assert said.err.count("\n") == 1


def test_a_name_that_may_be_a_folder_or_on_the_hub_says_what_it_is_not(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cli.main(["heads", "checkpoints/mine"]) == 2
    assert "there is no directory checkpoints/mine; as a name on the Hub: " in capsys.readouterr().err


def test_a_full_disk_names_the_table_that_could_not_be_written(
    make: Make, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import os

    run, real = make("run", [9]), os.fsync

    def full(fd: int) -> None:
        if "t.csv" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    code, err = told(capsys, "sweep", run)
    assert (code, err) == (4, "interp-gpt2: t.csv: No space left on device\n")
    assert not list(tmp_path.glob("*t.csv*"))


def test_a_report_is_made_of_the_checkpoints_that_are_whole_and_names_the_others(make: Make, capsys: Any) -> None:
    run = make("damaged", [0, 2, 4, 8])
    weights = run.checkpoint(4) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code, err = told(capsys, "report", run, "--only", "head_scores,lens", "--workers", "1")
    assert code == 4
    assert "the report is without 1 of 4 checkpoints: step 4" in err
    report = report_from_json((run.path / "report-head_scores-lens" / "report.json").read_text("utf-8"))
    assert report.head_scores.steps == report.run.checkpoints == [0, 2, 8]
    assert "truncated" in report.omitted["step 4"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_diverged_at_one_step_is_named_and_the_others_are_swept(make: Make, capsys: Any, workers: int) -> None:
    run = make("diverged", [0, 2, 4])
    model = run.model(2)
    with torch.no_grad():
        model.blocks[1].mlp.fc.weight[3, 5] = torch.nan
    put(run, 2, model)
    code, err = told(capsys, "sweep", run, "--analyses", "head_scores", "--out", "t.csv", "--workers", str(workers))
    assert code == 4
    assert "step 2: blocks.1.mlp.fc.weight is not finite: the model had diverged" in err
    assert sorted(load_rows("t.csv").step.unique()) == [0, 4]
