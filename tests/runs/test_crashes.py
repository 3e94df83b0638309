"""Writers that are killed, run out of disk, or meet an error at any system call never leave half a checkpoint in sight."""

import contextlib
import errno
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointWriteError
from interp_gpt2.hf_format import our_shapes
from interp_gpt2.runs.checkpoint import ResumeState, load_weights, save_checkpoint, verify_checkpoint
from interp_gpt2.runs.manifest import step_of_name
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import create_run, run_lock
from interp_gpt2.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer("abcde")
TINY = GPT2Config(n_layers=1, n_heads=2, d_model=4, d_vocab=5, n_ctx=6)
LARGER = GPT2Config(n_layers=2, n_heads=2, d_model=128, d_vocab=64, n_ctx=64)  # 1.6 MB, and 3.2 MB with moments


def state_at(step: int, config: GPT2Config) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, float(step)) for name, shape in our_shapes(config).items()}


def visible_steps(run_dir: Path) -> list[int]:
    return sorted(step for path in run_dir.iterdir() if (step := step_of_name(path.name)) is not None)


def write_for_ever(run_dir: Path, acknowledged: Any) -> None:
    torch.set_num_threads(1)
    with run_lock(run_dir):
        step = max(visible_steps(run_dir), default=-1) + 1
        while True:
            state = state_at(step, LARGER)
            save_checkpoint(run_dir, step, state, LARGER, step, TOKENIZER, ResumeState(state, {"step": step}))
            acknowledged.value = step
            step += 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # forking is what makes 50 writers affordable
def test_kill_9_at_50_random_moments_leaves_no_half_checkpoint_and_loses_none(tmp_path: Path) -> None:
    run_dir = create_run(tmp_path / "run", {}, TOKENIZER).path
    context, draw = multiprocessing.get_context("fork"), random.Random(0)
    in_the_middle = 0
    for _ in range(50):
        acknowledged = context.Value("q", -1)
        first = max(visible_steps(run_dir), default=-1) + 1
        writer = context.Process(target=write_for_ever, args=(run_dir, acknowledged))
        writer.start()
        deadline = time.monotonic() + 60
        while acknowledged.value < first and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        in_the_middle += any(run_dir.glob(".tmp-*"))
        steps = visible_steps(run_dir)
        assert steps == list(range(len(steps)))
        assert steps[-1] >= acknowledged.value >= first  # what the writer was told is on disk is there
        for step in steps[first:]:
            config, state = load_weights(run_dir / f"step-{step:08d}")
            assert config == LARGER
            assert all((tensor == step).all() for tensor in state.values())
    assert in_the_middle >= 13  # else the kills prove nothing
    with run_lock(run_dir):  # free again, and sweeps
        assert not list(run_dir.glob(".tmp-*"))


# Every system call is made to fail in turn, until a save needs fewer calls than that.


class FailAt:
    """Makes the k-th call among os.mkdir, open, write, fsync, rename fail."""

    CALLS = ("mkdir", "open", "write", "fsync", "rename", "replace")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, k: int, code: int) -> None:
        self.count, self.k, self.code, self.failed = 0, k, code, ""
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def maybe_failing(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and "dir_fd" in kwargs:  # shutil.rmtree, which tidies up after the failure
                return call(*args, **kwargs)
            self.count += 1
            if self.count == self.k:
                self.failed = name
                raise OSError(self.code, os.strerror(self.code))
            return call(*args, **kwargs)

        return maybe_failing


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=lambda code: errno.errorcode[code])
def test_whichever_system_call_fails_the_error_is_named_and_earlier_checkpoints_load(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TOKENIZER.save(tmp_path)  # makes what it saves, so that only the saving is left to fail
    resume = ResumeState(state_at(0, TINY), {})
    earlier = save_checkpoint(tmp_path / "run", 1, state_at(1, TINY), TINY, 1, TOKENIZER, resume)
    for k in range(1, 200):
        step = 1 + k
        with monkeypatch.context() as patched:
            failing = FailAt(patched, k, code)
            outcome = save_or_refusal(tmp_path / "run", step, resume)
        verify_checkpoint(earlier)
        for visible in visible_steps(tmp_path / "run"):
            verify_checkpoint(tmp_path / "run" / f"step-{visible:08d}")
        assert not list((tmp_path / "run").glob(".tmp-*"))
        if failing.count < k:
            break
        if outcome == "saved":  # failing to make a directory that is there already does not matter
            assert failing.failed == "mkdir"
        else:
            assert f"step-{step:08d}" in outcome
            assert os.strerror(code) in outcome
            assert "bytes needed" in outcome
    assert outcome == "saved"
    assert k > 20


def save_or_refusal(run_dir: Path, step: int, resume: ResumeState) -> str:
    try:
        save_checkpoint(run_dir, step, state_at(step, TINY), TINY, step, TOKENIZER, resume)
    except CheckpointWriteError as error:
        return str(error)
    return "saved"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks Linux which file a descriptor is of")
def test_every_file_is_forced_to_disk_before_the_directory_has_its_name_and_the_name_before_anybody_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def forcing(fd: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    def renaming(source: Path, target: Path) -> None:
        done.append(f"{Path(source).name} -> {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", forcing)
    monkeypatch.setattr(os, "rename", renaming)
    path = save_checkpoint(tmp_path / "run", 1, state_at(1, TINY), TINY, 1, TOKENIZER, ResumeState(state_at(1, TINY), {}))
    *before, name, parent = done
    assert name.endswith("-> step-00000001")
    assert parent == "run"
    assert {file.name for file in path.iterdir()} <= set(before)
    assert before[-1] == name.split(" -> ")[0], "the directory itself, when everything is in it"


def test_a_write_that_takes_only_some_bytes_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:1000])))
        save_checkpoint(tmp_path, 1, state_at(1, TINY), TINY, 1)
    load_weights(tmp_path / "step-00000001")


def test_a_file_size_limit_is_an_error_like_a_full_disk(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state_at(1, LARGER), LARGER, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(CheckpointWriteError, match=r"File too large.*1,\d+,\d+ bytes needed"):
            save_checkpoint(tmp_path, 2, state_at(2, LARGER), LARGER, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["step-00000001"]
    load_weights(tmp_path / "step-00000001")


def test_ctrl_c_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(fd: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 1, state_at(1, TINY), TINY, 1)
    assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"a file in the way")
    with pytest.raises(CheckpointWriteError, match="run/step-00000001 could not be written"):
        save_checkpoint(tmp_path / "run", 1, state_at(1, TINY), TINY, 1)


def test_two_writers_without_a_lock_cannot_mix_their_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp_gpt2.runs import durable

    real, raced = durable.sync_directory, []

    def just_before_the_rename(path: Path) -> None:
        if not raced:
            raced.append(True)
            save_checkpoint(tmp_path, 1, state_at(7, TINY), TINY, 7)
        real(path)

    monkeypatch.setattr(durable, "sync_directory", just_before_the_rename)
    with pytest.raises(CheckpointWriteError, match="step-00000001"):
        save_checkpoint(tmp_path, 1, state_at(1, TINY), TINY, 1)
    assert all((tensor == 7).all() for tensor in load_weights(tmp_path / "step-00000001")[1].values())
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_a_run_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TOKENIZER.save(tmp_path / "elsewhere")
    for k in range(1, 100):
        with monkeypatch.context() as patched:
            failing = FailAt(patched, k, errno.ENOSPC)
            with contextlib.suppress(CheckpointWriteError):
                create_run(tmp_path / f"run-{k}", {}, TOKENIZER)
        if (tmp_path / f"run-{k}").exists():
            assert Run(tmp_path / f"run-{k}").tokenizer().characters == TOKENIZER.characters
        if failing.count < k:
            break
    assert k > 8
    assert not list(tmp_path.glob(".tmp-*"))
