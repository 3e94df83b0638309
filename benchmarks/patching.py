"""What patching sweeps cost: ours beside TransformerLens's own, on the same random weights, in one process.

    python benchmarks/patching.py                    a table
    python benchmarks/patching.py --json out.json    every number
    python benchmarks/patching.py --growth           how the cost grows with prompt length and layers (ours and whole passes)

TransformerLens 3.9 and 4.3 exclude each other, so the section is made of two runs, and a third for the growth:

    python benchmarks/patching.py --json tl3.json --growth    where transformer-lens 3.9 is installed
    python benchmarks/patching.py --json tl4.json             where 4.3 is
    python benchmarks/patching.py --merge tl3.json tl4.json   prints PATCHING.md, but for its last words

A pair of 15 tokens whose prompts first differ at index 0 (nothing is the same in both runs: this decides) and at index 4. Our
time is of everything, from the two prompts to the labelled result; TransformerLens's is of its get_act_patch_*, which are
given the clean cache. Of its larger sweeps SAMPLE cells, drawn once at random, are run by its generic_activation_patch and
scaled to all; ours are whole. measuring.py says how times are taken. Values are compared where both have them, with those of
whole passes of our own model too (`naive=True`), relative to the largest. --tiny tries everything on a small model.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import page
import patching_growth
import torch
from instrument import SMALL, TINY
from measuring import OURS, Clock, Work, circumstances, installed, median_ratio, milliseconds
from torch import Tensor

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.causal import activation_patching
from interp_gpt2.causal.engine import run_patches
from interp_gpt2.causal.metrics import logit_difference
from interp_gpt2.causal.result import PatchingResult
from interp_gpt2.convert.transformer_lens import to_hooked_transformer, to_transformer_bridge
from interp_gpt2.memory import keep_freed_memory
from interp_gpt2.prompts.pairs import PromptPairs

N_POS, SAMPLE, CORRECT, INCORRECT = 15, 60, 5, 7
WITH_FUNCTION = f"{OURS}, a function of whole logits"
DIFFER_AT = (0, 4)
# Sweeps, and at most this part of TransformerLens 4's and of 3's time.
SWEEPS = {
    "resid_pre": (1 / 12, 1 / 25),
    "attn_head_out_by_pos": (1 / 20, 1 / 20),
    "attn_head_pattern_all_pos": (1 / 8, 1 / 8),
    "attn_head_pattern_by_pos": (1 / 8, 1 / 8),
}


@dataclass(frozen=True)
class Measured:
    """A sweep in milliseconds, ours divided by theirs, and by how much the values are apart, relative to the largest."""

    sweep: str
    cells: int
    differ_at: int
    skipped: int
    milliseconds: dict[str, float]
    ratio: dict[str, float]  # ours, with its metric and with a function of whole logits, divided by theirs
    sampled: int | None
    apart_from_theirs: float | None
    apart_from_whole_passes: float
    target: float | None


def difference(logits: Tensor) -> Tensor:
    """The usual metric, of whole logits."""
    return (logits[:, -1, CORRECT] - logits[:, -1, INCORRECT]).mean()


def pair_of(config: GPT2Config, differ_at: int, n_pos: int = N_POS) -> PromptPairs:
    clean = torch.randint(10, config.d_vocab, (1, n_pos), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[0, differ_at] = 9
    return PromptPairs(clean, corrupted, torch.tensor([[CORRECT]]), torch.tensor([[INCORRECT]]))


class Lens:
    """TransformerLens's own model of our weights, with its patching."""

    def __init__(self, model: GPT2) -> None:
        self.version = installed("transformer-lens")
        self.is_4 = self.version.startswith("4.")
        self.name = f"TransformerLens {self.version}" + (" bridge" if self.is_4 else " HookedTransformer")
        self.model = to_transformer_bridge(model) if self.is_4 else to_hooked_transformer(model)

    def sweep(self, name: str, pairs: PromptPairs) -> Callable[[list[tuple[int, ...]] | None], Tensor]:
        """The sweep as its users call it; of some cells, as its index_df says them."""
        import pandas as pd
        from transformer_lens import patching

        whole = getattr(patching, f"get_act_patch_{name}")
        cache = self.model.run_with_cache(pairs.clean)[1]
        given = (self.model, pairs.corrupted, cache, difference)

        def run(cells: list[tuple[int, ...]] | None) -> Tensor:
            if cells is None:
                return whole(*given).flatten()
            index = pd.DataFrame(cells, columns=whole.keywords["index_axis_names"])
            how = {key: whole.keywords[key] for key in ("patch_setter", "activation_name")}
            return patching.generic_activation_patch(*given, **how, index_df=index)

        return run


def measured(model: GPT2, lens: Lens | None, name: str, differ_at: int, rounds: int, clock: Clock) -> Measured:
    sweep, pairs = getattr(activation_patching, f"get_act_patch_{name}"), pair_of(model.config, differ_at)
    places = torch.cartesian_prod(*map(torch.tensor, sweep.ranges(model, N_POS))).tolist()
    chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(1))[:SAMPLE].sort().values
    sampled = len(places) > 4 * SAMPLE
    chosen = chosen if sampled else torch.arange(len(places))
    found: dict[str, Any] = {}

    def ours(metric: Any) -> Work:
        return lambda: found.__setitem__("ours", sweep(model, pairs, metric))

    contenders = {OURS: ours(logit_difference(CORRECT, INCORRECT)), WITH_FUNCTION: ours(difference)}
    if lens is not None:
        theirs = lens.sweep(name, pairs)
        cells = [tuple(places[at]) for at in chosen.tolist()] if sampled else None
        contenders[lens.name] = lambda: found.__setitem__("theirs", theirs(cells))
        theirs([tuple(places[0])])  # to warm up
    times = in_turn(contenders, rounds, clock, {lens.name: len(places) / len(chosen)} if lens else {})
    whole_passes = values_of_whole_passes(model, sweep, pairs, chosen[:SAMPLE])
    result: PatchingResult = sweep(model, pairs, logit_difference(CORRECT, INCORRECT))
    ours_flat, by_function = (each.values.flatten() for each in (result, found["ours"]))
    return Measured(
        name, len(places), differ_at, result.n_skipped, {who: median(values) for who, values in times.items()},
        {} if lens is None else {who: median_ratio(times[who], times[lens.name]) for who in (OURS, WITH_FUNCTION)},
        len(chosen) if sampled else None,
        None if lens is None else max(apart(values[chosen], found["theirs"]) for values in (ours_flat, by_function)),
        apart(ours_flat[chosen[:SAMPLE]], whole_passes),
        None if lens is None or differ_at else SWEEPS[name][0 if lens.is_4 else 1],
    )  # fmt: skip


def in_turn(contenders: dict[str, Work], rounds: int, clock: Clock, scale: dict[str, float]) -> dict[str, list[float]]:
    """As measuring.in_turn, but that only ours run once more to warm up: theirs have run a cell, and take minutes."""
    for name, work in contenders.items():
        if name in (OURS, WITH_FUNCTION):
            work()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        order = list(contenders.items())
        for name, work in order if turn % 2 == 0 else reversed(order):
            times[name].append(milliseconds(work, 1, clock) * scale.get(name, 1.0))
    return times


def values_of_whole_passes(model: GPT2, sweep: activation_patching.Sweep, pairs: PromptPairs, chosen: Tensor) -> Tensor:
    cells = sweep.cells(model, N_POS)
    source = model.run_with_cache(pairs.clean, sorted({cell[0].name(model.config) for cell in cells}))[1]
    some = [cells[at] for at in chosen.tolist()]
    return run_patches(model, pairs.corrupted, some, logit_difference(CORRECT, INCORRECT), source, naive=True).values[:, 0]


def apart(found: Tensor, expected: Tensor) -> float:
    return ((found.cpu() - expected.cpu()).abs().max() / expected.abs().max()).item()


# The page, PATCHING.md ------------------------------------------------------------------------------------------------

INTRODUCTION = """\
## What patching costs

Seconds of whole sweeps at the published small shape (random weights, float32, medians), from two prompts of 15 tokens to the
result; in brackets our time divided by theirs (median over rounds of that round's ratio), which at index 0 decides. `metric`:
`logit_difference`, which says where it looks; `function`: the same difference as a function of whole logits, which pays for
them. TransformerLens is always given the function, and the clean cache. Where "of n" stands, n of its cells, drawn at random,
were run and scaled to all. Cells in which nothing differs are skipped, and counted. `apart`: the largest difference between
our values and theirs, and between ours and those of whole passes of our own model (of at most {sample} cells), relative to the
largest value.

{circumstances}

Written by `python benchmarks/patching.py` as it says.
"""


def section(runs: list[dict[str, Any]]) -> str:
    facts = "\n".join(f"- {page.described(run['circumstances'])}" for run in runs)
    parts = [INTRODUCTION.format(circumstances=facts, sample=SAMPLE), *(speeds(run["patching"]) for run in runs)]
    parts += [patching_growth.section(run["growth"]) for run in runs if "growth" in run]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def speeds(found: list[dict[str, Any]]) -> str:
    theirs = [name for name in found[0]["milliseconds"] if name not in (OURS, WITH_FUNCTION)]
    columns = ["sweep", "cells", "differ at", "skipped", f"{OURS}, metric", "function", *theirs, "apart", "target", "met"]
    return page.markdown(columns, [row(each, theirs) for each in found])


def row(each: dict[str, Any], theirs: list[str]) -> list[str]:
    times, ratio, target = each["milliseconds"], each["ratio"], each["target"]
    ours = [f"{times[who] / 1000:.3g}" + (f" (1/{1 / ratio[who]:.1f})" if ratio else "") for who in (OURS, WITH_FUNCTION)]
    of = "" if each["sampled"] is None else f" (of {each['sampled']})"
    values = [each["apart_from_theirs"], each["apart_from_whole_passes"]]
    return [
        each["sweep"], str(each["cells"]), str(each["differ_at"]), str(each["skipped"]), *ours,
        *(f"{times[name] / 1000:.3g}{of}" for name in theirs),
        "; ".join(f"{value:.0e}" for value in values if value is not None),
        "" if target is None else f"<= 1/{1 / target:.0f}",
        "" if target is None else "yes" if ratio[OURS] <= target else "no",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="JSON", help="print the section of these runs; measure nothing")
    parser.add_argument("--growth", action="store_true", help="measure the growth too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="the CPU time of one thread, not the time on the clock")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 layers: only to see that everything runs")
    options = parser.parse_args()
    if options.merge:
        sys.stdout.write(section([json.loads(path.read_text("utf-8")) for path in options.merge]))
        return
    if options.cpu_time:
        torch.set_num_threads(1)
    clock = thread_time if options.cpu_time else perf_counter
    keep_freed_memory()
    run: dict[str, Any] = {"circumstances": circumstances(options.cpu_time), "patching": []}
    with torch.no_grad():
        model = GPT2(TINY if options.tiny else SMALL).eval()
        lens = Lens(model) if installed("transformer-lens") else None
        measure = partial(measured, model, lens, rounds=options.rounds, clock=clock)
        for name in SWEEPS:
            for differ_at in DIFFER_AT:
                run["patching"].append(asdict(measure(name=name, differ_at=differ_at)))
                print(run["patching"][-1], file=sys.stderr, flush=True)
        if options.growth:
            run["growth"] = patching_growth.all_tables(options.rounds, clock, options.tiny)
    sys.stdout.write(section([run]))
    if options.json:
        options.json.write_text(json.dumps(run, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
