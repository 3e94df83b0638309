"""Pushing: each step's files on its branch, as they lie in the run, and back."""

from pathlib import Path
from typing import Any

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError, RunError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import ResumeState, save_checkpoint
from interp_gpt2.runs.push import push, uploads
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import create_run
from interp_gpt2.tokenizers import CharTokenizer

TINY = GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=5, n_ctx=6)
LETTERS = CharTokenizer("abcde")
REPO = "someone/tiny"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = create_run(tmp_path / "tiny", {"config": {"seed": 5}}, LETTERS)
    for step in (0, 1, 100):
        resume = ResumeState({"m": torch.zeros(3)}, {})
        save_checkpoint(run.path, step, GPT2(TINY, seed=step).state_dict(), TINY, 24 * step, LETTERS, resume)
    return run


def test_a_pushed_run_comes_back_as_it_was(run: Run, fake_api: Any, no_hub: Any) -> None:
    done = list(push(uploads(run, also_main=True), REPO))
    assert [(pushed.upload.branch, pushed.written) for pushed in done] == [
        ("step0", True), ("step1", True), ("step100", True), ("main", True)
    ]  # fmt: skip
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}  # and nothing to resume from
    assert all(branch.keys() == files for branch in fake_api.branches.values())
    for branch, content in fake_api.branches.items():
        no_hub.put(REPO, branch, content)
    back = Run.from_hub(REPO, steps=run.steps)
    for step in run.steps:
        for name, weight in run.model(step).state_dict().items():
            assert torch.equal(back.model(step).state_dict()[name], weight)
    assert back.tokenizer().characters == LETTERS.characters


def test_what_transformers_loads_is_what_was_pushed(run: Run, fake_api: Any, tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    list(push(uploads(run, [100]), REPO))
    (tmp_path / "there").mkdir()
    for name, content in fake_api.branches["step100"].items():
        (tmp_path / "there" / name).write_bytes(content)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "there").eval()
    tokens = torch.tensor([[0, 1, 2, 3, 4]])
    torch.testing.assert_close(theirs(tokens).logits, run.model(100)(tokens), atol=1e-5, rtol=1e-5)


def test_a_push_that_was_cut_short_goes_on(run: Run, fake_api: Any) -> None:
    fake_api.fail_at = "step1"
    with pytest.raises(RunError, match=r"pushing to someone/tiny stopped at step 1: the line is dead; the same push goes on"):
        list(push(uploads(run), REPO))
    fake_api.fail_at = None
    assert [pushed.written for pushed in push(uploads(run), REPO)] == [False, True, True]
    assert [pushed.written for pushed in push(uploads(run), REPO)] == [False, False, False]


def test_what_cannot_be_pushed_is_refused_before_anything_is_asked(run: Run, fake_api: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint at step 7"):
        uploads(run, [0, 7])
    with pytest.raises(RunError, match="no checkpoints to push"):
        uploads(create_run(tmp_path / "empty", {"config": {}}))
    with pytest.raises(RunError, match="is no name for a repository"):
        list(push(uploads(run), "a/b/c"))
    weights = run.checkpoint(1) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="has been altered"):
        uploads(run)
    assert fake_api.asked == []


def test_a_shape_that_transformers_lacks_is_pushed_under_its_own_name(tmp_path: Path, fake_api: Any, no_hub: Any) -> None:
    config = GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=5, n_ctx=6, attn_only=True)
    run = create_run(tmp_path / "toy", {"config": {"seed": 5}})
    save_checkpoint(run.path, 3, GPT2(config).state_dict(), config, 0)
    (upload,) = uploads(run)
    assert not upload.for_transformers
    list(push([upload], REPO))
    no_hub.put(REPO, "step3", fake_api.branches["step3"])
    assert Run.from_hub(REPO, steps=[3]).model(3).config == config
