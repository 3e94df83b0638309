"""How much disk the checkpoints of a run will take, known before its first step."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from interp_gpt2.data.source import Source
from interp_gpt2.errors import CheckpointWriteError
from interp_gpt2.hf_format import our_shapes
from interp_gpt2.runs.manifest import OPTIMIZER
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.tensor_files import TensorInfo, file_size
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.schedule import anchor_steps, checkpoint_steps, resume_steps

_BLOCK = 4096  # what file systems give out at a time
_ROLLING = 3  # two that can be resumed from, and the one that is being written


@dataclass(frozen=True)
class DiskNeeded:
    """Bytes that the checkpoints still to come will take, and bytes free."""

    checkpoints: int  # how many
    weights: int  # bytes of each
    resumable: int  # how many at once, at most, will hold the optimizer's state
    optimizer: int  # bytes that it adds to each of those
    already: int  # bytes of all this that are there, or will be free before they are needed
    free: int

    @property
    def total(self) -> int:
        """What must be free: more than enough by at most the checkpoints' overlap."""
        return max(0, self.checkpoints * self.weights + self.resumable * self.optimizer - self.already)


def disk_needed(config: TrainConfig, source: Source, run_dir: Path, overwrite: bool = False) -> DiskNeeded:
    """What the checkpoints of `config` in `run_dir` need beyond those that are there already (all anew if `overwrite`)."""
    checkpoints, n_steps = config.checkpoints, config.n_steps
    resumable = resume_steps(checkpoints, n_steps)
    kept = checkpoint_steps(checkpoints, n_steps) | resumable
    run = Run(run_dir) if (run_dir / "run.json").is_file() else None
    there = set(run.steps) if run else set()
    old = [run.checkpoint(step) for step in there] if run else []
    already = sum(_on_disk(path) if overwrite else _size(path / OPTIMIZER) for path in old)
    return DiskNeeded(
        checkpoints=len(kept if overwrite else kept - there),
        weights=weights_bytes(config, source),
        resumable=min(len(resumable), len(anchor_steps(checkpoints, n_steps)) + _ROLLING),
        optimizer=optimizer_bytes(config),
        already=already,
        free=shutil.disk_usage(_existing(run_dir)).free,
    )


def check_disk(needed: DiskNeeded, run_dir: Path) -> None:
    """Raises CheckpointWriteError, naming what is needed and what is free, if the checkpoints do not fit."""
    if needed.total > needed.free:
        raise CheckpointWriteError(
            f"the checkpoints to come in {run_dir} need {needed.total:,} bytes and {needed.free:,} are free: "
            f"{needed.checkpoints:,} of {needed.weights:,} bytes each, {needed.resumable} of them at a time with "
            f"{needed.optimizer:,} more to resume from; keep fewer (in the recipe's [checkpoints]: per_doubling, every, "
            "piecewise, pythia, at; resume_every larger; anchors = 0), or choose a directory on another disk"
        )


def weights_bytes(config: TrainConfig, source: Source) -> int:
    """Bytes of a checkpoint without the optimizer's state: its weights in float32, and the tokenizer as it is written."""
    infos = {name: TensorInfo("F32", shape) for name, shape in our_shapes(config.model).items()}
    with TemporaryDirectory() as folder:
        source.tokenizer.save(Path(folder))
        tokenizer = _on_disk(Path(folder))
    return _blocks(file_size(infos)) + tokenizer + 3 * _BLOCK  # config.json, manifest.json, the directory


def optimizer_bytes(config: TrainConfig) -> int:
    """Bytes that the optimizer's two moments and step counts add, and trainer.json."""
    infos = {}
    for name, shape in our_shapes(config.model).items():
        infos |= {f"{name}.exp_avg": TensorInfo("F32", shape), f"{name}.exp_avg_sq": TensorInfo("F32", shape)}
        infos[f"{name}.step"] = TensorInfo("F32", ())
    return _blocks(file_size(infos)) + _BLOCK


def _on_disk(folder: Path) -> int:
    return sum(_blocks(_size(path)) for path in folder.iterdir())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _blocks(n_bytes: int) -> int:
    return -(-n_bytes // _BLOCK) * _BLOCK


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.is_dir())
