"""Run: what it reads from a directory, and what it says when something is not there."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError, DataError, RunError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import ResumeState, save_checkpoint
from interp_gpt2.runs.metrics import append_metrics
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import create_run
from interp_gpt2.tokenizers import CharTokenizer

TINY = GPT2Config(n_layers=1, n_heads=2, d_model=4, d_vocab=5, n_ctx=6)
TOKENIZER = CharTokenizer("abcde")
RESUME = ResumeState({"m": torch.zeros(3)}, {})


def add_step(run: Run, step: int, resume: ResumeState | None = None) -> Path:
    return save_checkpoint(run.path, step, GPT2(TINY, seed=step).state_dict(), TINY, 24 * step, TOKENIZER, resume)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = create_run(tmp_path / "demo", {"config": {"seed": 5, "data": "markov", "tokenizer": "char"}}, TOKENIZER)
    for step in (0, 1, 100):
        add_step(run, step)
    return run


def test_a_run_says_what_is_in_its_directory(run: Run) -> None:
    append_metrics(run.path, {"step": 1, "loss": 1.5})
    assert (run.name, run.steps, run.seed) == ("demo", [0, 1, 100], 5)
    assert run.config == TINY
    assert run.checkpoint(1).name == "step-00000001"
    assert run.tokens_seen(100) == 2400
    assert run.tokenizer().characters == TOKENIZER.characters
    assert run.metrics() == [{"step": 1, "loss": 1.5}]
    assert run.settings["config"]["data"] == "markov"
    assert pickle.loads(pickle.dumps(run)) == run  # sweeps hand it to other processes


def test_the_model_at_a_step_is_the_one_that_was_saved_there(run: Run) -> None:
    for step, model in ((0, run.model(0)), (100, run.model()), (1, run.model(1))):
        assert not model.training
        for name, weight in GPT2(TINY, seed=step).state_dict().items():
            assert torch.equal(model.state_dict()[name], weight)


@torch.no_grad()
def test_transformers_gives_the_logits_of_the_model_at_a_step(run: Run) -> None:
    from transformers import GPT2LMHeadModel

    tokens = torch.tensor([[0, 4, 2, 2, 1, 3]])
    for step in run.steps:
        hf_logits = GPT2LMHeadModel.from_pretrained(run.checkpoint(step))(tokens).logits
        assert (hf_logits - run.model(step)(tokens)).abs().max() <= 1e-5


def test_one_hash_stands_for_one_model(run: Run) -> None:
    assert len({run.checkpoint_hash(step) for step in run.steps}) == 3
    save_checkpoint(run.path, 7, GPT2(TINY, seed=1).state_dict(), TINY, 0, None, RESUME)
    assert run.checkpoint_hash(7) == run.checkpoint_hash(1)


def test_the_nearest_steps_are_named(run: Run) -> None:
    for step, nearest in ((50, "the nearest: 1 and 100"), (101, "the nearest: 100"), (-1, "the nearest: 0")):
        with pytest.raises(RunError, match=nearest):
            run.model(step)


def test_what_is_not_a_run_is_told_apart(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    cases = {
        tmp_path / "nowhere": "there is no run at",
        tmp_path: "it holds the runs demo",
        run.checkpoint(1): f"is one checkpoint; its run is {run.path}",
        tmp_path / "file": "is a file",
    }
    for path, message in cases.items():
        with pytest.raises(RunError, match=message):
            Run(path)
    with pytest.raises(RunError, match="has no checkpoints yet"):
        create_run(tmp_path / "new", {}).model()


def test_a_damaged_record_is_refused(run: Run) -> None:
    for data, message in ((b"{", "not valid JSON"), (b'{"format": 3}', "format"), (b'{"format": "interp_gpt2 run 1"}', "seed")):
        (run.path / "run.json").write_bytes(data)
        with pytest.raises(RunError, match=message):
            _ = run.seed


def test_directories_that_only_look_like_steps_are_not_steps(run: Run) -> None:
    for name in ("step-12", "step-000000012", "step-00000012x", "step-0000001a", ".tmp-1", "refused-step-00000012"):
        (run.path / name).mkdir()
    (run.path / "step-00000012").write_text("a file")
    assert run.steps == [0, 1, 100]
    add_step(run, 123_456_789)
    assert run.steps[-1] == 123_456_789


# An explicit step is never replaced by another; only a scan for the newest passes over what is damaged, and says so.


def test_a_damaged_step_is_an_error_when_asked_for(run: Run) -> None:
    damage(run.checkpoint(100) / "model.safetensors")
    for step in (100, None):
        with pytest.raises(CheckpointError, match=r"step-00000100/model\.safetensors has been altered"):
            run.model(step)


def test_the_newest_whole_checkpoint_is_found_and_what_is_skipped_is_said(run: Run) -> None:
    assert run.newest_verified_step().step == 100
    damage(run.checkpoint(100) / "tokenizer.json")
    (run.checkpoint(1) / "manifest.json").unlink()
    found = run.newest_verified_step()
    assert found.step == 0
    assert [step for step, _ in found.skipped] == [100, 1]
    assert "tokenizer.json has been altered" in found.skipped[0][1]
    assert "manifest.json is missing" in found.skipped[1][1]
    damage(run.checkpoint(0) / "config.json")
    with pytest.raises(RunError, match=r"no checkpoint that is whole, among 3; .*tokenizer\.json.*config\.json"):
        run.newest_verified_step()


def test_the_newest_resumable_checkpoint_passes_over_those_with_weights_only(run: Run) -> None:
    with pytest.raises(RunError, match="training can resume from"):
        run.newest_verified_step(resumable=True)
    for step in (10, 20):
        add_step(run, step, RESUME)
    assert (run.newest_verified_step(resumable=True).step, run.newest_verified_step(resumable=True).skipped) == (20, ())
    damage(run.checkpoint(20) / "optimizer.safetensors")
    found = run.newest_verified_step(resumable=True)
    assert found.step == 10
    assert "optimizer.safetensors" in found.skipped[0][1]


def test_the_source_is_the_one_that_was_trained_on_or_an_error(tmp_path: Path) -> None:
    from interp_gpt2.data.source import load_source

    config: dict[str, Any] = {"seed": 0, "data": "markov", "tokenizer": "char"}
    source = load_source("markov")
    run = create_run(tmp_path / "same", {"config": config, "data": source.fingerprint()}, source.tokenizer)
    assert torch.equal(run.source().batch(3, 2, 8, seed=0), source.batch(3, 2, 8, seed=0))
    other = create_run(tmp_path / "other", {"config": config, "data": source.fingerprint() | {"sha256": "0" * 64}})
    with pytest.raises(DataError, match="sha256"):
        other.source()
