"""A store in the layout that SAELens trains on: the one its CacheActivationsRunner writes.

A folder that `datasets.load_from_disk` opens, with a row for each sequence: for each hook point, under TransformerLens's name
of it, an Array2D (context, d_in), and `token_ids`. Heads are side by side in d_in, as SAELens has them.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int

from interp_gpt2.activations.store import ActivationStore
from interp_gpt2.errors import CheckpointWriteError
from interp_gpt2.hooks import tl_name
from interp_gpt2.runs.durable import new_directory, sync_file, write_file

if TYPE_CHECKING:
    from datasets import Features

_FILE_BYTES = 512 * 2**20
_BATCH_BYTES = 16 * 2**20


@dataclass(frozen=True)
class SAELensDataset:
    """What was exported: `columns` with their d_in, sequences of `context_size` tokens, and how many shorter ones were not."""

    path: Path
    columns: dict[str, int]
    context_size: int
    n_sequences: int
    n_left_out: int


def export_sae_lens(
    store: ActivationStore, directory: Path | str, names: Iterable[str | tuple] | None = None, step: int | None = None
) -> SAELensDataset:
    """Write hook points (None: all) of a checkpoint (None: the last) as SAELens's cached activations.

    Sequences shorter than the longest are left out: SAELens has none. bfloat16, which Arrow lacks, becomes float32, without
    loss. The folder appears whole or not at all. Raises HookNameError, StoreError, CheckpointWriteError.
    """
    chosen = list(store.hook_points) if names is None else [store.full_name(name) for name in names]
    dtype = torch.float32 if store.dtype == torch.bfloat16 else store.dtype
    lengths = store.columns["lengths"].long()
    context = int(lengths.max())
    starts = (lengths.cumsum(0) - lengths)[lengths == context].numpy()
    writer = _Writer(store, chosen, step, dtype, context)
    target = Path(directory).expanduser()
    try:
        with new_directory(target) as temporary:
            writer.write(temporary, starts)
    except OSError as error:
        raise CheckpointWriteError(f"{error.filename or target} could not be written: {error.strerror or error}") from error
    columns = {tl_name(name): _width(store, name) for name in chosen}
    return SAELensDataset(target, columns, context, len(starts), len(lengths) - len(starts))


def _width(store: ActivationStore, name: str) -> int:
    return torch.Size(store.hook_points[name]).numel()


@dataclass(frozen=True)
class _Writer:
    store: ActivationStore
    names: Sequence[str]
    step: int | None
    dtype: torch.dtype
    context: int

    @property
    def features(self) -> "Features":
        from datasets import Array2D, Features, Value
        from datasets import Sequence as Listed

        kind = str(self.dtype).removeprefix("torch.")
        columns = {tl_name(name): Array2D((self.context, _width(self.store, name)), kind) for name in self.names}
        return Features(columns | {"token_ids": Listed(Value("int32"), length=self.context)})

    def write(self, folder: Path, starts: Int[np.ndarray, "sequence"]) -> None:
        from datasets import DatasetInfo

        sequence_bytes = self.context * self.dtype.itemsize * sum(_width(self.store, name) for name in self.names)
        n_files = max(1, -(-len(starts) * sequence_bytes // _FILE_BYTES))
        files = [f"data-{number:05d}-of-{n_files:05d}.arrow" for number in range(n_files)]
        for file, part in zip(files, np.array_split(starts, n_files), strict=True):
            self._file(folder / file, part, max(1, _BATCH_BYTES // sequence_bytes))
        DatasetInfo(features=self.features).write_to_directory(str(folder))
        asked = f"{self.store.record.plan} {self.store.record.checkpoints} {self.names} {self.step}"
        state = {
            "_data_files": [{"filename": file} for file in files],
            "_fingerprint": hashlib.sha256(asked.encode()).hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        write_file(folder / "state.json", [json.dumps(state, indent=2).encode()])
        for file in (*files, "dataset_info.json"):
            sync_file(folder / file)

    def _file(self, path: Path, starts: Int[np.ndarray, "sequence"], n_at_once: int) -> None:
        import pyarrow

        features = self.features
        with path.open("xb") as file, pyarrow.ipc.new_stream(file, features.arrow_schema) as stream:
            for first in range(0, len(starts), n_at_once):
                rows = (starts[first : first + n_at_once, None] + np.arange(self.context)).reshape(-1)
                arrays = [self._column(name, rows, features.type.field(tl_name(name)).type) for name in self.names]
                tokens = pyarrow.array(self.store.columns["tokens"][rows].numpy())
                arrays.append(pyarrow.FixedSizeListArray.from_arrays(tokens, self.context))
                stream.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=features.arrow_schema))

    def _column(self, name: str, rows: Int[np.ndarray, "row"], kind: Any) -> Any:
        import pyarrow

        values = self.store.rows(name, self.step)[rows].to(self.dtype).reshape(-1).numpy()
        width, n = _width(self.store, name), len(rows)
        inner = pyarrow.ListArray.from_arrays(np.arange(0, n * width + 1, width, dtype=np.int32), pyarrow.array(values))
        outer = pyarrow.ListArray.from_arrays(np.arange(0, n + 1, self.context, dtype=np.int32), inner)
        return pyarrow.ExtensionArray.from_storage(kind, outer)
