"""Tokens per second of a training step beside nanoGPT's own, on the same random text in one process, in turn.

    python benchmarks/training.py                      nanoGPT's two Shakespeare recipes, a table
    python benchmarks/training.py --compile            ours compiled as well (the first step takes a minute or more)
    python benchmarks/training.py --json out.json      every number

nanoGPT's step is nanogpt.py, in its defaults on a CPU: float32, no compile. Ours is `training.update.Updates` on the recipe as
it stands, in bfloat16 where the processor multiplies that, with the loss looked at once in a measurement. The larger recipe
is measured on 32 of its 64 sequences a step, by both. Measured as measuring.py does. On a busy machine --cpu-time counts what
one thread computes instead of what the clock says.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time

import numpy as np
import torch
from measuring import OURS, circumstances, in_turn, median_ratio
from nanogpt import NanoGPT, Training

from interp_gpt2.data.source import load_source
from interp_gpt2.memory import keep_freed_memory
from interp_gpt2.training.config import TrainConfig, load_recipe
from interp_gpt2.training.machine import Machine
from interp_gpt2.training.update import Updates, new_updates

PEER, EAGER, COMPILED, FP32 = "nanoGPT", OURS, f"{OURS}, compiled", f"{OURS}, float32"
RECIPES = {"tiny-shakespeare-cpu": (20, 12, 1.3), "tiny-shakespeare": (1, 32, 3.0)}  # steps of one measurement, batch, target
N_CHARACTERS = 1_000_000
SYMBOLS = "".join(map(chr, range(48, 48 + 65)))  # as many as Shakespeare's text has


def ours(config: TrainConfig, text: Path, **changes: object) -> Updates:
    config = replace(config, data=str(text), device="cpu", **changes)
    source = load_source(config.data, "char", text.parent / "streams")
    config = replace(config, model=replace(config.model, d_vocab=source.tokenizer.d_vocab))
    updates = new_updates(config, source, Machine.for_config(config))
    updates.model.train()
    return updates


def peer(config: TrainConfig, text: Path) -> Training:
    tokens = text.with_suffix(".bin")
    if not tokens.exists():
        np.array([ord(c) - 48 for c in text.read_text()], dtype=np.uint16).tofile(tokens)
    m = config.model
    model = NanoGPT(len(SYMBOLS), m.n_ctx, m.n_layers, m.n_heads, m.d_model, m.dropout)
    return Training(model, tokens, config.batch_size, m.n_ctx)


def stepping(updates: Updates, steps: int) -> Callable[[], list[float]]:
    """So many updates, after which the last loss is looked at."""
    done = iter(range(10**9))

    def work() -> list[float]:
        for _ in range(steps):
            measured = updates(next(done))
        return measured.tolist()

    return work


def compare(name: str, text: Path, rounds: int, clock: Callable[[], float], compile: bool) -> dict[str, object]:
    steps, batch_size, target = RECIPES[name]
    config = replace(load_recipe(name), batch_size=batch_size)
    theirs = peer(config, text)
    contenders: dict[str, Callable[[], object]] = {
        PEER: lambda: [theirs.step() for _ in range(steps)],
        FP32: stepping(ours(config, text, precision="fp32"), steps),
        EAGER: stepping(ours(config, text), steps),
    }
    if compile:
        contenders[COMPILED] = stepping(ours(config, text, compile=True), steps)
    times = in_turn(contenders, rounds, clock)
    tokens = steps * config.tokens_per_step
    return {
        "recipe": name,
        "target": target,
        "tokens_per_s": {who: 1000 * tokens / median(values) for who, values in times.items()},
        "times_nanogpt": {who: 1 / median_ratio(values, times[PEER]) for who, values in times.items() if who != PEER},
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=RECIPES, help="one of the recipes")
    parser.add_argument("--compile", action="store_true", help="ours compiled as well")
    parser.add_argument("--cpu-time", action="store_true", help="the CPU time of one thread, not the time on the clock")
    options = parser.parse_args()
    if options.cpu_time:
        torch.set_num_threads(1)
    clock = thread_time if options.cpu_time else perf_counter
    keep_freed_memory()  # for both
    facts, results = circumstances(options.cpu_time), []
    print(
        f"{facts['machine']}, torch {facts['torch']}\n\n| recipe | who | tokens/s | x nanoGPT | target |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("".join(np.random.default_rng(0).choice(list(SYMBOLS), N_CHARACTERS)))
        for name in [options.only] if options.only else RECIPES:
            result = compare(name, text, options.rounds, clock, options.compile)
            results.append(result)
            for who, speed in result["tokens_per_s"].items():
                ratio = result["times_nanogpt"].get(who)
                told = "" if ratio is None else f"{ratio:.2f}"
                print(f"| {name} | {who} | {speed:,.0f} | {told} | {'' if ratio is None else result['target']} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
