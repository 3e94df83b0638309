"""manifest.json of an activation store: what it holds, how far it has come, and the hash of every file.

    manifest.json                                  written last, after each shard; ends with its own SHA-256
    texts.safetensors                              tokens, documents and positions of the rows, lengths of the sequences
    tokenizer.json, tokenizer_config.json          where the texts have a tokenizer
    step-00001000/blocks.0.mlp.post-00000.safetensors, ...     a file for each hook point and shard (model/ outside a run)

Readers believe nothing but the manifest, so they see whole shards only, also while it is being written. Two writers that
are asked for the same end up with the same bytes, however often they are killed.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError, ConfigError, StoreError
from interp_gpt2.files import written_atomically
from interp_gpt2.runs.durable import sync_directory
from interp_gpt2.runs.manifest import MANIFEST, TOKENIZER_FILES, FileEntry, plain_file, step_name
from interp_gpt2.runs.strict_json import parse, render
from interp_gpt2.runs.tensor_files import TensorInfo, file_size

FORMAT = "interp_gpt2 activations 1"
TEXTS = "texts.safetensors"
DTYPES = {"float32": (torch.float32, "F32"), "float16": (torch.float16, "F16"), "bfloat16": (torch.bfloat16, "BF16")}

_MAX_MANIFEST = 1 << 28
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HOOK_POINT = re.compile(r"[a-z0-9_]{1,40}(\.[a-z0-9_]{1,40}){0,5}")  # so no name is ever a path


@dataclass(frozen=True)
class Plan:
    """What a store is to hold. Whoever goes on with one must ask for exactly this."""

    config: Mapping[str, Any]  # of the models
    hook_points: Mapping[str, tuple[int, ...]]  # with the shape of a row
    dtype: str
    texts: str  # SHA-256
    note: str
    tokenizer: str | None  # SHA-256
    computed_in: str  # the models' dtype and kind of device
    batch_size: int  # sequences in a pass: other sizes round differently
    shard_sequences: int
    shard_rows: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        return sum(self.shard_rows)

    @property
    def n_shards(self) -> int:
        return len(self.shard_rows)

    @property
    def firsts(self) -> tuple[int, ...]:
        """The row with which each shard begins, and the end."""
        return tuple(accumulate(self.shard_rows, initial=0))

    def info(self, name: str, shard: int) -> TensorInfo:
        """What the file of a hook point's shard holds."""
        return TensorInfo(DTYPES[self.dtype][1], (self.shard_rows[shard], *self.hook_points[name]))

    def shard_bytes(self, name: str, shard: int) -> int:
        return file_size({name: self.info(name, shard)})

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of all shards of one checkpoint."""
        return sum(self.shard_bytes(name, shard) for name in self.hook_points for shard in range(self.n_shards))

    def check_same(self, begun: "Plan", directory: Path) -> None:
        """Raises StoreError naming the first thing in which `begun`, the plan of a store, is another."""
        ours, theirs = asdict(self), asdict(begun)
        for name in ours:
            if ours[name] != theirs[name]:
                was, is_ = (_shortened(values[name]) for values in (theirs, ours))
                if isinstance(ours[name], dict):
                    was, is_ = _differing(theirs[name], ours[name])
                raise StoreError(
                    f"{directory} was begun with {_WORDS.get(name, name)} {was}, which is now {is_}; choose another directory"
                )


_WORDS = {"texts": "texts of SHA-256", "tokenizer": "the tokenizer of SHA-256", "config": "a model with",
          "hook_points": "hook points", "note": "texts described as"}  # fmt: skip


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _differing(was: dict, is_: dict) -> tuple[str, str]:
    """The items in which two mappings differ, of each of them."""
    names = [name for name in {**was, **is_} if was.get(name) != is_.get(name)]
    return tuple(", ".join(f"{name}={each[name]}" for name in names if name in each) or "none" for each in (was, is_))


@dataclass(frozen=True)
class StoredCheckpoint:
    """One model: its step in a run (None outside one), the hash that names it there, the SHA-256 of its weights once they
    have been read, and of each shard that is there one SHA-256 for each hook point, in the plan's order."""

    step: int | None
    sha256: str
    weights_sha256: str | None = None
    shards: tuple[tuple[str, ...], ...] = ()

    @property
    def folder(self) -> str:
        return "model" if self.step is None else step_name(self.step)

    @property
    def called(self) -> str:
        return "the model" if self.step is None else f"step {self.step}"


def shard_file(checkpoint: StoredCheckpoint, name: str, shard: int) -> str:
    """Where a shard lies in the store: step-00001000/blocks.0.mlp.post-00003.safetensors."""
    return f"{checkpoint.folder}/{name}-{shard:05d}.safetensors"


@dataclass(frozen=True)
class Record:
    """manifest.json. `files` are those beside the shards."""

    plan: Plan
    checkpoints: tuple[StoredCheckpoint, ...]
    files: Mapping[str, FileEntry]

    @property
    def complete(self) -> bool:
        return all(len(checkpoint.shards) == self.plan.n_shards for checkpoint in self.checkpoints)

    @property
    def shards_done(self) -> int:
        return sum(len(checkpoint.shards) for checkpoint in self.checkpoints)

    @property
    def shards_in_all(self) -> int:
        return self.plan.n_shards * len(self.checkpoints)

    def with_checkpoint(self, checkpoint: StoredCheckpoint) -> "Record":
        """The same with this one in the place of that of its step."""
        others = [checkpoint if each.step == checkpoint.step else each for each in self.checkpoints]
        return replace(self, checkpoints=tuple(others))

    def entries(self) -> dict[str, FileEntry]:
        """Every file that must be there, in order, with its size and hash."""
        found = dict(self.files)
        for checkpoint in self.checkpoints:
            for shard, hashes in enumerate(checkpoint.shards):
                for name, sha256 in zip(self.plan.hook_points, hashes, strict=True):
                    found[shard_file(checkpoint, name, shard)] = FileEntry(self.plan.shard_bytes(name, shard), sha256)
        return found

    def to_bytes(self) -> bytes:
        content = {
            "format": FORMAT,
            "plan": asdict(self.plan),
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            "checkpoints": [asdict(checkpoint) for checkpoint in self.checkpoints],
        }
        return render(content | {"sha256": hashlib.sha256(render(content)).hexdigest()})

    def write(self, directory: Path) -> None:
        """Everything that it names must be on disk. Raises OSError."""
        with written_atomically(directory / MANIFEST) as file:
            file.write(self.to_bytes())
        sync_directory(directory)


def is_store(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def read_record(directory: Path) -> Record:
    """The manifest of a store, checked against its own SHA-256.

    Raises StoreError where there is none, CheckpointError for one that is damaged or of another format.
    """
    if not is_store(directory):
        raise StoreError(f"{directory} is no activation store: it has no {MANIFEST}; interp-gpt2 cache create makes one")
    path = directory / MANIFEST
    with plain_file(path) as file:
        data = file.read(_MAX_MANIFEST)
    content = parse(data, path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a manifest of format {FORMAT!r}, but {content.get('format')!r}")
    try:
        record = _parsed(content)
        whole = record.to_bytes() == data
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has been altered: it does not have the fields of an activation store's manifest"
        ) from error
    if not whole:
        raise CheckpointError(f"{path} has been altered: its own SHA-256 does not match its content")
    _check(record, path)
    return record


def _parsed(content: dict[str, Any]) -> Record:
    plan = dict(content["plan"])
    plan["hook_points"] = {name: tuple(shape) for name, shape in plan["hook_points"].items()}
    plan["shard_rows"] = tuple(plan["shard_rows"])
    checkpoints = [
        StoredCheckpoint(**{**each, "shards": tuple(tuple(hashes) for hashes in each["shards"])})
        for each in content["checkpoints"]
    ]
    files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
    return Record(Plan(**plan), tuple(checkpoints), files)


def _check(record: Record, path: Path) -> None:
    """A manifest can be consistent and still hostile."""
    plan = record.plan
    try:
        GPT2Config.from_dict(dict(plan.config))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: its config describes no GPT-2: {error}") from error
    hashes = [plan.texts, *(each.sha256 for each in record.checkpoints), *(entry.sha256 for entry in record.files.values())]
    hashes += [sha256 for each in record.checkpoints for shard in each.shards for sha256 in shard]
    hashes += [each for each in (plan.tokenizer, *(each.weights_sha256 for each in record.checkpoints)) if each is not None]
    steps = [checkpoint.step for checkpoint in record.checkpoints]
    sound = (
        plan.dtype in DTYPES
        and bool(plan.hook_points)
        and all(_HOOK_POINT.fullmatch(name) and _counts(shape) for name, shape in plan.hook_points.items())
        and bool(plan.shard_rows)
        and _counts((*plan.shard_rows, plan.batch_size, plan.shard_sequences))
        and all(isinstance(sha256, str) and _SHA256.fullmatch(sha256) for sha256 in hashes)
        and {TEXTS} <= record.files.keys() <= {TEXTS, *TOKENIZER_FILES}
        and all(type(entry.bytes) is int and entry.bytes >= 0 for entry in record.files.values())
        and len(set(steps)) == len(steps) > 0
        and all(step is None or (type(step) is int and 0 <= step < 10**12) for step in steps)
        and all(len(each.shards) <= plan.n_shards for each in record.checkpoints)
        and all(len(shard) == len(plan.hook_points) for each in record.checkpoints for shard in each.shards)
    )
    if not sound:
        raise CheckpointError(f"{path} names files, sizes or hashes that no activation store has")


def _counts(numbers: Sequence[object]) -> bool:
    return all(type(n) is int and 1 <= n < 2**40 for n in numbers)
