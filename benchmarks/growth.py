"""How the cost of training grows: time and memory of an update against width, depth, context and checkpoints.

    python benchmarks/growth.py                    a table, with the measured exponents
    python benchmarks/growth.py --json out.json    every number

One thing varies at a time around 4 layers of d_model 256 and n_ctx 128, at 2,048 tokens an update whatever the context;
heads are 32 wide. A time is the median over rounds, sizes in turn. Memory is the most that torch holds for tensors in an
update, to the byte, beside weights, gradients and the optimizer's moments, which are 16 bytes a parameter. An exponent is
the slope of a straight line through the logarithms. On a busy machine --cpu-time counts what one thread computes.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time

import numpy as np
import torch
from measuring import Clock, circumstances

from interp_gpt2.config import GPT2Config
from interp_gpt2.data.source import load_source
from interp_gpt2.memory import keep_freed_memory, peak_memory
from interp_gpt2.runs.checkpoint import save_checkpoint
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.machine import Machine
from interp_gpt2.training.update import Updates, new_updates

BASE = GPT2Config(n_layers=4, n_heads=8, d_model=256, n_ctx=128)
TOKENS = 2048
AXES = {"d_model": (64, 128, 256, 512), "n_layers": (1, 2, 4, 8), "n_ctx": (64, 128, 256, 512, 1024)}
KEPT = (1, 2, 4, 8)


def updates_of(axis: str, size: int) -> Updates:
    shape = {axis: size} | ({"n_heads": size // 32, "d_head": None, "d_mlp": None} if axis == "d_model" else {})
    config = TrainConfig(data="python-docs", model=replace(BASE, **shape), device="cpu", precision="fp32")
    source = load_source(config.data, config.tokenizer)
    model = replace(config.model, d_vocab=source.tokenizer.d_vocab)
    config = replace(config, model=model, batch_size=TOKENS // model.n_ctx)
    updates = new_updates(config, source, Machine.for_config(config))
    updates.model.train()
    updates(0)
    return updates


def seconds(updates: Updates, clock: Clock) -> float:
    began = clock()
    updates(1)[0].item()
    return clock() - began


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def growth_along(axis: str, sizes: tuple[int, ...], rounds: int, clock: Clock) -> dict[str, object]:
    made = [updates_of(axis, size) for size in sizes]
    times = [[seconds(updates, clock) for updates in made] for _ in range(rounds)]
    per_update = [median(column) for column in zip(*times, strict=True)]
    memory = [peak_memory(lambda updates=updates: updates(1)) for updates in made]
    return {
        "axis": axis,
        "sizes": sizes,
        "n_params": [updates.config.model.n_params for updates in made],
        "tokens_per_s": [TOKENS / value for value in per_update],
        "memory_bytes": memory,
        "time_exponent": exponent(sizes, per_update),
        "memory_exponent": exponent(sizes, [float(value) for value in memory]),
    }


def growth_of_checkpoints(clock: Clock) -> dict[str, object]:
    """Seconds and bytes of keeping so many checkpoints of the base model, without its optimizer."""
    updates = updates_of("n_layers", BASE.n_layers)
    spent, sizes = [], []
    with tempfile.TemporaryDirectory() as directory:
        for step in range(max(KEPT)):
            began = clock()
            path = save_checkpoint(Path(directory), step, updates.model.state_dict(), updates.config.model, 0)
            spent.append(clock() - began)
            sizes.append(sum(file.stat().st_size for file in path.iterdir()))
    time = [sum(spent[:n]) for n in KEPT]
    disk = [float(sum(sizes[:n])) for n in KEPT]
    return {
        "axis": "checkpoints kept", "sizes": KEPT, "seconds": time, "disk_bytes": disk,
        "time_exponent": exponent(KEPT, time), "disk_exponent": exponent(KEPT, disk),
    }  # fmt: skip


def row(found: dict[str, object]) -> str:
    of_disk = "disk_bytes" in found
    times = (f"{value:.2f} s" for value in found["seconds"]) if of_disk else (f"{value:,.0f}" for value in found["tokens_per_s"])
    memory = (f"{value / 1e6:.0f} MB" for value in found["disk_bytes" if of_disk else "memory_bytes"])
    slope = found["disk_exponent" if of_disk else "memory_exponent"]
    cells = [found["axis"], " ".join(map(str, found["sizes"])), " ".join(times), f"{found['time_exponent']:.2f}"]
    return f"| {' | '.join([*cells, ' '.join(memory), f'{slope:.2f}'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="the CPU time of one thread, not the time on the clock")
    parser.add_argument("--tiny", action="store_true", help="two sizes of each: only to see that everything runs")
    options = parser.parse_args()
    if options.cpu_time:
        torch.set_num_threads(1)
    clock = thread_time if options.cpu_time else perf_counter
    keep_freed_memory()
    facts, results = circumstances(options.cpu_time), []
    print(", ".join(map(str, facts.values())) + "\n")
    print("| what grows | sizes | tokens/s (checkpoints: seconds in all) | exponent of the time | memory, or disk | exponent |")
    print("|---|---|---|---|---|---|")
    for axis, sizes in AXES.items():
        results.append(growth_along(axis, sizes[:2] if options.tiny else sizes, options.rounds, clock))
        print(row(results[-1]), flush=True)
    results.append(growth_of_checkpoints(clock))
    print(row(results[-1]))
    if options.json:
        options.json.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
