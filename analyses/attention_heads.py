"""Which heads look where, and when did they start to?

    python analyses/attention_heads.py checkpoints/demo-induction --score induction

Every head's score at every checkpoint, on held-out sequences, beside what a head attending evenly would score.
"""

import argparse
from pathlib import Path

from interp_gpt2 import Run, sweep
from interp_gpt2.analysis.attention_patterns import METRICS, HeadScores
from interp_gpt2.analysis.development import MIN_CHECKPOINTS, MIN_RISE, best_head_curve
from interp_gpt2.analysis.phase_changes import detect
from interp_gpt2.sweeps import save_rows
from interp_gpt2.views import figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--score", choices=METRICS, default="induction")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--out", type=Path, help="default: RUN/analyses")
    args = parser.parse_args()

    run = Run(args.run)
    out = args.out or args.run / "analyses"
    out.mkdir(parents=True, exist_ok=True)
    sequences = next(run.source().validation(run.config.n_ctx, args.sequences))
    table = sweep(run, HeadScores(sequences[:, :-1]))
    curve = best_head_curve(table, args.score)
    enough = len(curve.steps) >= MIN_CHECKPOINTS
    found = detect(curve.steps, curve.values, curve.uniform, MIN_RISE) if enough else None
    change = None if found is None else found.change

    scores = table[table["metric"] == args.score].pivot(index="label", columns="step", values="value")
    window = (change.step - change.width / 2, change.step + change.width / 2) if change else None
    figure = figures.head_scores(
        list(scores.columns), scores.to_numpy(), list(scores.index), curve.uniform[-1], f"{args.score} score", window=window
    )
    paths = [save_rows(table, out / "attention_heads.json"), *figures.save(figure, out / f"attention_heads_{args.score}.pdf")]
    best = f"{curve.heads[-1]} scores {curve.values[-1]:.2f} at step {curve.steps[-1]}, a uniform head {curve.uniform[-1]:.2f}"
    since = f"{len(curve.steps)} checkpoints are too few to look for a phase change" if found is None else found.verdict
    print(f"answer: {args.score}: {best}; {since}")
    print("wrote", *paths)


if __name__ == "__main__":
    main()
