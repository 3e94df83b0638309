"""A pass leaves nothing behind, and a cache holds what it keeps and no more, as memory.py counts it."""

import gc
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from interp_gpt2.config import GPT2Config
from interp_gpt2.hooks import Part
from interp_gpt2.memory import keep_freed_memory, peak_memory
from interp_gpt2.model import GPT2

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")

MANY_RUNS = """
import gc, os, sys, torch
from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.hooks import Part

torch.set_num_threads(1)
torch.set_grad_enabled(False)
gc.disable()  # what only the garbage collector finds counts as left behind
model = GPT2(GPT2Config(n_layers=2, n_heads=4, d_model=32, d_vocab=200, n_ctx=32))
tokens = torch.randint(200, (4, 32))
leaked = []

def megabytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

def runs(n):
    for i in range(n):
        edits = {("z", 0): lambda z, site: z * 2} if i % 2 else None
        logits, cache = model.run_with_cache(tokens, "*", edits, Part(pos_slice=-1) if i % 3 else None)
        {each}

runs(100)  # what allocators and tables of names settle at
before = megabytes()
runs({n})
print(megabytes() - before)
"""


def megabytes_left_by(n_runs: int, each: str = "pass") -> float:
    """Resident memory after them, in a process of its own: in this one a leak could fill what other tests have freed."""
    command = [sys.executable, "-c", MANY_RUNS.replace("{each}", each).replace("{n}", str(n_runs))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())  # isinstance asks odd objects odd things


@linux
def test_a_thousand_cached_and_edited_runs_leave_no_memory_behind():
    assert megabytes_left_by(1000) <= 5


@linux
def test_one_small_activation_left_behind_by_each_run_would_be_noticed():
    assert megabytes_left_by(200, "leaked.append(logits.clone())") > 5  # 102,400 bytes each: a thousand may leave 5,000 each


@torch.no_grad()
def test_runs_leave_no_tensor_behind(model, tokens):
    def run() -> None:
        model.run_with_cache(tokens, "*", {("z", 0): lambda z, site: z * 2})

    run()
    tensors = live_tensors()
    for _ in range(50):
        run()
    assert live_tensors() == tensors


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


MANY_LAYERS = GPT2Config(n_layers=12, n_heads=4, d_model=32, d_vocab=50, n_ctx=32)
KEEPS = {
    "the last token": Part(pos_slice=-1),
    "four tokens": Part(pos_slice=[0, 3, 8, 21]),
    "the first half": Part(pos_slice=slice(16)),
    "half the precision": Part(dtype=torch.float16),
    "a function's view": lambda value: value[..., :2],
    "sums": lambda value: value.sum(-1),
}


def part_by_part(keep: Part | Callable, cache: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [(keep.of(name, value) if isinstance(keep, Part) else keep(value)).clone() for name, value in cache.items()]


@torch.no_grad()
@pytest.mark.parametrize("names", [None, "*", "*.pattern", "*.mlp.post"])
@pytest.mark.parametrize("what", KEEPS)
def test_with_keep_a_pass_never_holds_more_than_what_is_kept_and_one_layer_at_work(what, names):
    """To the byte: peak <= 1.1 x the bytes kept + the peak of one layer alone of which nothing is kept."""
    model, one_layer = GPT2(MANY_LAYERS), GPT2(replace(MANY_LAYERS, n_layers=1))
    tokens = torch.randint(50, (4, 32), generator=torch.Generator().manual_seed(0))
    keep = KEEPS[what]
    at_work = peak_memory(lambda: one_layer.run_with_cache(tokens, names, keep=lambda value: value[:0].clone()))

    kept = sum(value.untyped_storage().nbytes() for value in model.run_with_cache(tokens, names, keep=keep)[1].values())
    most = 1.1 * kept + at_work
    assert peak_memory(lambda: model.run_with_cache(tokens, names, keep=keep)) <= most
    kept_at_the_end = peak_memory(lambda: part_by_part(keep, model.run_with_cache(tokens, names)[1]))
    assert kept_at_the_end > most, "this test would not notice a pass that drops only once it is over"


def test_peak_memory_counts_what_is_alive_at_once():
    def work() -> None:
        first = torch.ones(1000)
        second = first + 1
        del first
        third = second.double()
        del second, third
        torch.ones(10)

    assert peak_memory(work) == 4000 + 8000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells glibc's malloc what to keep")
def test_memory_that_is_kept_is_not_asked_for_again():
    import resource

    keep_freed_memory()

    def step() -> None:
        _ = [torch.ones(1 << 20) for _ in range(8)]  # 4 MB each, all freed at the end

    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 4000, "8,192 pages, had they been given back"
