"""Random draws that are a pure function of (seed, step), and each process's share of them.

Because the batch at a step depends on nothing that happened before, the position in the data is one integer, a resumed run
sees what the uninterrupted one saw, and any number of processes train on the same global batch.
"""

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp_gpt2.errors import DataError

TRAINING, HELD_OUT = 0, 1  # streams that share no number, whatever their seeds


def rng_at(seed: int, step: int, stream: int = TRAINING) -> np.random.Generator:
    """Random numbers for one step: a counter-based generator (Philox) keyed by (seed, stream) and set to the step.

    Steps are 2^192 numbers apart, so they never overlap. Raises DataError for a negative seed or step.
    """
    if not (0 <= seed < 2**64 and 0 <= step < 2**63):
        raise DataError(f"seed={seed} and step={step} must be whole numbers from 0 (below 2^64 and 2^63)")
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, step]))


def share_of(tokens: Int[np.ndarray, "batch pos"], rank: int, world: int) -> Int[Tensor, "share pos"]:
    """Slice `rank` of `world` equal slices of a global batch. Raises DataError if the batch cannot be shared equally."""
    check_shares(len(tokens), rank, world)
    share = len(tokens) // world
    return torch.from_numpy(tokens[rank * share : (rank + 1) * share].astype(np.int64))


def check_shares(batch_size: int, rank: int, world: int) -> None:
    """Raises DataError unless `batch_size` is a positive multiple of `world` and `rank` is one of its processes."""
    if batch_size < 1 or world < 1 or batch_size % world:
        raise DataError(f"a batch of {batch_size} sequences cannot be shared equally by {world} processes")
    if not 0 <= rank < world:
        raise DataError(f"rank={rank} is not one of {world} processes (0 to {world - 1})")


def within_documents(documents: Int[Tensor, "batch pos_plus_1"]) -> Bool[Tensor, "batch pos"]:
    """True at each position whose prediction is of the same document: the first token of a document is not predicted."""
    return documents[:, 1:] == documents[:, :-1]
