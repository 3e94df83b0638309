"""Making a store, or going on with one: shard after shard, each whole before the manifest names it.

Killed at any moment, the same command goes on: shards that the manifest names are kept, anything else is made again, from
the same batches, so that on the same machine the finished store has the same bytes.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from interp_gpt2.activations.asked import Models, Recording
from interp_gpt2.activations.record import (
    MANIFEST,
    TEXTS,
    Plan,
    Record,
    StoredCheckpoint,
    is_store,
    read_record,
    shard_file,
)
from interp_gpt2.activations.shards import ShardFolder, write_shard
from interp_gpt2.activations.store import ActivationStore
from interp_gpt2.activations.texts import Texts
from interp_gpt2.errors import CheckpointWriteError, StoreError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import weights_sha256
from interp_gpt2.runs.durable import free_bytes, sync_directory, write_file
from interp_gpt2.runs.manifest import TOKENIZER_FILES, FileEntry, entry_of
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.tensor_files import tensor_chunks
from interp_gpt2.runs.writing import LOCK, run_lock

_THREADS = 4


@dataclass(frozen=True)
class Progress:
    """How far it is: rows of all hook points and checkpoints, of how many, and per second since this process began."""

    n_rows: int
    n_rows_in_all: int
    rows_per_s: float
    step: int | None


def silent(progress: Progress) -> None:
    """Shows nothing."""


def create_store(
    directory: Path | str,
    subject: GPT2 | Run,
    texts: Texts,
    recording: Recording,
    steps: Iterable[int] | None = None,
    progress: Callable[[Progress], None] = silent,
) -> ActivationStore:
    """The activations of a model, or of the models of a run at `steps` (None: all), on texts; every file with its SHA-256.

    Goes on where an earlier call was interrupted, adds checkpoints to a store that has others, and makes shards again whose
    files were deleted. Raises StoreError if the store is of other models, texts, hook points or another dtype, or holds other
    files; RunError if somebody else is writing it; CheckpointWriteError if the disk is full or refuses: what the manifest
    names is kept.
    """
    directory = Path(directory).expanduser()
    models = Models.of(subject, steps, texts, recording)
    plan = recording.plan(models.config, texts, models.computed_in)
    _refuse_other_files(directory)
    record = _begun(directory, plan, models)
    needed = _bytes_to_come(record, models.steps)
    with _disk_errors(directory, needed):
        directory.mkdir(parents=True, exist_ok=True)
        _check_disk(directory, needed)
    with run_lock(directory):
        record = _begun(directory, plan, models)  # again: its writer may have gone on meanwhile
        writer = _Writer(directory, models, texts, progress)
        with _disk_errors(directory, needed):
            record = writer.prepared(record)
            for step in models.steps:
                record = writer.write(record, step)
    return ActivationStore(directory, partial=True)


def _begun(directory: Path, plan: Plan, models: Models) -> Record:
    """The record to go on from, with the checkpoints that are asked for now among those that it knows."""
    asked = {step: StoredCheckpoint(step, sha256) for step, sha256 in models.hashes.items()}
    if not is_store(directory):
        return Record(plan, tuple(asked.values()), {})
    record = read_record(directory)
    plan.check_same(record.plan, directory)
    known = {checkpoint.step: checkpoint for checkpoint in record.checkpoints}
    for step, checkpoint in asked.items():
        if step in known and known[step].sha256 != checkpoint.sha256:
            raise StoreError(
                f"{directory} holds activations of another model: {checkpoint.called} is {known[step].sha256[:16]}... there and "
                f"{checkpoint.sha256[:16]}... here; choose another directory"
            )
    if (None in known) != (None in asked):
        raise StoreError(
            f"{directory} is of {'one model' if None in known else 'a run'}, not of {'a run' if None in known else 'one model'}"
        )
    union = known | {step: checkpoint for step, checkpoint in asked.items() if step not in known}
    return replace(
        record, checkpoints=tuple(union[step] for step in sorted(union, key=lambda step: -1 if step is None else step))
    )


def _refuse_other_files(directory: Path) -> None:
    if is_store(directory) or not directory.is_dir():
        return
    ours = (TEXTS, LOCK, *TOKENIZER_FILES)  # what a writer that was killed before its first manifest leaves
    others = sorted(path.name for path in directory.iterdir() if path.name not in ours and not path.name.endswith(".tmp"))
    if others:
        raise StoreError(f"{directory} holds other files ({', '.join(others[:3])}); choose a new or empty directory")


def _bytes_to_come(record: Record, steps: list[int | None]) -> int:
    plan, wanted = record.plan, [each for each in record.checkpoints if each.step in steps]
    return sum(
        plan.shard_bytes(name, shard)
        for checkpoint in wanted
        for shard in range(len(checkpoint.shards), plan.n_shards)
        for name in plan.hook_points
    )


def _check_disk(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise CheckpointWriteError(
            f"the activations to come in {directory} need {needed:,} bytes and {free:,} are free; store fewer hook points, "
            "tokens or checkpoints, a narrower dtype, or choose a directory on another disk"
        )


@contextmanager
def _disk_errors(directory: Path, needed: int) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # not the disk's: whoever read what is printed has left
        raise
    except OSError as error:
        done = f" ({read_record(directory).shards_done} shards so far)" if is_store(directory) else ""
        raise CheckpointWriteError(
            f"{error.filename or directory} could not be written: {error.strerror or error} (at most {needed:,} bytes needed, "
            f"{free_bytes(directory)} free); what {MANIFEST} in {directory} names is kept{done}, and the same command goes on"
        ) from error


class _Writer:
    """For the holder of the lock."""

    def __init__(self, directory: Path, models: Models, texts: Texts, progress: Callable[[Progress], None]) -> None:
        self.directory, self.models, self.texts, self.progress = directory, models, texts, progress
        self.began, self.made = time.perf_counter(), 0

    def prepared(self, record: Record) -> Record:
        """The texts and the tokenizer are there, and nothing that a killed writer left."""
        for path in self.directory.glob("*/.*.tmp"):
            path.unlink()
        for checkpoint in record.checkpoints:
            self._sweep(record, checkpoint)
        if not record.files or not all((self.directory / name).is_file() for name in record.files):
            record = replace(record, files=self._texts())
        if not is_store(self.directory) or read_record(self.directory) != record:
            record.write(self.directory)
        return record

    def _texts(self) -> dict[str, FileEntry]:
        """Write the texts and their tokenizer."""
        (self.directory / TEXTS).unlink(missing_ok=True)
        files = {TEXTS: write_file(self.directory / TEXTS, tensor_chunks(self.texts.columns))}
        if self.texts.tokenizer is not None:
            self.texts.tokenizer.save(self.directory)
            files |= {name: entry_of((self.directory / name).read_bytes()) for name in TOKENIZER_FILES}
        return files

    def _sweep(self, record: Record, checkpoint: StoredCheckpoint) -> None:
        """Delete shards that a killed writer finished and could not enter into the manifest."""
        named = {
            shard_file(checkpoint, name, shard) for shard in range(len(checkpoint.shards)) for name in record.plan.hook_points
        }
        folder = self.directory / checkpoint.folder
        for path in folder.glob("*.safetensors") if folder.is_dir() else ():
            if f"{checkpoint.folder}/{path.name}" not in named:
                path.unlink()

    def write(self, record: Record, step: int | None) -> Record:
        """Every shard of one checkpoint that is not there."""
        plan = record.plan
        checkpoint = next(each for each in record.checkpoints if each.step == step)
        missing = [number for number in range(plan.n_shards) if not self._is_there(plan, checkpoint, number)]
        if not missing:
            return record
        model, path = self.models.load(step), self.directory / checkpoint.folder
        if not any(path.glob("*.safetensors")):  # nothing to go on with, or deleted on purpose
            checkpoint = StoredCheckpoint(step, checkpoint.sha256)
        checkpoint = self._checked(checkpoint, model)
        if not path.is_dir():
            path.mkdir()
            sync_directory(self.directory)
        self._show(record, step)
        with ThreadPoolExecutor(min(_THREADS, len(plan.hook_points))) as threads:
            folder = ShardFolder(self.directory, checkpoint, threads)
            for number in missing:
                hashes = write_shard(model, self.texts, plan, number, folder)
                if number < len(checkpoint.shards):
                    self._check_again(checkpoint, number, hashes)
                else:
                    checkpoint = replace(checkpoint, shards=(*checkpoint.shards, hashes))
                    record = record.with_checkpoint(checkpoint)
                    record.write(self.directory)
                self.made += plan.shard_rows[number]
                self._show(record, step)
        return record

    def _is_there(self, plan: Plan, checkpoint: StoredCheckpoint, number: int) -> bool:
        files = (self.directory / shard_file(checkpoint, name, number) for name in plan.hook_points)
        return number < len(checkpoint.shards) and all(path.is_file() for path in files)

    def _checked(self, checkpoint: StoredCheckpoint, model: GPT2) -> StoredCheckpoint:
        found = weights_sha256(model.state_dict(), model.config)
        if checkpoint.weights_sha256 not in (None, found):
            raise StoreError(
                f"{self.directory} was begun with other weights at {checkpoint.called} ({checkpoint.weights_sha256[:16]}..., now "
                f"{found[:16]}...)"
            )
        return replace(checkpoint, weights_sha256=found)

    def _check_again(self, checkpoint: StoredCheckpoint, number: int, hashes: tuple[str, ...]) -> None:
        if hashes != checkpoint.shards[number]:
            raise StoreError(
                f"shard {number} of {checkpoint.called} was made again, and is not what it was: another version of torch, other "
                f"threads or another machine; delete {self.directory / checkpoint.folder} and begin it anew"
            )

    def _show(self, record: Record, step: int | None) -> None:
        n_rows = sum(sum(record.plan.shard_rows[: len(each.shards)]) for each in record.checkpoints)
        per_s = self.made / max(time.perf_counter() - self.began, 1e-9)
        self.progress(Progress(n_rows, record.plan.n_rows * len(record.checkpoints), per_s, step))
