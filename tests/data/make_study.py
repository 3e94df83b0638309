"""Make `tests/data/study` from the runs of `interp-gpt2 demo --study`: twelve checkpoints a run, weights only, in float16.

    interp-gpt2 demo --study && python tests/data/make_study.py checkpoints

Tests and notebooks read these instead of training. The last checkpoint and eleven others spread over the logged steps
are kept. Rounding to float16 halves the files and moves losses and head scores by less than 0.002 nats and 0.001; the
step, the settings and the metrics are the run's own.
"""

import argparse
import shutil
from pathlib import Path

from interp_gpt2 import Run
from interp_gpt2.runs.checkpoint import load_weights, save_checkpoint

STUDY = Path(__file__).parent / "study"
RUNS = ("demo-induction", "demo-induction-one-layer")
N_CHECKPOINTS = 12
MOST_BYTES = 5_000_000


def steps_to_keep(steps: list[int]) -> list[int]:
    """Step 0, two early ones, and the rest evenly spaced, so that the phase change lies between several."""
    early = [step for step in (0, 64) if step in steps]
    n_even = N_CHECKPOINTS - len(early)
    wanted = [steps[-1] * (i + 1) / n_even for i in range(n_even)]
    return sorted({*early, *(min(steps, key=lambda step, at=at: abs(step - at)) for at in wanted)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, help="the directory with the runs of the study")
    source = parser.parse_args().checkpoints
    shutil.rmtree(STUDY, ignore_errors=True)
    for name in RUNS:
        run, target = Run(source / name), STUDY / name
        target.mkdir(parents=True)
        for file in ("run.json", "metrics.jsonl", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(run.path / file, target / file)
        for step in steps_to_keep(run.steps):
            config, state = load_weights(run.checkpoint(step))
            rounded = {name: tensor.half() for name, tensor in state.items()}
            save_checkpoint(target, step, rounded, config, run.tokens_seen(step))
        print(name, Run(target).steps)
    size = sum(path.stat().st_size for path in STUDY.rglob("*") if path.is_file())
    assert size <= MOST_BYTES, f"{size:,} bytes; at most {MOST_BYTES:,}"
    print(f"{size:,} bytes in {STUDY}")


if __name__ == "__main__":
    main()
