"""Make `tests/data/study` from trained runs: some checkpoints of each, weights only, in float16.

    interp-gpt2 demo --study
    interp-gpt2 train demo-text --out checkpoints/demo-text-small --steps 2000 --set model.n_layers=3 --set model.d_model=64 \\
        --set model.pos_init=sinusoidal --set model.pos_std=0.1
    interp-gpt2 train demo-induction --seed 1 --out checkpoints/demo-induction-seed1    # and 2, if not by the study
    python tests/data/make_study.py checkpoints [RUN ...]

Tests and notebooks read these instead of training. Rounding to float16 halves the files and moves mean losses and head
scores by less than 0.0001; the steps, the settings and the metrics are the runs' own. With demo-text-small goes the text that
was held out from it, since CPython's documentation differs by version; it is under Python's own licence, which lies beside it.
"""

import argparse
import shutil
import sysconfig
from pathlib import Path

from interp_gpt2 import Run
from interp_gpt2.data.corpora import SEPARATOR, python_docs, split
from interp_gpt2.runs.checkpoint import load_weights, save_checkpoint

STUDY = Path(__file__).parent / "study"
STEPS = (0, 64, 300, 500, 600, 700, 750, 800, 900, 1100, 1500, 2000)  # closer together where the phase changes
EARLIER = (0, 64, 200, 300, 350, 400, 450, 500, 600, 750, 1000, 2000)  # with seed 2 it changes sooner
TEXT_STEPS = (0, 64, 256, 512, 1024, 1500, 2000)
RUNS = {  # where it lies among the trained runs, and which of its steps are kept
    "demo-induction": ("demo-induction", STEPS),
    "demo-induction-one-layer": ("demo-induction-one-layer", STEPS),
    "demo-induction-seed-1": ("demo-induction-seed1", STEPS),
    "demo-induction-seed-2": ("demo-induction-seed2", EARLIER),
    "demo-text-small": ("demo-text-small", TEXT_STEPS),
}
MOST_BYTES = 3_000_000  # a run


def keep(run: Run, target: Path, steps: tuple[int, ...]) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in ("run.json", "metrics.jsonl", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(run.path / file, target / file)
    for step in steps:
        config, state = load_weights(run.checkpoint(step))
        save_checkpoint(target, step, {name: tensor.half() for name, tensor in state.items()}, config, run.tokens_seen(step))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    assert size <= MOST_BYTES, f"{target.name}: {size:,} bytes; at most {MOST_BYTES:,}"
    print(f"{target.name}: {Run(target).steps}, {size:,} bytes")


def keep_held_out_text() -> None:
    """The documents that demo-text-small was not trained on, between end-of-text marks, and the licence they are under."""
    held_out = split(python_docs()).validation
    (STUDY / "held_out.txt").write_text(f"{SEPARATOR}\n".join(document.text for document in held_out), encoding="utf-8")
    shutil.copy(Path(sysconfig.get_path("stdlib")) / "LICENSE.txt", STUDY / "held_out.LICENSE.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, help="the directory with the trained runs")
    parser.add_argument("runs", nargs="*", help=f"these only, of {', '.join(RUNS)}")
    args = parser.parse_args()
    for name in args.runs or RUNS:
        source, steps = RUNS[name]
        keep(Run(args.checkpoints / source), STUDY / name, steps)
    if not args.runs or "demo-text-small" in args.runs:
        keep_held_out_text()


if __name__ == "__main__":
    main()
