"""What a sweep costs beside its computing: two processes, stacks of checkpoints, and reading and writing.

    python benchmarks/sweeps.py [--checkpoints 20] [--sequences 24] [--rounds 3] [--only processes,stacking,io] [--json FILE]

Three questions, on runs made here with random weights:
- processes: 20 checkpoints of a 10M model (6 layers, d_model 352, 4,096 tokens), head scores and losses, on two processes of
  one thread each, beside one process of one thread. To be at least 1.8 times as fast; the two must be up and have torch
  imported when the clock starts, as on a sweep of minutes, and the whole with their start is told beside it.
- stacking: 128 checkpoints of tiny models, with stack=True and without, in CPU time. Never slower: the median of the rounds'
  ratios is to be at most 1.02, of which 2 % is the question's own cost. What stacked computing alone gains is told beside it.
- io: the share of a sweep that is not computing, for the 10M model in one process: 1 - (time in analyses) / (whole time), with
  and without reading ahead. To be at most 5 %.

Ratios of wall-clock times say nothing while other work keeps the cores busy: run it on a quiet machine, with both of them.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import pandas  # noqa: F401  # whose import is no part of a sweep
import torch

from interp_gpt2 import GPT2, GPT2Config, Run, sweep
from interp_gpt2.analysis.attention_patterns import HeadScores
from interp_gpt2.analysis.loss import LossByPosition
from interp_gpt2.analysis.rows import Analysis, Row
from interp_gpt2.runs.checkpoint import save_checkpoint
from interp_gpt2.runs.writing import create_run
from interp_gpt2.sweeps import one_thread_each
from interp_gpt2.sweeps.stacking import measure_stacked

TEN_MILLION = GPT2Config(n_layers=6, n_heads=11, d_model=352, d_vocab=4096, n_ctx=256)
TINY = (  # layers, heads, d_model, sequences, positions
    (1, 1, 8, 1, 8),
    (2, 2, 16, 1, 32),
    (2, 4, 64, 1, 32),
    (2, 4, 64, 32, 64),
)
N_TINY = 128


def random_run(folder: Path, config: GPT2Config, n: int) -> Run:
    run = create_run(folder, {"config": {"seed": 0}})
    for step in range(n):
        save_checkpoint(run.path, step, GPT2(config, seed=step).state_dict(), config, step)
    return run


def tokens_for(config: GPT2Config, sequences: int, positions: int) -> torch.Tensor:
    return torch.randint(config.d_vocab, (sequences, positions + 1), generator=torch.Generator().manual_seed(0))


def seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    work()
    return clock() - began


def warm(_: int) -> int:
    """What a worker has done by the time a long sweep is under way."""
    torch.set_num_threads(1)
    GPT2(TEN_MILLION).eval()(torch.zeros(1, 8, dtype=torch.int64))
    time.sleep(0.5)  # so that the other process takes the other one
    return os.getpid()


def processes(folder: Path, n: int, sequences: int, rounds: int) -> dict[str, Any]:
    run = random_run(folder / "ten-million", TEN_MILLION, n)
    tokens = tokens_for(TEN_MILLION, sequences, 256)
    analyses = [HeadScores(tokens[:, :-1]), LossByPosition(tokens)]
    times: dict[str, list[float]] = {"one": [], "two": [], "two, started": []}
    for turn in range(rounds):

        def store(name: str, turn: int = turn) -> Path:
            return folder / f"{name}-{turn}"

        torch.set_num_threads(1)
        times["one"].append(seconds(lambda: sweep(run, analyses, workers=1, store=store("one"))))
        with one_thread_each(), ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            assert len(set(pool.map(warm, range(2)))) == 2
            times["two"].append(seconds(lambda pool=pool: sweep(run, analyses, executor=pool, store=store("two"))))
        times["two, started"].append(seconds(lambda: sweep(run, analyses, workers=2, store=store("fresh"))))
    gain = [one / two for one, two in zip(times["one"], times["two"], strict=True)]
    whole = [one / two for one, two in zip(times["one"], times["two, started"], strict=True)]
    return {
        "seconds": {name: median(values) for name, values in times.items()},
        "gain": median(gain),
        "gain_with_start": median(whole),
        "parameters": TEN_MILLION.n_params,
        "met": median(gain) >= 1.8,
    }


def stacking(folder: Path, n: int, rounds: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return [stacking_of(folder, n, rounds, shape) for shape in TINY]


def stacking_of(folder: Path, n: int, rounds: int, shape: tuple[int, int, int, int, int]) -> dict[str, Any]:
    layers, heads, width, sequences, positions = shape
    config = GPT2Config(n_layers=layers, n_heads=heads, d_model=width, d_vocab=64, n_ctx=positions)
    name = f"{layers} layers, d_model {width}, {sequences} x {positions}"
    run, analysis = random_run(folder / name, config, n), LossByPosition(tokens_for(config, sequences, positions))
    models = [run.model(step) for step in run.steps[:32]]
    alone, together, ratios = [], [], []

    def swept(stack: bool, turn: int) -> float:
        store = folder / f"{name}-{stack}-{turn}"
        return seconds(lambda: sweep(run, analysis, workers=1, store=store, stack=stack), time.process_time)

    @torch.no_grad()
    def one_by_one() -> None:
        for model in models:
            analysis.measure(model)

    for turn in range(-1, max(rounds, 3)):  # the first warms up
        order = (True, False) if turn % 2 else (False, True)
        times = {stack: swept(stack, turn) for stack in order}
        ratios.append(times[True] / times[False])
        alone.append(seconds(one_by_one))
        together.append(seconds(lambda: measure_stacked(analysis, models)))
    whole = median(ratios[1:])
    return {"model": name, "whole": whole, "computing": median(alone[1:]) / median(together[1:]),
            "milliseconds_a_model": 1000 * median(alone[1:]) / len(models), "met": whole <= 1.02}  # fmt: skip


class Clocked(Analysis):
    """Another analysis, whose time it notes."""

    def __init__(self, of: Analysis) -> None:
        self.of, self.name, self.seconds = of, of.name, 0.0

    @property
    def fingerprint(self) -> str:
        return self.of.fingerprint

    def __call__(self, model: GPT2) -> list[Row]:
        began = time.perf_counter()
        try:
            return self.of(model)
        finally:
            self.seconds += time.perf_counter() - began


def reading_and_writing(folder: Path, n: int, sequences: int, rounds: int) -> dict[str, Any]:
    run = Run(folder / "ten-million") if (folder / "ten-million").exists() else random_run(folder / "ten-million", TEN_MILLION, n)
    tokens = tokens_for(TEN_MILLION, sequences, 256)
    torch.set_num_threads(1)
    ahead, in_turn = [], []
    for turn in range(rounds):
        analyses = [Clocked(HeadScores(tokens[:, :-1])), Clocked(LossByPosition(tokens))]
        whole = seconds(lambda: sweep(run, analyses, workers=1, store=folder / f"io-{turn}"))  # noqa: B023
        ahead.append(1 - sum(one.seconds for one in analyses) / whole)
        reading = seconds(lambda: [run.model(step) for step in run.steps])
        in_turn.append(reading / (reading + sum(one.seconds for one in analyses)))
    return {"share": median(ahead), "share_of_reading_if_in_turn": median(in_turn), "met": median(ahead) <= 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--sequences", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="processes,stacking,io")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true", help="8 tiny models instead of 128: only to see that everything runs")
    args = parser.parse_args()
    wanted, found = args.only.split(","), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "processes" in wanted:
            found["processes"] = one = processes(folder, args.checkpoints, args.sequences, args.rounds)
            print(f"processes: {one['parameters']:,} parameters, {args.checkpoints} checkpoints: "
                  f"one {one['seconds']['one']:.1f} s, two {one['seconds']['two']:.1f} s, {one['gain']:.2f}x "
                  f"(with their start {one['gain_with_start']:.2f}x): {'met' if one['met'] else 'MISSED'}")  # fmt: skip
        if "io" in wanted:
            found["io"] = one = reading_and_writing(folder, args.checkpoints, args.sequences, args.rounds)
            print(f"io: {one['share']:.1%} of a sweep is not computing (reading in turn would be "
                  f"{one['share_of_reading_if_in_turn']:.1%}): {'met' if one['met'] else 'MISSED'}")  # fmt: skip
        if "stacking" in wanted:
            found["stacking"] = stacking(folder, 8 if args.tiny else N_TINY, args.rounds)
            for one in found["stacking"]:
                print(f"stacking: {one['model']} ({one['milliseconds_a_model']:.2f} ms a model): computing "
                      f"{one['computing']:.2f}x, the sweep takes {one['whole']:.2f} of its time: "
                      f"{'met' if one['met'] else 'MISSED'}")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
