"""Writers of activation stores that are killed, refused or raced leave whole shards, and the same bytes in the end."""

import contextlib
import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from interp_gpt2.activations.creating import Progress, Recording, create_store
from interp_gpt2.activations.record import MANIFEST, read_record
from interp_gpt2.activations.store import ActivationStore
from interp_gpt2.activations.texts import Texts
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError, CheckpointWriteError, RunError, StoreError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import save_checkpoint
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import run_lock

FORK = multiprocessing.get_context("fork")
SHAPE = GPT2Config(n_layers=1, n_heads=2, d_model=16, d_vocab=20, n_ctx=8)
RECORDING = Recording(["embed", "*attn.z", "*resid_post"], batch_size=2, shard_bytes=1000)


def model() -> GPT2:
    return GPT2(SHAPE).eval()


def texts(n: int = 60) -> Texts:
    return Texts.of(torch.randint(0, 20, (n, 8), generator=torch.Generator().manual_seed(0)))


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the lock, by its path."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def write(directory: Path) -> None:
    torch.set_num_threads(1)
    create_store(directory, model(), texts(), RECORDING)
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kill_9_at_random_moments_leaves_whole_shards_and_in_the_end_the_same_bytes(tmp_path: Path) -> None:
    whole = create_store(tmp_path / "whole", model(), texts(), RECORDING)
    directory, draw = tmp_path / "killed", random.Random(0)
    kills = seen = 0
    while kills < 15:
        writer = FORK.Process(target=write, args=(directory,))
        writer.start()
        time.sleep(draw.uniform(0.01, 0.08))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        kills += 1
        if not (directory / MANIFEST).is_file():
            continue
        store = ActivationStore(directory, partial=True)
        assert store.damage() == []
        done = len(store["embed"]) if store.record.shards_done else 0
        assert done >= seen
        if done:
            assert torch.equal(store["embed"][:], whole["embed"][:done])
        seen = done
        if store.complete:
            assert contents(directory) == contents(tmp_path / "whole")
            shutil.rmtree(directory)
            seen = 0
    create_store(directory, model(), texts(), RECORDING)
    assert contents(directory) == contents(tmp_path / "whole")


def test_a_store_that_is_not_finished_is_read_only_when_told_so(tmp_path: Path) -> None:
    class Stop(RuntimeError):
        pass

    def stop(progress) -> None:
        if progress.n_rows >= 64:
            raise Stop

    with pytest.raises(Stop):
        create_store(tmp_path / "s", model(), texts(), RECORDING, progress=stop)
    with pytest.raises(StoreError, match=r"is not finished: \d+ of 30 shards are there; the command that began it goes on"):
        ActivationStore(tmp_path / "s")
    partly = ActivationStore(tmp_path / "s", partial=True)
    assert not partly.complete
    assert len(partly["embed"]) == 64 < len(partly)
    with pytest.raises(StoreError, match="its rows are 0 to 63 so far, of 480"):
        partly["embed"][64]
    finished = create_store(tmp_path / "s", model(), texts(), RECORDING)
    whole = create_store(tmp_path / "whole", model(), texts(), RECORDING)
    assert finished.complete
    assert contents(tmp_path / "s") == contents(whole.path)


class FailAt:
    """Makes the k-th call among os.mkdir, open, write, fsync, replace fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, k: int, code: int) -> None:
        self.count, self.k, self.code, self.lock = 0, k, code, threading.Lock()
        for name in ("mkdir", "open", "write", "fsync", "replace"):
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))

    def wrapped(self, call):
        def maybe_failing(*args, **kwargs):
            with self.lock:
                self.count += 1
                fails = self.count == self.k
            if fails:
                raise OSError(self.code, os.strerror(self.code))
            return call(*args, **kwargs)

        return maybe_failing


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=lambda code: errno.errorcode[code])
def test_whichever_system_call_fails_what_was_finished_is_kept(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, recording = texts(4), Recording(["embed", "*resid_post"], batch_size=2, shard_bytes=1)
    expected = contents(create_store(tmp_path / "whole", model(), few, recording).path)
    subject = model()
    refused = 0
    for k in range(1, 200):
        directory = tmp_path / f"{k}"
        said = ""
        with monkeypatch.context() as patched:
            failing = FailAt(patched, k, code)
            try:
                create_store(directory, subject, few, recording)
            except (CheckpointWriteError, CheckpointError) as error:  # the latter where the manifest could not be read
                said = str(error)
        refused += bool(said)
        if said:
            assert os.strerror(code) in said
            assert any(words in said for words in ("the same command goes on", ".lock", "manifest.json cannot be read"))
        if failing.count < k:
            break
        assert not list(directory.rglob(".*.tmp"))
        if (directory / MANIFEST).is_file():
            assert ActivationStore(directory, partial=True).damage() == []
        if k % 4 == 0:
            create_store(directory, subject, few, recording)
            assert contents(directory) == expected
    assert refused > 30
    assert failing.count < k, "every call was tried"


def test_a_disk_that_fills_up_is_named_and_the_store_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the texts fit, a shard does not."""
    big = Recording(["embed"], "float32", batch_size=20, shard_bytes=10**6)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
        with pytest.raises(CheckpointWriteError, match=r"File too large \(at most [\d,]+ bytes needed, [\d,]+ free\).*goes on"):
            create_store(tmp_path / "s", model(), texts(), big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "s").rglob("*.safetensors.*"))
    assert create_store(tmp_path / "s", model(), texts(), big).damage() == []


def test_what_does_not_fit_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(CheckpointWriteError, match=r"need [\d,]+ bytes and 1,000 are free; store fewer hook points"):
        create_store(tmp_path / "s", model(), texts(), RECORDING)
    assert not list((tmp_path / "s").iterdir())


def test_a_second_writer_is_refused_naming_the_first(tmp_path: Path) -> None:
    create_store(tmp_path / "s", model(), texts(), RECORDING)
    with run_lock(tmp_path / "s"), pytest.raises(RunError, match=f"is being written by process {os.getpid()}"):
        create_store(tmp_path / "s", model(), texts(), RECORDING)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_readers_beside_a_writer_never_see_half_a_shard(tmp_path: Path) -> None:
    expected = create_store(tmp_path / "whole", model(), texts(), RECORDING)["resid_post", 0][:]
    reads = torn = 0
    for trial in range(3):
        directory = tmp_path / f"{trial}"
        writer = FORK.Process(target=write, args=(directory,))
        writer.start()
        while writer.is_alive():
            with contextlib.suppress(StoreError):  # there is no manifest yet
                rows = ActivationStore(directory, partial=True)["resid_post", 0]
                if rows.shards:
                    reads += 1
                    torn += not torch.equal(rows[:], expected[: len(rows)])
        writer.join()
    assert (torn, reads > 10) == (0, True)


def test_shards_that_were_deleted_are_made_again_to_the_byte(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s", model(), texts(), RECORDING)
    before = contents(store.path)
    (store.path / "model" / "blocks.0.attn.z-00003.safetensors").unlink()
    (store.path / "model" / "stray-00003.safetensors").write_text("left by a killed writer")
    create_store(store.path, model(), texts(), RECORDING)
    assert contents(store.path) == before
    shutil.rmtree(store.path / "model")
    create_store(store.path, model(), texts(), RECORDING)
    assert contents(store.path) == before


def test_checkpoints_are_added_to_those_that_are_there(markov_run: Run, tmp_path: Path) -> None:
    of = Texts.from_source(markov_run.source(), 16, 64)
    recording = Recording("*attn.z")
    at_once = create_store(tmp_path / "at once", markov_run, of, recording, [0, 4, 9])
    create_store(tmp_path / "s", markov_run, of, recording, [9, 0])
    grown = create_store(tmp_path / "s", markov_run, of, recording, [4])
    assert grown.steps == [0, 4, 9]
    assert contents(grown.path) == contents(at_once.path)
    with pytest.raises(StoreError, match="is of a run, not of one model"):
        create_store(tmp_path / "s", markov_run.model(), of, recording)


def test_a_checkpoint_that_is_replaced_meanwhile_is_not_stored_under_the_name_of_the_one_before(
    markov_run: Run, tmp_path: Path
) -> None:
    run = Run(shutil.copytree(markov_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("sweeps")))
    of, state = Texts.from_source(run.source(), 16, 64), run.model(3).state_dict()

    def replaced(progress: Progress) -> None:
        if progress.step == 0 and run.checkpoint_hash(9) == markov_run.checkpoint_hash(9):
            shutil.rmtree(run.checkpoint(9))
            save_checkpoint(run.path, 9, state, run.config, 0, run.tokenizer())

    with pytest.raises(StoreError, match="step 9 of run was replaced while it was to be stored"):
        create_store(tmp_path / "s", run, of, Recording("embed"), [0, 9], replaced)
    assert ActivationStore(tmp_path / "s", partial=True).damage() == []
    assert [len(each.shards) for each in read_record(tmp_path / "s").checkpoints] == [1, 0]


def test_a_checkpoint_that_is_another_now_is_refused_with_both_hashes(markov_run: Run, tmp_path: Path) -> None:
    of = Texts.from_source(markov_run.source(), 16, 64)
    create_store(tmp_path / "s", markov_run, of, Recording("embed"), [0, 9])
    shutil.copytree(markov_run.path, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "step-00000009")
    state = markov_run.model(3).state_dict()
    save_checkpoint(tmp_path / "other", 9, state, markov_run.config, 0, markov_run.tokenizer())
    with pytest.raises(StoreError, match=r"another model: step 9 is \w{16}\.\.\. there and \w{16}\.\.\. here"):
        create_store(tmp_path / "s", Run(tmp_path / "other"), of, Recording("embed"), [0, 9])
    assert read_record(tmp_path / "s").complete
