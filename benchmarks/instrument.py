"""What looking inside costs: ours beside Hugging Face and TransformerLens, in one process, on the same random weights.

    python benchmarks/instrument.py                    a table
    python benchmarks/instrument.py --json out.json    every number
    python benchmarks/instrument.py --markdown > benchmarks/RESULTS.md

Ratios decide, since times move with the machine. The contenders of a row run in turn, A B C C B A A B C ..., so that they
share what else the machine does; a time is the median over rounds, a ratio the median over rounds of that round's ratio.
No gradients, float32, the number of threads torch chooses. On a busy machine --cpu-time counts what one thread computes
instead of what the clock says. Nothing is written unless asked.
"""

import argparse
import json
import platform
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import torch

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.convert.transformer_lens import to_hooked_transformer, to_transformer_bridge
from interp_gpt2.hooks import default_hook_points
from interp_gpt2.training.machine import keep_freed_memory

SMALL = GPT2Config()
TINY = GPT2Config(n_layers=2, n_heads=4, d_model=64, d_vocab=1000)
HOOKED = int(version("transformer-lens").split(".")[0]) < 4
OURS, HF, LENS = COLUMNS = ("interp_gpt2", "Hugging Face", f"TransformerLens {'HookedTransformer' if HOOKED else 'bridge'}")

Clock = Callable[[], float]  # in seconds


@dataclass(frozen=True)
class Row:
    """One piece of work and who does it. `target` is ours divided by `against`, or milliseconds without one."""

    name: str
    contenders: dict[str, Callable[[], Any]]
    target: float
    against: str | None = None
    inner: int = 1  # runs that make one measurement, for work too short to be timed alone
    rounds: int | None = None  # for work too long to be repeated as often as the rest


@dataclass(frozen=True)
class Result:
    row: str
    milliseconds: dict[str, float]
    ratio: dict[str, float]
    target: str
    met: bool
    rounds: int


def rows_of_small() -> list[Row]:
    """Forward passes and caches of a model in the published small size."""
    model = GPT2(SMALL).eval()
    sdpa, eager = to_huggingface(model), to_huggingface(model)
    eager.set_attn_implementation("eager")
    lens, lens_with_results = lens_of(model), lens_of(model)
    lens_with_results.set_use_attn_result(True)
    draw = torch.Generator().manual_seed(0)
    long, short = (torch.randint(SMALL.d_vocab, shape, generator=draw) for shape in ((4, 256), (1, 15)))
    with_results = [*default_hook_points(SMALL), "*.result"]
    forward = {OURS: lambda: model(long)}
    return [
        Row(
            "forward, 4 x 256 tokens",
            forward | {HF: lambda: sdpa(long, use_cache=False), LENS: lambda: lens(long)},
            1.02,
            HF,
        ),
        Row(
            "cache every activation, 4 x 256",
            {
                OURS: lambda: model.run_with_cache(long),
                "own forward": forward[OURS],
                HF: lambda: eager(long, use_cache=False, output_hidden_states=True, output_attentions=True),
                LENS: lambda: lens.run_with_cache(long),
            },
            1.10,
            "own forward",
        ),
        Row(
            "the same with per-head results",
            {
                OURS: lambda: model.run_with_cache(long, with_results),
                "own forward": forward[OURS],
                LENS: lambda: lens_with_results.run_with_cache(long),
            },
            1.60,
            "own forward",
            rounds=3,
        ),
        Row(
            "forward, 1 x 15 tokens",
            {
                OURS: lambda: model(short),
                HF: lambda: sdpa(short, use_cache=False),
                LENS: lambda: lens(short),
            },
            50,
        ),
    ]


def rows_of_tiny() -> list[Row]:
    """The same for two layers of width 64, where what counts is the cost of Python."""
    model = GPT2(TINY).eval()
    hf_model, lens = to_huggingface(model), lens_of(model)
    tokens = torch.randint(TINY.d_vocab, (1, 32), generator=torch.Generator().manual_seed(0))
    return [
        Row(
            "2 layers, d_model 64: forward, 1 x 32",
            {
                OURS: lambda: model(tokens),
                HF: lambda: hf_model(tokens, use_cache=False),
                LENS: lambda: lens(tokens),
            },
            0.4,
            inner=10,
        ),
        Row(
            "2 layers, d_model 64: cache every activation, 1 x 32",
            {
                OURS: lambda: model.run_with_cache(tokens),
                "own forward": lambda: model(tokens),
                LENS: lambda: lens.run_with_cache(tokens),
            },
            0.7,
            inner=10,
        ),
    ]


def rows_with_freed_memory_kept() -> list[Row]:
    """The cache once more, in a process that reuses what it freed, as training does. It cannot be undone: the last rows."""
    keep_freed_memory()
    model = GPT2(SMALL).eval()
    eager = to_huggingface(model)
    eager.set_attn_implementation("eager")
    tokens = torch.randint(SMALL.d_vocab, (4, 256), generator=torch.Generator().manual_seed(0))
    return [
        Row(
            "cache every activation, 4 x 256, freed memory kept",
            {
                OURS: lambda: model.run_with_cache(tokens),
                "own forward": lambda: model(tokens),
                HF: lambda: eager(tokens, use_cache=False, output_hidden_states=True, output_attentions=True),
            },
            1.10,
            "own forward",
        )
    ]


def lens_of(model: GPT2) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return to_hooked_transformer(model) if HOOKED else to_transformer_bridge(model)


def measure(row: Row, rounds: int, clock: Clock) -> Result:
    rounds = min(row.rounds or rounds, rounds) * row.inner
    for work in row.contenders.values():
        milliseconds(work, row.inner, clock)  # warm-up
    times: dict[str, list[float]] = {name: [] for name in row.contenders}
    for turn in range(rounds):
        order = list(row.contenders.items())
        for name, work in order if turn % 2 == 0 else reversed(order):
            times[name].append(milliseconds(work, row.inner, clock))
    ratio = {
        name: median(mine / theirs for mine, theirs in zip(times[OURS], others, strict=True))
        for name, others in times.items()
        if name != OURS
    }
    ours = median(times[OURS])
    met = (ours if row.against is None else ratio[row.against]) <= row.target
    target = f"<= {row.target:g} ms" if row.against is None else f"<= {row.target:.2f} x {row.against}"
    return Result(row.name, {name: median(values) for name, values in times.items()}, ratio, target, met, rounds)


def milliseconds(work: Callable[[], Any], inner: int, clock: Clock) -> float:
    start = clock()
    for _ in range(inner):
        work()  # what it returns is freed within the measurement
    return 1000 * (clock() - start) / inner


def circumstances(cpu_time: bool) -> dict[str, Any]:
    packages = ("torch", "transformers", "transformer-lens", "interp_gpt2")
    threads = "CPU time of 1 thread" if cpu_time else f"{torch.get_num_threads()} threads"
    return {
        "date": date.today().isoformat(),
        "machine": f"{processor()}, {threads}, {platform.system()}",
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


def heading(facts: dict[str, Any]) -> str:
    """What RESULTS.md says above its table."""
    lines = [
        "# What looking inside costs",
        "",
        "Written by `python benchmarks/instrument.py --markdown > benchmarks/RESULTS.md`. Milliseconds (medians); in brackets",
        "our time divided by theirs (median over rounds of that round's ratio). Random weights, float32, no gradients, one",
        "process, in turn. Hugging Face runs SDPA attention in forward passes, and eager attention with hidden states and",
        "attentions where activations are cached. On AMD processors our matrix products run through oneDNN",
        "(interp_gpt2/linear.py), the others' through MKL. Most of what a cache adds is the kernel handing out a gigabyte in",
        "pages; the last row is without that.",
        "",
        ", ".join(f"{name} {value}" if name != "machine" else value for name, value in facts.items()) + ".",
        "",
    ]
    return "\n".join(lines)


def table_head() -> str:
    columns = ["work", *COLUMNS, "target", "met"]
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def table_row(result: Result) -> str:
    cells = [result.row, *(cell(result, name) for name in COLUMNS), result.target, "yes" if result.met else "no"]
    return f"| {' | '.join(cells)} |"


def cell(result: Result, name: str) -> str:
    if name not in result.milliseconds:
        return ""
    time = f"{result.milliseconds[name]:.3g}" if result.milliseconds[name] < 100 else f"{result.milliseconds[name]:.0f}"
    against = result.ratio.get(name if name != OURS else "own forward")
    if against is None:
        return time
    return f"{time} ({against:.2f} x own forward)" if name == OURS else f"{time} ({against:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--markdown", action="store_true", help="print the whole of RESULTS.md")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="the CPU time of one thread, not the time on the clock")
    options = parser.parse_args()
    clock = thread_time if options.cpu_time else perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    facts, results = circumstances(options.cpu_time), []
    if options.markdown:
        print(heading(facts))
    print(table_head(), flush=True)
    with torch.no_grad():
        for rows in (rows_of_tiny, rows_of_small, rows_with_freed_memory_kept):
            for row in rows():
                results.append(measure(row, options.rounds, clock))
                print(table_row(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({**facts, "results": [asdict(result) for result in results]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
