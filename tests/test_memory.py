"""A pass leaves nothing behind, and a cache holds what it keeps and no more."""

import gc
import os
import sys
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from interp_gpt2.config import GPT2Config
from interp_gpt2.model import GPT2


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())  # isinstance asks odd objects odd things


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
@torch.no_grad()
def test_a_thousand_cached_and_edited_runs_leave_no_memory_behind(model, tokens):
    def runs(n: int) -> None:
        for _ in range(n):
            model.run_with_cache(tokens, "*", {("z", 0): lambda z, site: z * 2})

    runs(100)  # what allocators and tables of names settle at
    tensors, megabytes = live_tensors(), resident_megabytes()
    runs(1000)
    assert live_tensors() == tensors
    assert resident_megabytes() - megabytes <= 5


def test_derivatives_leave_no_memory_behind(model, tokens):
    def run() -> None:
        logits, cache = model.run_with_cache(tokens, "*")
        torch.autograd.grad(logits[:, -1].logsumexp(-1).sum(), [cache["z", 0], cache["resid_mid", 1]])

    run()
    tensors = live_tensors()
    for _ in range(50):
        run()
    assert live_tensors() == tensors
    assert all(weight.grad is None for weight in model.parameters())


@torch.no_grad()
def test_what_keep_drops_is_freed_before_the_next_layer_runs(tokens):
    model = GPT2(GPT2Config(n_layers=6, n_heads=4, d_model=32, d_vocab=50, n_ctx=16))
    seen: list[StorageWeakRef] = []
    alive: list[int] = []

    def keep(value: torch.Tensor) -> torch.Tensor:
        alive.append(sum(not whole.expired() for whole in seen))
        seen.append(StorageWeakRef(value.untyped_storage()))
        return value[:, -1:]

    _, cache = model.run_with_cache(tokens, ["*.pattern", "*.mlp.post"], keep=keep)
    assert len(alive) == 12
    assert max(alive) == 0, "a whole pattern or MLP activation outlived its layer"
    assert all(value.untyped_storage().nbytes() == value.numel() * 4 for value in cache.values())
