"""How degenerate is the loss around each checkpoint, and can the number be believed?

    python analyses/llc.py checkpoints/demo-induction
    python analyses/llc.py checkpoints/demo-induction --step-size 3e-6 --draws 600

The local learning coefficient, from Langevin chains near each checkpoint's weights (Lau et al. 2023), on windows of the
training data; with what speaks against it: chains that diverged, disagree or drift, and draws below where they began.
"""

import argparse
from pathlib import Path

import pandas

from interp_gpt2 import Run, sweep
from interp_gpt2.analysis.learning_coefficient import LocalLearningCoefficient
from interp_gpt2.analysis.sequences import training_windows
from interp_gpt2.analysis.sgld import Langevin
from interp_gpt2.sweeps import save_rows
from interp_gpt2.views import figures

DOWNHILL = 0.1  # share of draws below where the chain began, above which it was no minimum


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sequences", type=int, default=512)
    parser.add_argument("--step-size", type=float, default=1e-5)
    parser.add_argument("--localisation", type=float, default=1000.0)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=200, help="of each chain, after as many steps that are not counted")
    parser.add_argument("--out", type=Path, help="default: RUN/analyses")
    args = parser.parse_args()

    run = Run(args.run)
    out = args.out or args.run / "analyses"
    out.mkdir(parents=True, exist_ok=True)
    tokens = training_windows(run.source(), run.config.n_ctx, args.sequences)
    settings = Langevin(args.step_size, args.localisation, args.chains, args.draws, args.draws)
    table = sweep(run, LocalLearningCoefficient(tokens, settings))

    by = table[table["position"].isna()].pivot(index="step", columns="metric", values="value")
    known = by["llc"].dropna()
    print(f"answer: {told(known, by['llc_below_start'])}; a regular model: {by['llc_regular'].iloc[0]:.0f}")
    for step, row in by.iterrows():
        value = "no estimate: chains diverged" if row.get("llc") != row.get("llc") else f"{row['llc']:8.1f}"
        doubt = f"r_hat {row['llc_r_hat']:.2f}, drift {row['llc_drift']:+.0%}, acceptance {row['llc_acceptance']:.2f}"
        print(f"step {step:>6}: {value}   ({doubt}, {row['llc_below_start']:.0%} of draws below the start)")
    paths = [save_rows(table, out / "llc.json")]
    if len(known):
        near = known[by["llc_below_start"][known.index] <= DOWNHILL]
        drawn, where = (near, "near a minimum") if len(near) > 1 else (known, "nowhere near a minimum")
        title = f"Learning coefficient at steps {where}"
        figure = figures.curves(list(drawn.index), [list(drawn)], ["llc"], ("zero", 0.0), title, "lambda")
        paths += figures.save(figure, out / "llc.pdf")
    print("wrote", *paths)


def told(known: pandas.Series, below: pandas.Series) -> str:
    """The highest and the last estimate, and at which steps the chains left for lower losses, so that it means nothing there."""
    if known.empty:
        return "no estimate: chains diverged at every checkpoint"
    no_minimum = [step for step in below.index if below[step] > DOWNHILL]
    where = f"no minimum at steps {', '.join(map(str, no_minimum))}" if no_minimum else "every checkpoint is near a minimum"
    doubt = f"{where} (more than {DOWNHILL:.0%} of draws below the start)"
    return f"highest at step {known.idxmax()}, {known.max():.0f}; {known.iloc[-1]:.0f} at step {known.index[-1]}; {doubt}"


if __name__ == "__main__":
    main()
