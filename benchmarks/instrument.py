"""What looking inside costs: ours beside Hugging Face, TransformerLens and nnsight, on the same random weights.

    python benchmarks/instrument.py                    a table
    python benchmarks/instrument.py --json out.json    every number

What is installed of the peers is measured, in one process. TransformerLens 3.9 and 4.3 exclude each other, so the page is
made of two runs; each ratio is of two times from one process:

    python benchmarks/instrument.py --json tl3.json                 where transformer-lens 3.9 is installed
    python benchmarks/instrument.py --peers-only --json tl4.json    where 4.3 and nnsight are
    python benchmarks/instrument.py --merge tl3.json tl4.json > benchmarks/RESULTS.md

measuring.py says how times are taken, peers.py who does what. No gradients, float32, the number of threads torch chooses.
On a busy machine --cpu-time counts what one thread computes instead of what the clock says. Nothing is written unless asked.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import footprint
import page
import torch
from measuring import HF, OURS, OWN_FORWARD, Clock, Row, Work, circumstances, in_turn, measure, median_ratio
from peers import peers_of
from torch import Tensor

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.hooks import Names, Part, default_hook_points
from interp_gpt2.memory import keep_freed_memory

SMALL = GPT2Config()
TINY = GPT2Config(n_layers=2, n_heads=4, d_model=64, d_vocab=1000)
SUBSETS: dict[str, tuple[Names, Part | None]] = {
    "nothing": ([], None),
    "one layer's resid_post": (("resid_post", -1), None),
    "every resid_post": ("*.resid_post", None),
    "every mlp.post": ("*.mlp.post", None),
    "every pattern": ("*.pattern", None),
    "everything, at the last token": (None, Part(pos_slice=-1)),
    "everything": (None, None),
}


def with_results(config: GPT2Config) -> Names:
    return [*default_hook_points(config), "*.result"]


def tokens_of(config: GPT2Config, batch: int, pos: int) -> Tensor:
    return torch.randint(config.d_vocab, (batch, pos), generator=torch.Generator().manual_seed(0))


def rows_of_tiny() -> list[Row]:
    """Two layers of width 64, where what counts is the cost of Python."""
    model = GPT2(TINY).eval()
    peers, tokens = peers_of(model), tokens_of(TINY, 1, 32)
    ours = {OURS: lambda: model.run_with_cache(tokens), OWN_FORWARD: lambda: model(tokens)}
    return [
        Row("2 layers, d_model 64: forward, 1 x 32", beside(peers, "forward", model, tokens), 0.4, inner=10),
        Row("2 layers, d_model 64: cache every activation, 1 x 32", ours | theirs(peers, "cache", tokens), 0.7, inner=10),
    ]


def rows_of_small(config: GPT2Config) -> list[Row]:
    """Forward passes and caches of a model in the published small size."""
    model = GPT2(config).eval()
    peers, long, short = peers_of(model), tokens_of(config, 4, 256), tokens_of(config, 1, 15)
    return [
        Row("forward, 4 x 256 tokens", beside(peers, "forward", model, long), 1.02, HF),
        *rows_of_caches(model, long, peers),
        Row("forward, 1 x 15 tokens", beside(peers, "forward", model, short), 50),
    ]


def rows_with_freed_memory_kept(config: GPT2Config) -> list[Row]:
    """The caches once more, in a process that reuses what it freed. That cannot be undone: the last rows."""
    keep_freed_memory()
    model = GPT2(config).eval()
    return rows_of_caches(model, tokens_of(config, 4, 256), peers_of(model)[:1], ", freed memory kept")


def rows_of_caches(model: GPT2, tokens: Tensor, peers: list, how: str = "") -> list[Row]:
    forward, results = {OWN_FORWARD: lambda: model(tokens)}, with_results(model.config)
    return [
        Row(
            f"cache every activation, 4 x 256{how}",
            {OURS: lambda: model.run_with_cache(tokens), **forward, **theirs(peers, "cache", tokens)},
            1.10,
            OWN_FORWARD,
        ),
        Row(
            f"the same with per-head results{how}",
            {
                OURS: lambda: model.run_with_cache(tokens, results),
                **forward,
                **theirs(peers, "cache_with_results", tokens),
            },
            1.60,
            OWN_FORWARD,
            rounds=5 if len(peers) > 1 else None,
        ),
    ]


def beside(peers: list, what: str, model: GPT2, tokens: Tensor) -> dict[str, Work]:
    return {OURS: lambda: model(tokens), **theirs(peers, what, tokens)}


def theirs(peers: list, what: str, tokens: Tensor) -> dict[str, Work]:
    calls = {peer.name: getattr(peer, what) for peer in peers}
    return {name: lambda call=call: call(tokens) for name, call in calls.items() if call is not None}


def subsets(config: GPT2Config, rounds: int, clock: Clock) -> list[dict[str, Any]]:
    """What a part of the cache costs: milliseconds, ratio to the own forward pass, and bytes kept."""
    model, tokens = GPT2(config).eval(), tokens_of(config, 4, 256)

    def recorded(names: Names, keep: Part | None) -> Work:
        return lambda: model.run_with_cache(tokens, names, keep=keep)

    parts = SUBSETS | {"everything and per-head results": (with_results(config), None)}
    calls = {name: recorded(*what) for name, what in parts.items()}
    kept = {name: footprint.bytes_of(call()[1].values()) for name, call in calls.items()}
    times = in_turn({OWN_FORWARD: lambda: model(tokens), **calls}, rounds, clock)
    return [
        {
            "kept": name,
            "bytes": kept[name],
            "milliseconds": median(times[name]),
            "ratio": median_ratio(times[name], times[OWN_FORWARD]),
        }
        for name in calls
    ]


def table(rows_in_turn: tuple[Callable[[], list[Row]], ...], rounds: int, clock: Clock) -> list[dict[str, Any]]:
    results = []
    for rows in rows_in_turn:
        for row in rows():
            results.append(asdict(measure(row, rounds, clock)))
            times = ", ".join(f"{name} {time:.3g} ms" for name, time in results[-1]["milliseconds"].items())
            print(f"{row.name}: {times}", file=sys.stderr, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="JSON", help="print the page of these runs; measure nothing")
    parser.add_argument("--peers-only", action="store_true", help="only what others do too")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="the CPU time of one thread, not the time on the clock")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 layers: only to see that everything runs")
    options = parser.parse_args()
    if options.merge:
        sys.stdout.write(page.page([json.loads(path.read_text("utf-8")) for path in options.merge]))
        return
    clock = thread_time if options.cpu_time else perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    run: dict[str, Any] = {"circumstances": circumstances(options.cpu_time)}
    config = TINY if options.tiny else SMALL
    with torch.no_grad():
        run["rows"] = table((rows_of_tiny, partial(rows_of_small, config)), options.rounds, clock)
        if not options.peers_only:
            run["subsets"] = subsets(config, options.rounds, clock)
        run["rows"] += table((partial(rows_with_freed_memory_kept, config),), options.rounds, clock)
    if not options.peers_only:
        run |= {"footprint": footprint.all_cases(options.tiny), "imports": footprint.imports(1 if options.tiny else 5)}
    sys.stdout.write(page.page([run]))
    if options.json:
        options.json.write_text(json.dumps(run, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
