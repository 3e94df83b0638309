"""Reading a store: any rows by memory map, or everything in order in bounded memory.

store = ActivationStore("activations/demo")
store["mlp.post", 3][rows]                          # some rows, in the order asked for
for layer, batches in store.layers("mlp.post"):     # one layer after the other, a batch in memory
    for tokens, activations in batches: ...
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.activations.record import DTYPES, TEXTS, Plan, Record, StoredCheckpoint, read_record, shard_file
from interp_gpt2.activations.texts import Texts
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError, HookNameError, StoreError
from interp_gpt2.hooks import canonical, full_name
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import weights_sha256
from interp_gpt2.runs.manifest import TOKENIZER_FILES, FileEntry, check_file, plain_file
from interp_gpt2.runs.tensor_files import header_bytes, tensors_of_bytes

BATCH_ROWS = 4096
Batch = tuple[Int[Tensor, "row"], Float[Tensor, "row ..."]]  # tokens, and what a hook point has for them
Index = int | slice | Sequence[int] | Int[np.ndarray, "row"] | Int[Tensor, "row"]


class ActivationStore:
    """Activations on disk. `verify` hashes each file once, when it is first read.

    `partial` also opens a store that is still being written; it sees the rows that were there when it was opened. Raises
    StoreError for what is no store or not finished, CheckpointError for a damaged manifest, and later for a damaged file.
    """

    def __init__(self, path: Path | str, verify: bool = True, partial: bool = False) -> None:
        self.path, self.verify = Path(path).expanduser(), verify
        self.record: Record = read_record(self.path)
        if not (partial or self.record.complete):
            raise StoreError(
                f"{self.path} is not finished: {self.record.shards_done:,} of {self.record.shards_in_all:,} shards are there; "
                "the command that began it goes on, and partial=True reads what there is"
            )
        self._opened: dict[tuple[str, int | None], StoredRows] = {}

    @property
    def plan(self) -> Plan:
        return self.record.plan

    @property
    def config(self) -> GPT2Config:
        """The models' shape."""
        return GPT2Config.from_dict(dict(self.plan.config))

    @property
    def hook_points(self) -> dict[str, tuple[int, ...]]:
        """In the order of the pass, each with the shape of a row."""
        return dict(self.plan.hook_points)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.plan.dtype][0]

    @property
    def steps(self) -> list[int | None]:
        """The checkpoints, ascending; [None] of a model outside a run."""
        return [checkpoint.step for checkpoint in self.record.checkpoints]

    @property
    def complete(self) -> bool:
        return self.record.complete

    @property
    def n_bytes(self) -> int:
        """Of all files that are there."""
        return sum(entry.bytes for entry in self.record.entries().values())

    def __len__(self) -> int:
        """Rows at each hook point of each checkpoint when it is finished."""
        return self.plan.n_rows

    # The texts --------------------------------------------------------------------------------------------------------

    @cached_property
    def columns(self) -> dict[str, Int[Tensor, "row"]]:
        """ "tokens", "documents" and "positions" of every row, and the "lengths" of the sequences. Raises CheckpointError."""
        path = self.path / TEXTS
        found = tensors_of_bytes(check_file(path, self.record.files[TEXTS], wanted=True, verify=True), path)
        sizes = {name: tuple(values.shape) for name, values in found.items()}
        n = (self.plan.n_rows,)
        expected = {"tokens": n, "documents": n, "positions": n}
        if sizes | {"lengths": ()} != expected | {"lengths": ()} or int(found["lengths"].sum()) != self.plan.n_rows:
            raise CheckpointError(f"{path} does not hold tokens, documents and positions of {self.plan.n_rows:,} rows")
        return found

    @cached_property
    def texts(self) -> Texts:
        """The texts as they were given, padding excepted."""
        tokenizer = None
        if self.plan.tokenizer is not None:
            from interp_gpt2.tokenizers import load_tokenizer

            for name in TOKENIZER_FILES:
                check_file(self.path / name, self.record.files[name], wanted=False, verify=True)
            tokenizer = load_tokenizer(self.path)
        return Texts.from_columns(self.columns, tokenizer, self.plan.note)

    # The activations --------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str | tuple) -> "StoredRows":
        """The rows of a hook point at the last checkpoint: `store["blocks.3.mlp.post"]`, `store["mlp.post", 3]`."""
        return self.rows(name)

    def rows(self, name: str | tuple, step: int | None = None) -> "StoredRows":
        """The rows of a hook point at a step (None: the last). Raises HookNameError and StoreError for what is not stored."""
        name, checkpoint = self.full_name(name), self._checkpoint(step)
        key = (name, checkpoint.step)
        if key not in self._opened:
            index = list(self.plan.hook_points).index(name)
            shards = []
            for number, hashes in enumerate(checkpoint.shards):
                entry = FileEntry(self.plan.shard_bytes(name, number), hashes[index])
                header = header_bytes({name: self.plan.info(name, number)})
                shards.append(Shard(self.path / shard_file(checkpoint, name, number), entry, header, self.verify))
            self._opened[key] = StoredRows(f"{name} at {checkpoint.called}", self.plan, self.hook_points[name], tuple(shards))
        return self._opened[key]

    def batches(self, name: str | tuple, step: int | None = None, n_rows: int = BATCH_ROWS) -> Iterator[Batch]:
        """Tokens and activations of a hook point, in order, at most `n_rows` at a time; the memory of one batch."""
        rows, tokens = self.rows(name, step), self.columns["tokens"].long()
        for start, activations in rows.batches(n_rows):
            yield tokens[start : start + len(activations)], activations

    def layers(self, leaf: str, step: int | None = None, n_rows: int = BATCH_ROWS) -> Iterator[tuple[int, Iterator[Batch]]]:
        """Each layer that has a hook point of this name ("mlp.post", "resid_post"), with its `batches`, in order.

        Raises HookNameError if none has.
        """
        leaf = canonical(leaf)
        found = [name for name in self.plan.hook_points if name.startswith("blocks.") and name.split(".", 2)[2] == leaf]
        if not found:
            raise HookNameError(f"no layer's {leaf!r} is stored in {self.path}; it holds {', '.join(self.plan.hook_points)}")
        for name in found:
            yield int(name.split(".")[1]), self.batches(name, step, n_rows)

    def check(self, model: GPT2, step: int | None = None) -> None:
        """Raises StoreError unless these are activations of a model with exactly these weights, showing both hashes."""
        checkpoint = self._checkpoint(step)
        found = weights_sha256(model.state_dict(), model.config)
        if model.config != self.config or found != checkpoint.weights_sha256:
            raise StoreError(
                f"{self.path} holds activations of another model: the weights of {checkpoint.called} have SHA-256 "
                f"{str(checkpoint.weights_sha256)[:16]}..., this model's {found[:16]}..."
            )

    def damage(self) -> list[str]:
        """What is missing or altered, a line for each file, after hashing all of them; nothing if all is as it was written."""
        with ThreadPoolExecutor() as threads:
            found = threads.map(partial(_damage_of, self.path), self.record.entries().items())
            return [problem for problem in found if problem]

    def full_name(self, name: str | tuple) -> str:
        """The hook point meant. Raises HookNameError for one that is not stored."""
        wanted = full_name(*name, n_layers=self.config.n_layers) if isinstance(name, tuple) else canonical(name)
        if wanted not in self.plan.hook_points:
            near = get_close_matches(wanted, self.plan.hook_points, n=3) or list(self.plan.hook_points)[:8]
            raise HookNameError(f"{wanted!r} is not stored in {self.path}; nearest: {', '.join(map(repr, near))}")
        return wanted

    def _checkpoint(self, step: int | None) -> StoredCheckpoint:
        if step is None:
            return self.record.checkpoints[-1]
        found = [checkpoint for checkpoint in self.record.checkpoints if checkpoint.step == step]
        if not found:
            raise StoreError(f"{self.path} has no step {step}; it has {', '.join(map(str, self.steps))}")
        return found[0]

    def __repr__(self) -> str:
        points, steps = len(self.plan.hook_points), len(self.steps)
        return f"ActivationStore({str(self.path)!r}: {len(self):,} tokens x {points} hook points x {steps} checkpoints)"


def _damage_of(directory: Path, item: tuple[str, FileEntry]) -> str:
    name, entry = item
    try:
        check_file(directory / name, entry, wanted=False, verify=True)
    except CheckpointError as error:
        return str(error)
    return ""


@dataclass(frozen=True, eq=False)
class StoredRows:
    """One hook point at one checkpoint: a row for every token, (row, ...). What is read is copied, and the reader's own."""

    called: str
    plan: Plan
    row_shape: tuple[int, ...]
    shards: tuple["Shard", ...]

    @cached_property
    def firsts(self) -> Int[np.ndarray, "shard_plus_1"]:
        return np.array(self.plan.firsts[: len(self.shards) + 1])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.row_shape)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.plan.dtype][0]

    def __getitem__(self, index: Index) -> Float[Tensor, "... "]:
        """One row, or those of a slice or a list of rows, in its order. Raises StoreError for a row that is not there."""
        if isinstance(index, slice):
            return self._take(np.arange(*index.indices(len(self))))
        rows = index.cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
        if rows.dtype.kind not in "iu" and rows.size:
            raise StoreError(f"rows are chosen by whole numbers; got {rows.dtype}")
        return self._take(np.atleast_1d(rows).astype(np.int64))[0] if rows.ndim == 0 else self._take(rows.astype(np.int64))

    def _take(self, rows: Int[np.ndarray, "row"]) -> Float[Tensor, "row ..."]:
        self._check(rows)
        found = torch.empty(len(rows), *self.row_shape, dtype=self.dtype)
        # NumPy's, in one thread: torch's waits for all of its threads, which takes far longer where they are not free.
        into = found.view(-1).view(torch.uint8).numpy().view(f"V{self.row_bytes}")
        if len(self.shards) == 1:
            np.take(self.shards[0].mapped(self.row_bytes), rows, out=into, mode="clip")  # that is, looked at already
            return found
        # Shard by shard through one small buffer, which stays in the processor's cache.
        shard_of = np.searchsorted(self.firsts, rows, side="right") - 1
        order = np.argsort(shard_of, kind="stable")
        cuts = np.searchsorted(shard_of[order], np.arange(len(self.shards) + 1))
        buffer = np.empty(int(np.diff(cuts).max()), into.dtype)
        for number in np.flatnonzero(np.diff(cuts)).tolist():
            part = order[cuts[number] : cuts[number + 1]]
            its = buffer[: len(part)]
            np.take(self.shards[number].mapped(self.row_bytes), rows[part] - self.firsts[number], out=its, mode="clip")
            into[part] = its
        return found

    @property
    def row_bytes(self) -> int:
        return torch.Size(self.row_shape).numel() * self.dtype.itemsize

    def _check(self, rows: Int[np.ndarray, "row"]) -> None:
        if rows.ndim != 1:
            raise StoreError(f"rows are one list of numbers; got shape {rows.shape}")
        wrong = rows[(rows < 0) | (rows >= len(self))]
        if len(wrong):
            so_far = "" if len(self) == self.plan.n_rows else f" so far, of {self.plan.n_rows:,}"
            raise StoreError(f"there is no row {int(wrong[0]):,} of {self.called}: its rows are 0 to {len(self) - 1:,}{so_far}")

    def batches(self, n_rows: int = BATCH_ROWS) -> Iterator[tuple[int, Float[Tensor, "row ..."]]]:
        """Every row in order, at most `n_rows` at a time, each batch with its first row's number; the memory of one batch.

        A batch ends where its shard does. Read, not mapped, so that no page of the file stays with the process.
        """
        if n_rows < 1:
            raise StoreError(f"n_rows={n_rows} must be at least 1")
        for number, shard in enumerate(self.shards):
            first = int(self.firsts[number])
            for start, rows in shard.read(self, n_rows):
                yield first + start, rows


@dataclass(frozen=True, eq=False)
class Shard:
    """One file, looked at before it is believed: its size, its header to the byte and, unless told otherwise, its hash."""

    path: Path
    entry: FileEntry
    header: bytes
    verify: bool

    @cached_property
    def checked(self) -> bool:
        """True. Raises CheckpointError naming the file if it is not what was written."""
        check_file(self.path, self.entry, wanted=False, verify=self.verify)
        with plain_file(self.path) as file:
            if file.read(len(self.header)) != self.header:
                raise CheckpointError(f"{self.path} has been altered: its header is not the one that was written")
        return True

    @cached_property
    def _bytes(self) -> Int[Tensor, "byte"]:
        assert self.checked
        # Mapped by torch, which keeps no file open meanwhile: there may be more shards than a process may have files.
        return torch.from_file(str(self.path), shared=False, size=self.entry.bytes, dtype=torch.uint8)

    def mapped(self, row_bytes: int) -> np.ndarray:
        """The shard's rows, as so many bytes each, where the system has them: a private map, to be copied from."""
        return self._bytes[len(self.header) :].numpy().view(f"V{row_bytes}")

    def read(self, rows: StoredRows, n_rows: int) -> Iterator[tuple[int, Float[Tensor, "row ..."]]]:
        """Copies of the rows, some at a time, each with the number of its first within the shard."""
        assert self.checked
        n = (self.entry.bytes - len(self.header)) // rows.row_bytes
        with plain_file(self.path) as file:
            file.seek(len(self.header))
            for start in range(0, n, n_rows):
                batch = torch.empty(min(n_rows, n - start), *rows.row_shape, dtype=rows.dtype)
                into = memoryview(batch.view(-1).view(torch.uint8).numpy())
                if file.readinto(into) != len(into):
                    raise CheckpointError(f"{self.path} was cut short while it was read")
                yield start, batch
