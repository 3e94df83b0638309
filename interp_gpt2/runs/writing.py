"""What only the process that trains a run does to its directory: make it, lock it, rewind it, save space in it."""

import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from interp_gpt2.errors import CheckpointError, RunError
from interp_gpt2.files import written_atomically
from interp_gpt2.runs.checkpoint import Saveable, drop_resume, verify_checkpoint
from interp_gpt2.runs.durable import new_directory, remove_directory, sweep_leftovers, write_errors_named, write_file
from interp_gpt2.runs.manifest import RESUME_FILES, TOKENIZER_FILES, step_name, step_of_name
from interp_gpt2.runs.metrics import LOGS, truncate_metrics
from interp_gpt2.runs.run import RUN_FORMAT, SETTINGS, Run
from interp_gpt2.runs.strict_json import render

LOCK = ".lock"
REFUSED = "refused-"  # what a damaged checkpoint is renamed to when its step is trained anew
DIVERGENCE = "divergence.json"  # what was found where training stopped at a loss or gradient that is not finite
_MADE_FROM_A_RUN = ("report.html", "report.json", "sweeps", "tensorboard", "wandb", DIVERGENCE)


def create_run(path: Path | str, settings: Mapping[str, Any], tokenizer: Saveable | None = None, overwrite: bool = False) -> Run:
    """A new run at `path`: its settings as run.json, its tokenizer, no checkpoints.

    `settings` has the training config's fields under "config" and the source's fingerprint under "data"; see run.py.
    Appears whole or not at all. Refuses a directory that exists and is not empty, unless `overwrite` and it is a run
    that nobody is writing; then what a run consists of is deleted and anything else in it is left alone.
    Raises RunError, CheckpointWriteError.
    """
    path = Path(path).expanduser()
    if "format" in settings:
        raise RunError("settings must not hold 'format', which names the format of run.json")
    try:
        content = render({"format": RUN_FORMAT, **settings})
    except (TypeError, ValueError) as error:
        raise RunError(f"the settings of {path} are not JSON: {error}") from error
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise RunError(f"{path} already exists; --resume continues it, --overwrite deletes it, or choose another name")
        return _overwrite(Run(path), content, tokenizer)
    with write_errors_named(path, len(content)), new_directory(path) as temporary:
        write_file(temporary / SETTINGS, [content])
        if tokenizer is not None:
            tokenizer.save(temporary)
    return Run(path)


def _overwrite(run: Run, content: bytes, tokenizer: Saveable | None) -> Run:
    _ = run.settings  # raises RunError unless run.json is ours: what does not look like a run is never deleted
    with run_lock(run.path), write_errors_named(run.path, len(content)):
        for step in run.steps:
            remove_directory(run.path / step_name(step))
        for child in run.path.iterdir():
            if child.name in (*LOGS, *TOKENIZER_FILES, *_MADE_FROM_A_RUN) or child.name.startswith(REFUSED):
                shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
        if tokenizer is not None:
            tokenizer.save(run.path)
        with written_atomically(run.path / SETTINGS) as file:  # last: until then it is the old run, with less in it
            file.write(content)
    return run


def rewrite_settings(run: Run, settings: Mapping[str, Any]) -> None:
    """Put other settings in the place of a run's, when it goes on for longer. For the holder of the lock."""
    with write_errors_named(run.path, 0), written_atomically(run.path / SETTINGS) as file:
        file.write(render({**settings, "format": RUN_FORMAT}))


@contextmanager
def run_lock(path: Path | str) -> Iterator[None]:
    """The only writer of a run while the block lasts; what killed writers left behind is swept first.

    Held through flock on `.lock`, so it is free again the moment its holder dies. Raises RunError naming the holder,
    CheckpointWriteError where the directory cannot be written.
    """
    import fcntl  # not on Windows, where runs can be read but not trained

    path = Path(path)
    with write_errors_named(path / LOCK, 0):
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{path} is being written by {_holder(os.read(fd, 4096))}; wait for it or stop it") from None
        started = datetime.now(UTC).isoformat(timespec="seconds")
        with write_errors_named(path, 0):
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}).encode(), 0)
            sweep_leftovers(path)
        yield
    finally:
        os.close(fd)


def _holder(content: bytes) -> str:
    try:
        lock = json.loads(content)
        return f"process {lock['pid']} on {lock['host']} since {lock['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # it has the lock, and has not said its name yet


@dataclass(frozen=True)
class Rewound:
    """What `rewind` did: steps whose checkpoints are gone, and where damaged ones were put."""

    removed: tuple[int, ...]
    refused: tuple[Path, ...]


def rewind(run: Run, step: int) -> Rewound:
    """Make the checkpoint at `step` the last one, so that training goes on from it. For the holder of the lock.

    Later metrics and whole checkpoints are deleted: they are about to be computed again, and two histories must not mix.
    Damaged ones are renamed `refused-step-...` for whoever wants to look at them.
    """
    run.checkpoint(step)
    removed, refused = [], []
    with write_errors_named(run.path, 0):
        for later in (s for s in run.steps if s > step):
            directory = run.path / step_name(later)
            try:
                verify_checkpoint(directory)
            except CheckpointError:
                refused.append(_set_aside(directory))
            else:
                remove_directory(directory)
                removed.append(later)
        truncate_metrics(run.path, step)
    return Rewound(tuple(removed), tuple(refused))


def _set_aside(directory: Path) -> Path:
    number = 1
    while (aside := directory.with_name(f"{REFUSED}{directory.name}{f'-{number}' if number > 1 else ''}")).exists():
        number += 1
    return directory.rename(aside)


def keep_resumable(run: Run, anchors: Collection[int], rolling: int = 2) -> int:
    """Drop the resume files of checkpoints that are neither among the last `rolling` with them nor at an anchor step.

    Returns the bytes freed. A damaged checkpoint is left as it is, for the loader to refuse by name.
    """
    directories = [run.path / step_name(step) for step in run.steps]
    resumable = [path for path in directories if any((path / name).exists() for name in RESUME_FILES)]
    freed = 0
    for path in resumable[: max(len(resumable) - rolling, 0)]:
        if step_of_name(path.name) not in anchors:
            try:
                freed += drop_resume(path)
            except CheckpointError:
                continue
    return freed
