"""What saving costs training: one checkpoint of the weights in 100 steps, at the shape of the published small GPT-2.

    python benchmarks/saving.py [--tokens 4x256] [--saves 3] [--resumable]

To be at most 1 % of those 100 steps. Three shares of their time are told, from the kindest to the harshest:
- copied: what the loop itself waits for, while the state is copied to host memory;
- lost: that, and by how much the steps beside the writer are longer than the median step without one;
- all of it: the copy, and every processor second of the writer, as if none of it ran beside training.
On two cores that both train, the writer takes its time from them, so "lost" lies between the other two where the machine is
otherwise idle; where it is not, only processor times mean something.

Measured on 2026-11-20, two cores of an AMD EPYC, bfloat16, one sequence of 256 tokens (the shortest step tried, 0.60 s; load 3):
copied 0.12 %, lost 0.72 %, all of it 0.74 %. Four sequences, with a load of 4.6: 0.01, 0.08 and 0.10 %. With the optimizer's
state (--resumable, which happens every `resume_every` steps, 500, and not every 100): 0.17, 1.83 and 2.01 % of 100 steps of 256.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from interp_gpt2 import GPT2Config
from interp_gpt2.data.source import load_source
from interp_gpt2.memory import keep_freed_memory
from interp_gpt2.runs.writing import create_run
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.events import silent
from interp_gpt2.training.machine import Machine
from interp_gpt2.training.saving import Saver
from interp_gpt2.training.update import Updates, new_updates

STEPS = 100  # between checkpoints
CHECKPOINTS = Checkpoints(anchors=0)


class TimedSaver(Saver):
    """A saver that also adds up its thread's processor time."""

    writer_seconds = 0.0

    def _write(self, *args):
        began = time.thread_time()
        try:
            return super()._write(*args)
        finally:
            self.writer_seconds += time.thread_time() - began


def timed(work) -> tuple[float, float]:
    """Wall and processor seconds of a call; on a GPU, until it is idle."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(updates: Updates, saver: TimedSaver, saves: int, resumable: bool) -> dict[str, float]:
    """Seconds for one save, medians over `saves`, and of a step without one."""
    step = 0

    def advance() -> tuple[float, float]:
        nonlocal step
        step += 1
        return timed(lambda: updates(step - 1))

    for _ in range(2):  # the first steps set memory up
        advance()
    saver.save(step, updates.model, updates.optimizer, resumable)  # and so does the first save
    saver.settle()
    saver.writer_seconds = 0.0
    alone, copied, excess = [], [], []
    for _ in range(saves):
        before = [advance() for _ in range(2)]
        copied.append(timed(lambda: saver.save(step, updates.model, updates.optimizer, resumable)))
        beside = []
        while saver.writing is not None and not saver.writing.done():
            beside.append(advance())
        saver.settle()
        alone += [*before, advance()]
        excess.append((sum(wall for wall, _ in beside), len(beside)))
    step_wall = median(wall for wall, _ in alone)
    return {
        "step": step_wall,
        "step_processor": median(processor for _, processor in alone) / updates.machine.threads,
        "copied": median(wall for wall, _ in copied),
        "lost": median(wall for wall, _ in copied) + median(wall - n * step_wall for wall, n in excess),
        "writer_processor": saver.writer_seconds / saves,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="4x256", help="sequences x positions in a step")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--resumable", action="store_true", help="with the optimizer's state: three times the bytes")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 layers: only to see that everything runs")
    options = parser.parse_args()
    batch, n_ctx = map(int, options.tokens.split("x"))
    keep_freed_memory()
    config = TrainConfig(data="repeated-random", batch_size=batch, n_steps=10**6, checkpoints=CHECKPOINTS)
    shape = {"n_layers": 2, "n_heads": 4, "d_model": 64} if options.tiny else {}
    config = replace(config, model=GPT2Config(n_ctx=n_ctx, **shape))  # its vocabulary whole, though the data use little of it
    source, machine = load_source(config.data), Machine.for_config(config)
    updates = new_updates(config, source, machine)
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", {"config": config.to_dict()}, source.tokenizer)
        with TimedSaver(run, config, source, machine, silent) as saver:
            found = measure(updates, saver, options.saves, options.resumable)
    hundred, hundred_processor = STEPS * found["step"], STEPS * found["step_processor"]
    shares = {
        "copied": found["copied"] / hundred,
        "lost": found["lost"] / hundred,
        "all of it": (found["copied"] + found["writer_processor"]) / hundred_processor,
    }
    facts = {"tokens": options.tokens, "threads": machine.threads, "precision": machine.precision, "device": str(machine.device),
             "resumable": options.resumable, "load": os.getloadavg()[0]}  # fmt: skip
    print(json.dumps(facts | {f"{name}_s": round(value, 4) for name, value in found.items()}))
    print(", ".join(f"{name} {share:.3%}" for name, share in shares.items()), "of 100 steps")


if __name__ == "__main__":
    main()
