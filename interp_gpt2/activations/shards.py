"""One shard: a pass over some of the texts, and the files that it fills, one for each hook point.

A file has its name only when it is whole and on disk. Its bytes are hashed as they are written.
"""

import hashlib
import os
import uuid
from collections.abc import Mapping
from concurrent.futures import Executor, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.activations.record import DTYPES, Plan, StoredCheckpoint, shard_file
from interp_gpt2.activations.texts import Texts
from interp_gpt2.errors import StoreError
from interp_gpt2.hooks import Part
from interp_gpt2.model import GPT2
from interp_gpt2.runs.durable import sync_directory, write_hashed
from interp_gpt2.runs.tensor_files import header_bytes

Rows = Mapping[str, Float[Tensor, "row ..."]]


def write_shard(model: GPT2, texts: Texts, plan: Plan, number: int, folder: "ShardFolder") -> tuple[str, ...]:
    """The SHA-256 of each hook point's file of shard `number`, which are on disk when this returns.

    Leaves nothing behind when it raises: OSError from the disk, StoreError for values that the dtype cannot hold.
    """
    first = number * plan.shard_sequences
    last = min(first + plan.shard_sequences, len(texts.tokens))
    with ExitStack() as stack:
        files = {name: stack.enter_context(folder.file(plan, name, number)) for name in plan.hook_points}
        writing: list[Future] = []
        stack.callback(lambda: wait(writing))  # no file is closed, whatever happens, under a thread that writes it
        for start in range(first, last, plan.batch_size):
            rows = activations(model, texts, slice(start, min(start + plan.batch_size, last)), plan)
            _results(writing)  # of the rows before these: two batches at most are in memory
            writing[:] = [folder.threads.submit(files[name].append, rows[name]) for name in plan.hook_points]
        _results(writing)
        writing[:] = [folder.threads.submit(file.finish) for file in files.values()]
        hashes = _results(writing)
    sync_directory(folder.path)
    return tuple(hashes)


def _results(futures: list[Future]) -> list:
    return [future.result() for future in futures]


@torch.no_grad()
def activations(model: GPT2, texts: Texts, of: slice, plan: Plan) -> Rows:
    """The rows of some sequences at every hook point, in the plan's dtype, on the CPU. No later layer than needed runs."""
    lengths = texts.lengths[of]
    n_pos = int(lengths.max())  # what is right of it is padding, which no token before it sees
    tokens = texts.tokens[of, :n_pos].to(model.device, torch.int64)
    names, keep = list(plan.hook_points), _Stored(dtype=DTYPES[plan.dtype][0])
    layers = [_layer(name) for name in names]
    if None in layers:
        _, cache = model.run_with_cache(tokens, names, keep=keep)
    else:
        _, cache = model.run_until(tokens, max(layers) + 1, names, keep=keep)
    if bool((lengths == n_pos).all()):
        return {name: cache[name].cpu().flatten(0, 1) for name in names}
    real = (torch.arange(n_pos) < lengths[:, None]).to(model.device)
    return {name: cache[name][real].cpu() for name in names}


def _layer(name: str) -> int | None:
    """Of its block; -1 for the embeddings, None for what follows the blocks."""
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    return -1 if name in ("embed", "pos_embed") else None


@dataclass(frozen=True)
class _Stored(Part):
    """An activation in another dtype. Raises StoreError where a number would become infinite."""

    def of(self, name: str, value: Tensor) -> Tensor:
        kept = value.to(self.dtype)
        largest = torch.finfo(self.dtype).max
        if torch.finfo(value.dtype).max <= largest:
            return kept
        low, high = value.aminmax()  # isfinite is far slower, in float16 above all; either is NaN if a value is
        if not bool((low >= -largest) & (high <= largest)):
            lost = value[value.isfinite() & ~kept.isfinite()]
            if len(lost):
                kind = str(self.dtype).removeprefix("torch.")
                raise StoreError(
                    f"{float(lost[0]):.6g} at {name!r} is more than {kind} can hold ({largest:.6g}); store bfloat16 or float32"
                )
        return kept


@dataclass(frozen=True)
class ShardFolder:
    """Where one checkpoint's shards go, and the threads that write them."""

    store: Path
    checkpoint: StoredCheckpoint
    threads: Executor

    @property
    def path(self) -> Path:
        return self.store / self.checkpoint.folder

    def file(self, plan: Plan, name: str, number: int) -> "ShardFile":
        header = header_bytes({name: plan.info(name, number)})
        return ShardFile(self.store / shard_file(self.checkpoint, name, number), header, plan.shard_bytes(name, number))


class ShardFile:
    """A file that grows under a hidden name; `finish` gives it its own. What is not finished is deleted."""

    def __init__(self, path: Path, header: bytes, n_bytes: int) -> None:
        self.path, self.n_bytes, self.written = path, n_bytes, 0
        self.sha256 = hashlib.sha256()
        self.partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        self.fd = os.open(self.partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            self.written += write_hashed(self.fd, header, self.sha256)
        except BaseException:
            self.__exit__()
            raise

    def append(self, rows: Float[Tensor, "row ..."]) -> None:
        """Raises OSError."""
        chunk = memoryview(rows.contiguous().reshape(-1).view(torch.uint8).numpy())
        self.written += write_hashed(self.fd, chunk, self.sha256)

    def finish(self) -> str:
        """The file's SHA-256; it is on disk under its own name. Raises OSError."""
        assert self.written == self.n_bytes, "the header says how many rows there are"
        os.fsync(self.fd)
        self._close()
        self.partial.replace(self.path)
        return self.sha256.hexdigest()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self.partial.unlink(missing_ok=True)  # it has another name by now if it is finished
