"""`interp-gpt2 push` and runs from elsewhere, on the command line."""

from pathlib import Path
from typing import Any

import pytest

from interp_gpt2.cli.command_line import run_command
from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import save_checkpoint
from interp_gpt2.runs.writing import create_run
from interp_gpt2.tokenizers import CharTokenizer

TINY = GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=5, n_ctx=6)
LETTERS = CharTokenizer("abcde")


@pytest.fixture
def run_path(tmp_path: Path) -> str:
    run = create_run(tmp_path / "tiny", {"config": {"seed": 5}}, LETTERS)
    for step in (0, 10):
        save_checkpoint(run.path, step, GPT2(TINY, seed=step).state_dict(), TINY, 24 * step, LETTERS)
    return str(run.path)


def test_a_dry_run_says_what_would_be_written_and_asks_nobody(run_path: str, capsys: Any, monkeypatch: Any) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("asked the Hub"))
    assert run_command(["push", run_path, "--repo", "someone/tiny", "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("step0: config.json, model.safetensors, tokenizer.json, tokenizer_config.json (")
    assert out[1].startswith("step10: ")
    assert out[2] == "would write 2 branches, 0.0 MB, to someone/tiny"


def test_a_hub_that_cannot_be_reached_is_one_line(run_path: str, capsys: Any, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run_command(["push", run_path, "--repo", "someone/tiny", "--steps", "10"]) == 2
    error = capsys.readouterr().err
    assert "stopped before the first step" in error
    assert error.count("\n") == 1
    assert run_command(["push", run_path, "--repo", "a/b/c"]) == 2
    assert run_command(["push", run_path, "--repo", "someone/tiny", "--steps", "ten"]) == 2


def test_folders_of_models_are_a_run_to_every_command(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "cache"))
    for step in (1, 20):
        to_huggingface(GPT2(TINY, seed=step)).save_pretrained(tmp_path / "theirs" / f"checkpoint-{step}")
        LETTERS.save(tmp_path / "theirs" / f"checkpoint-{step}")
    assert run_command(["generate", str(tmp_path / "theirs"), "abc", "--max-new-tokens", "2"]) == 0
    assert run_command(["heads", str(tmp_path / "theirs"), "--all", "--csv", str(tmp_path / "heads.csv")]) == 0
    assert "theirs: the best head by step" in capsys.readouterr().out
    assert {line.split(",")[2] for line in (tmp_path / "heads.csv").read_text().splitlines()[1:]} == {"1", "20"}
    assert run_command(["heads", str(tmp_path / "theirs"), "--step", "7"]) == 2
    assert "theirs has no checkpoint at step 7; the nearest is 1, the last 20" in capsys.readouterr().err
