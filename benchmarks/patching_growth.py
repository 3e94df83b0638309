"""How the cost of a sweep grows with the prompt and with the layers: ours beside one whole pass for each cell.

Measured by `python benchmarks/patching.py --growth`. Pairs that first differ at index 0, logit difference at the last
token, models as wide as the small one and with its vocabulary. Two ways each: over every position (resid_pre), and over the
last 8 (resid_pre; z of every head), which are as many cells however long the prompt is. Whole passes are measured on a few
cells (`naive=True`) and scaled.
"""

from dataclasses import replace
from statistics import median
from typing import Any

import page
import torch
from instrument import SMALL, TINY
from measuring import OURS, Clock, Work, milliseconds
from torch import Tensor

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.causal.activation_patching import Sweep
from interp_gpt2.causal.engine import run_patches
from interp_gpt2.causal.metrics import logit_difference
from interp_gpt2.prompts.pairs import PromptPairs

NAIVE, CELLS, LAST = "whole passes", 6, 8
METRIC = logit_difference(5, 7)
LENGTHS, LAYERS = (8, 16, 32, 64, 128, 256), (2, 4, 8, 12, 24)


def pair_of(config: GPT2Config, n_pos: int) -> PromptPairs:
    clean = torch.randint(10, config.d_vocab, (1, n_pos), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[0, 0] = 9
    return PromptPairs(clean, corrupted, torch.tensor([[5]]), torch.tensor([[7]]))


def table(
    what: str, shapes: dict[int, tuple[GPT2Config, int]], last: int | None, rounds: int, clock: Clock, heads: bool = False
) -> dict[str, Any]:
    """Milliseconds of both at each size, and the slopes of straight lines through the logarithms."""
    point, axes = ("z", ("layer", "pos", "head")) if heads else ("resid_pre", ("layer", "pos"))
    times: dict[str, list[float]] = {OURS: [], NAIVE: []}
    for config, n_pos in shapes.values():
        model, pairs = GPT2(config).eval(), pair_of(config, n_pos)
        sweep = Sweep(point, axes, positions=None if last is None else range(n_pos - last, n_pos))
        times[OURS].append(typical(lambda: sweep(model, pairs, METRIC), rounds, clock))  # noqa: B023
        times[NAIVE].append(whole_passes(model, pairs, sweep, rounds, clock))
    sizes = list(shapes)
    return {"what": what, "sizes": sizes, "milliseconds": times, "exponent": {k: exponent(sizes, v) for k, v in times.items()}}


def whole_passes(model: GPT2, pairs: PromptPairs, sweep: Sweep, rounds: int, clock: Clock) -> float:
    """The loop over all cells, from the time of a few; with the pass that keeps the clean run's streams."""
    cells = sweep.cells(model, pairs.clean.shape[1])
    chosen = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))[:CELLS].tolist()

    def source() -> dict[str, Tensor]:
        return model.run_with_cache(pairs.clean, f"*.{sweep.point}")[1]

    kept = source()

    def loop() -> object:  # one pass more: the run without a patch
        return run_patches(model, pairs.corrupted, [cells[at] for at in chosen], METRIC, kept, naive=True)

    one = typical(loop, rounds, clock) / (len(chosen) + 1)
    return one * (len(cells) + 1) + typical(source, rounds, clock)


def typical(work: Work, rounds: int, clock: Clock) -> float:
    """The median, after one run to warm up."""
    work()
    return median(milliseconds(work, 1, clock) for _ in range(rounds))


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of the straight line of least squares through the logarithms."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def all_tables(rounds: int, clock: Clock, tiny: bool) -> list[dict[str, Any]]:
    base = TINY if tiny else SMALL
    lengths, layers = (LENGTHS[:3], LAYERS[:2]) if tiny else (LENGTHS, LAYERS)

    def long(n_layers: int) -> dict[int, tuple[GPT2Config, int]]:
        return {n_pos: (replace(base, n_layers=n_layers), n_pos) for n_pos in lengths}

    deep = {n_layers: (replace(base, n_layers=n_layers), 15) for n_layers in layers}
    return [
        table("tokens; resid_pre at every position, 4 layers", long(4), None, rounds, clock),
        table(f"tokens; resid_pre at the last {LAST}, 12 layers", long(12), LAST, rounds, clock),
        table(f"tokens; z of every head at the last {LAST}, 12 layers", long(12), LAST, rounds, clock, heads=True),
        table("layers; resid_pre at every position of 15", deep, None, rounds, clock),
        table(f"layers; resid_pre at the last {LAST} of 15", deep, LAST, rounds, clock),
    ]


INTRODUCTION = """\
### How it grows

Sweeps as above, milliseconds, beside one whole pass for each cell (`naive=True`, scaled from {cells} cells); an
exponent is the slope of a straight line through the logarithms. Over every position there are as many more cells as tokens,
each of which changes half of the positions on average; over the last {last} only the two runs themselves grow, and the scores.
"""


def section(tables: list[dict[str, Any]]) -> str:
    rows = []
    for each in tables:
        for who, times in each["milliseconds"].items():
            sizes = [f"{size}: {page.rounded(time)}" for size, time in zip(each["sizes"], times, strict=True)]
            rows.append([each["what"], who, ", ".join(sizes), f"{each['exponent'][who]:.2f}"])
    table = page.markdown(["what grows", "by", "size: ms", "exponent"], rows)
    return INTRODUCTION.format(cells=CELLS, last=LAST).strip() + "\n\n" + table
