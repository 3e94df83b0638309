"""Make `tests/data/study` from the runs of `interp-gpt2 demo --study`: twelve checkpoints a run, weights only, in float16.

    interp-gpt2 demo --study && python tests/data/make_study.py checkpoints

Tests and notebooks read these instead of training. Rounding to float16 halves the files and moves mean losses and head
scores by less than 0.0001; the steps, the settings and the metrics are the runs' own.
"""

import argparse
import shutil
from pathlib import Path

from interp_gpt2 import Run
from interp_gpt2.runs.checkpoint import load_weights, save_checkpoint

STUDY = Path(__file__).parent / "study"
RUNS = ("demo-induction", "demo-induction-one-layer")
STEPS = (0, 64, 300, 500, 600, 700, 750, 800, 900, 1100, 1500, 2000)  # closer together where the phase changes
MOST_BYTES = 5_000_000


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
        for step in STEPS:
            config, state = load_weights(run.checkpoint(step))
            rounded = {name: tensor.half() for name, tensor in state.items()}
            save_checkpoint(target, step, rounded, config, run.tokens_seen(step))
        print(name, Run(target).steps)
    size = sum(path.stat().st_size for path in STUDY.rglob("*") if path.is_file())
    assert size <= MOST_BYTES, f"{size:,} bytes; at most {MOST_BYTES:,}"
    print(f"{size:,} bytes in {STUDY}")


if __name__ == "__main__":
    main()
