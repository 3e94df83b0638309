"""How the benchmarks measure. Ratios decide, since times move with the machine.

The contenders of a row run in turn, A B C C B A A B C ..., so that they share what else the machine does; a time is the
median over rounds, a ratio the median over rounds of that round's ratio. What a contender returns is freed within its own time.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

OURS, HF, OWN_FORWARD = "interp_gpt2", "Hugging Face", "own forward"

Work = Callable[[], Any]
Clock = Callable[[], float]  # in seconds


@dataclass(frozen=True)
class Row:
    """One piece of work and who does it. `target` is ours divided by `against`, or milliseconds without one."""

    name: str
    contenders: dict[str, Work]
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


def measure(row: Row, rounds: int, clock: Clock) -> Result:
    rounds = min(row.rounds or rounds, rounds) * row.inner
    times = in_turn(row.contenders, rounds, clock, row.inner)
    ratio = {name: median_ratio(times[OURS], others) for name, others in times.items() if name != OURS}
    ours = median(times[OURS])
    met = (ours if row.against is None else ratio[row.against]) <= row.target
    target = f"<= {row.target:g} ms" if row.against is None else f"<= {row.target:.2f} x {row.against}"
    return Result(row.name, {name: median(values) for name, values in times.items()}, ratio, target, met, rounds)


def in_turn(contenders: Mapping[str, Work], rounds: int, clock: Clock, inner: int = 1) -> dict[str, list[float]]:
    """Each contender's milliseconds, round by round, after one run to warm up."""
    for work in contenders.values():
        milliseconds(work, inner, clock)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        order = list(contenders.items())
        for name, work in order if turn % 2 == 0 else reversed(order):
            times[name].append(milliseconds(work, inner, clock))
    return times


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    return median(mine / other for mine, other in zip(ours, theirs, strict=True))


def milliseconds(work: Work, inner: int, clock: Clock) -> float:
    start = clock()
    for _ in range(inner):
        work()
    return 1000 * (clock() - start) / inner


def circumstances(cpu_time: bool) -> dict[str, Any]:
    threads = "CPU time of 1 thread" if cpu_time else f"{torch.get_num_threads()} threads"
    versions = {name: installed(name) for name in ("torch", "transformers", "transformer-lens", "nnsight", "interp_gpt2")}
    return {
        "date": date.today().isoformat(),
        "machine": f"{processor()}, {threads}, {platform.system()}",
        "python": platform.python_version(),
        **{name: found for name, found in versions.items() if found},
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()
