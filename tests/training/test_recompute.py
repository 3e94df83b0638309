"""Any step again, bit for bit, or a refusal that names what differs."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import DataError, RunError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import load_weights, save_checkpoint
from interp_gpt2.runs.manifest import HF_WEIGHTS, read_manifest
from interp_gpt2.runs.run import Run
from interp_gpt2.training import recompute as module
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.events import Event, Logged
from interp_gpt2.training.loop import train

CONFIG = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=1, n_heads=2, d_model=16, n_ctx=8, dropout=0.1),
    n_steps=20,
    batch_size=4,
    micro_batch=3,
    lr=1e-2,
    warmup_steps=3,
    log_every=1,
    eval_every=10,
    threads=1,
    guard_z=1.5,
    guard_window=4,
    checkpoints=Checkpoints(per_doubling=0, at=(7,), resume_every=100, anchors=4),
)


@pytest.fixture(scope="module")
def every_step(tmp_path_factory) -> Run:
    """The same training with a checkpoint at each step."""
    return train(replace(CONFIG, checkpoints=Checkpoints(every=1)), tmp_path_factory.mktemp("whole") / "run")


def sha256_as_saved(model: GPT2, folder: Path) -> str:
    """Of the weights' file, were the model saved."""
    state = model.state_dict()
    return read_manifest(save_checkpoint(folder, 0, state, model.config, 0)).files[HF_WEIGHTS].sha256


def stored_sha256(run: Run, step: int) -> str:
    return read_manifest(run.checkpoint(step)).files[HF_WEIGHTS].sha256


def contents(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_every_step_is_that_of_the_uninterrupted_run_stored_or_not_and_nothing_is_written(tmp_path, every_step):
    run = train(CONFIG, tmp_path / "run")
    assert run.steps == [0, 5, 7, 10, 15, 20]
    before = contents(run.path)
    for step in range(21):
        model = run.recompute(step)
        assert not model.training
        assert sha256_as_saved(model, tmp_path / str(step)) == stored_sha256(every_step, step)
        if step in run.steps:
            assert stored_sha256(run, step) == stored_sha256(every_step, step)
    assert contents(run.path) == before


def test_it_begins_at_the_nearest_anchor_before_the_step(tmp_path, monkeypatch):
    run = train(CONFIG, tmp_path / "run")
    made = []
    real = module._repeat
    monkeypatch.setattr(module, "_repeat", lambda updates, step, *rest: made.append(step) or real(updates, step, *rest))
    for step, updates in ((9, [5, 6, 7, 8]), (10, [5, 6, 7, 8, 9]), (11, [10]), (3, [0, 1, 2]), (0, [])):
        made.clear()
        run.recompute(step)
        assert made == updates


def test_without_anchors_or_with_a_damaged_one_it_begins_earlier_and_ends_the_same(tmp_path, every_step):
    run = train(CONFIG, tmp_path / "run")
    (run.checkpoint(15) / "optimizer.safetensors").write_bytes(b"")
    assert sha256_as_saved(run.recompute(18), tmp_path / "a") == stored_sha256(every_step, 18)
    bare = train(replace(CONFIG, checkpoints=replace(CONFIG.checkpoints, anchors=0)), tmp_path / "bare")
    assert bare.steps == [0, 7, 20]
    assert sha256_as_saved(bare.recompute(18), tmp_path / "b") == stored_sha256(every_step, 18)


def test_the_callers_random_numbers_and_threads_are_left_alone(tmp_path):
    run = train(CONFIG, tmp_path / "run")
    torch.manual_seed(1)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(1)
    run.recompute(3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("field", ["torch", "device", "threads", "processes", "interp_gpt2"])
def test_on_another_fingerprint_it_refuses_and_names_what_differs(tmp_path, every_step, field):
    run = train(CONFIG, tmp_path / "run")
    settings = run.settings
    settings["fingerprint"][field] = "another"
    (run.path / "run.json").write_text(json.dumps(settings))
    with pytest.raises(RunError, match=rf"from step 0 on: {field} was 'another' and is .*anyway=True"):
        run.recompute(3)
    assert sha256_as_saved(run.recompute(3, anyway=True), tmp_path / "a") == stored_sha256(every_step, 3)


def test_what_does_not_meet_a_stored_checkpoint_is_refused(tmp_path, monkeypatch):
    run = train(CONFIG, tmp_path / "run")
    lr = module.Updates.__call__.__globals__["learning_rate"]
    monkeypatch.setitem(module.Updates.__call__.__globals__, "learning_rate", lambda config, step: lr(config, step) * 1.0001)
    with pytest.raises(RunError, match=r"step 7 of .* is not the checkpoint stored there"):
        run.recompute(9)
    run.recompute(6)  # there is nothing to hold it against
    run.recompute(9, anyway=True)


def test_a_run_that_grew_was_trained_along_one_cosine_and_then_another(tmp_path):
    """A step before the growth is the shorter run's, one after it the grown one's."""
    shorter = replace(CONFIG, n_steps=10)
    short = train(replace(shorter, checkpoints=Checkpoints(every=1)), tmp_path / "short")
    run = train(shorter, tmp_path / "run")
    grown = train(replace(shorter, checkpoints=Checkpoints(every=1)), tmp_path / "grown")
    train(CONFIG, run.path, resume=True)
    train(replace(CONFIG, checkpoints=Checkpoints(every=1)), grown.path, resume=True)
    assert stored_sha256(run, 20) == stored_sha256(grown, 20)
    for step in (4, 9):
        assert sha256_as_saved(run.recompute(step), tmp_path / str(step)) == stored_sha256(short, step)
    for step in (13, 18):
        assert sha256_as_saved(run.recompute(step), tmp_path / str(step)) == stored_sha256(grown, step)


def test_only_the_machine_that_made_the_steps_in_question_matters(tmp_path):
    def killed(event: Event) -> None:
        if isinstance(event, Logged) and event.step == 12:
            raise MemoryError

    with pytest.raises(MemoryError):
        train(CONFIG, tmp_path / "run", progress=killed)
    run = train(replace(CONFIG, threads=2), tmp_path / "run", resume=True)  # from 10 on
    settings = run.settings
    settings["config"]["threads"] = 1  # as on a machine with one core
    (run.path / "run.json").write_text(json.dumps(settings))
    assert load_weights(run.checkpoint(10))[1]["wte.weight"].equal(run.recompute(10).wte.weight)
    with pytest.raises(RunError, match="from step 10 on: threads was 2 and is 1"):
        run.recompute(12)


def test_steps_a_run_does_not_have_and_data_that_has_changed_are_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("to be or not to be\n" * 50)
    run = train(replace(CONFIG, data=str(text)), tmp_path / "run")
    for step in (-1, 21, 2.0, True):
        with pytest.raises(RunError, match=r"has no step .*; its steps are 0 to 20"):
            run.recompute(step)
    text.write_text("to be or not to beg\n" * 50)
    with pytest.raises(DataError, match=r"is not what run was trained on: sha256 is \w+\.\.\., was \w+\.\.\.$"):
        run.recompute(3)
