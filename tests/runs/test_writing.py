"""What a trainer does to a run's directory: make it, lock it, rewind it, save space in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointWriteError, RunError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import ResumeState, load_resume, load_weights, save_checkpoint, verify_checkpoint
from interp_gpt2.runs.metrics import append_metrics
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import create_run, keep_resumable, rewind, run_lock
from interp_gpt2.tokenizers import CharTokenizer

TINY = GPT2Config(n_layers=1, n_heads=2, d_model=4, d_vocab=5, n_ctx=6)
TOKENIZER = CharTokenizer("abcde")
RESUME = ResumeState({"m": torch.zeros(3)}, {"lr": 0.1})


def add_step(run: Run, step: int, resume: ResumeState | None = RESUME) -> Path:
    return save_checkpoint(run.path, step, GPT2(TINY, seed=step).state_dict(), TINY, step, TOKENIZER, resume)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path / "run", {"config": {"seed": 0}}, TOKENIZER)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_directory_with_anything_in_it_is_not_taken(run: Run, tmp_path: Path) -> None:
    before = contents(run.path)
    with pytest.raises(RunError, match=r"--resume.*--overwrite"):
        create_run(run.path, {})
    assert contents(run.path) == before
    (tmp_path / "empty").mkdir()
    create_run(tmp_path / "empty", {})


def test_what_does_not_look_like_a_run_is_never_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("irreplaceable")
    for record in (None, "{}", '{"format": "something else"}', "not JSON"):
        if record is not None:
            (folder / "run.json").write_text(record)
        before = contents(folder)
        for overwrite in (False, True):
            with pytest.raises(RunError):
                create_run(folder, {}, overwrite=overwrite)
        assert contents(folder) == before


def test_overwriting_replaces_the_run_and_leaves_what_is_not_part_of_it(run: Run) -> None:
    add_step(run, 1)
    append_metrics(run.path, {"step": 1})
    (run.path / "report.html").write_text("of the old run")
    (run.path / "tensorboard").mkdir()
    (run.path / "notes.txt").write_text("mine")
    new = create_run(run.path, {"config": {"seed": 9}}, CharTokenizer("xyz"), overwrite=True)
    assert (new.seed, new.steps, new.metrics(), new.tokenizer().characters) == (9, [], [], ("x", "y", "z"))
    assert sorted(path.name for path in run.path.iterdir() if not path.name.startswith(".")) == [
        "notes.txt",
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_settings_that_are_not_json_make_no_run(tmp_path: Path) -> None:
    for settings in ({"x": float("nan")}, {"x": object()}, {"format": "mine"}):
        with pytest.raises(RunError):
            create_run(tmp_path / "run", settings)
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------ lock


def test_a_second_writer_is_refused_by_name(run: Run) -> None:
    with run_lock(run.path):
        holder = json.loads((run.path / ".lock").read_text())
        for attempt in (lambda: run_lock(run.path).__enter__(), lambda: create_run(run.path, {}, overwrite=True)):
            with pytest.raises(RunError, match=f"process {os.getpid()} on {holder['host']} since {holder['started'][:4]}"):
                attempt()
    with run_lock(run.path):
        pass


def test_a_lock_that_cannot_be_made_is_an_error_of_files(run: Run) -> None:
    (run.path / ".lock").mkdir()
    with pytest.raises(CheckpointWriteError, match=r"\.lock could not be written"), run_lock(run.path):
        pass


def test_a_writer_in_another_process_is_refused_and_the_lock_dies_with_its_holder(run: Run) -> None:
    code = (
        "import sys\nfrom interp_gpt2.runs.writing import run_lock\n"
        f"with run_lock({str(run.path)!r}):\n print('locked', flush=True)\n sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=f"process {holder.pid} on"), run_lock(run.path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with run_lock(run.path):
        pass


def test_the_lock_sweeps_what_killed_writers_left(run: Run) -> None:
    (run.path / ".tmp-0123").mkdir()
    (run.path / ".tmp-0123" / "model.safetensors").write_bytes(b"half")
    step_dir = add_step(run, 1)
    for path in (run.path / ".metrics.jsonl.x.tmp", step_dir / ".manifest.json.x.tmp"):
        path.write_bytes(b"half")
    before = contents(step_dir)
    with run_lock(run.path):
        left = {name for name in contents(run.path) if "tmp" in name}
    assert not left
    assert contents(step_dir) == {name: data for name, data in before.items() if not name.startswith(".")}


# ---------------------------------------------------------------------------------------------- rewind, retention


def test_rewinding_makes_a_step_the_last_one(run: Run) -> None:
    for step in (10, 20, 30, 40):
        add_step(run, step)
        append_metrics(run.path, {"step": step})
    path = run.checkpoint(40) / "config.json"
    path.write_bytes(path.read_bytes()[:-3])
    rewound = rewind(run, 20)
    assert run.steps == [10, 20]
    assert [row["step"] for row in run.metrics()] == [10, 20]
    assert rewound.removed == (30,)
    assert [aside.name for aside in rewound.refused] == ["refused-step-00000040"]
    assert (rewound.refused[0] / "model.safetensors").is_file()  # for whoever wants to look at it
    add_step(run, 40)
    (run.checkpoint(40) / "config.json").write_bytes(b"")
    assert [aside.name for aside in rewind(run, 20).refused] == ["refused-step-00000040-2"]
    with pytest.raises(RunError, match="no checkpoint at step 15"):
        rewind(run, 15)


def test_resume_files_stay_in_the_last_two_and_at_anchors(run: Run) -> None:
    for step in (0, 10, 20, 30, 40):
        add_step(run, step)
    add_step(run, 50, resume=None)
    freed = keep_resumable(run, anchors={10})
    assert [step for step in run.steps if (run.checkpoint(step) / "optimizer.safetensors").exists()] == [10, 30, 40]
    assert freed == sum((run.checkpoint(10) / name).stat().st_size for name in ("optimizer.safetensors", "trainer.json")) * 2
    for step in run.steps:
        load_weights(run.checkpoint(step))
    assert load_resume(run.checkpoint(40)).trainer == RESUME.trainer
    assert keep_resumable(run, anchors={10}) == 0


def test_retention_leaves_a_damaged_checkpoint_to_be_refused_by_name(run: Run) -> None:
    for step in (0, 10, 20):
        add_step(run, step)
    (run.checkpoint(0) / "manifest.json").write_bytes(b"{}")
    assert keep_resumable(run, anchors=(), rolling=1) > 0
    assert not verify_checkpoint(run.checkpoint(10)).can_resume
    assert (run.checkpoint(0) / "optimizer.safetensors").exists()
