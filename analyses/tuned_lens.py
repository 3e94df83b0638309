"""How early is the prediction settled, once each layer is read in the last layer's terms, and does that change with training?

    python analyses/tuned_lens.py checkpoints/demo-induction
    python analyses/tuned_lens.py checkpoints/demo-text --every 4 --train-steps 500

A tuned lens of every layer at every checkpoint, trained on the run's data and kept in RUN/tuned-lens, beside the logit lens
on held-out sequences: KL to the model's output, and the layer from which on the first guess is the model's.
"""

import argparse
from pathlib import Path

import pandas

from interp_gpt2 import Run
from interp_gpt2.analysis.lens_files import trained_lens
from interp_gpt2.analysis.sequences import held_out
from interp_gpt2.analysis.tuned_lens import LensTraining, lens_rows
from interp_gpt2.sweeps import COLUMNS, save_rows
from interp_gpt2.views import figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th checkpoint, and the last")
    parser.add_argument("--train-steps", type=int, default=300)
    parser.add_argument("--out", type=Path, help="default: RUN/analyses")
    args = parser.parse_args()

    run, training = Run(args.run), LensTraining(n_steps=args.train_steps)
    out = args.out or args.run / "analyses"
    out.mkdir(parents=True, exist_ok=True)
    tokens = held_out(run.source(), run.config.n_ctx, args.sequences).inputs
    records = []
    for step in run.steps[:: -args.every][::-1]:
        rows = lens_rows(run.model(step), trained_lens(run, step, training), tokens)
        where = {"run": run.name, "seed": run.seed, "step": step, "tokens": run.tokens_seen(step), "analysis": "tuned_lens"}
        records += [where | row for row in rows]
    table = pandas.DataFrame(records).reindex(columns=list(COLUMNS))

    depth = table[table["metric"].str.endswith("settling_depth")].pivot(index="metric", columns="step", values="value")
    deepest = run.config.n_layers
    figure = figures.curves(
        list(depth.columns), depth.to_numpy(), ["logit lens", "tuned lens"], ("the end", deepest), "Prediction settles", "layer"
    )
    paths = [save_rows(table, out / "tuned_lens.json"), *figures.save(figure, out / "tuned_lens_depth.pdf")]
    last = table[table["step"] == table["step"].max()]
    tuned, logit = (last.loc[last["metric"] == f"{name}_settling_depth", "value"].item() for name in ("tuned", "lens"))
    depths = f"after {tuned:.2f} of {deepest} layers at step {last['step'].iloc[0]}, {logit:.2f} by the logit lens"
    print(f"answer: the prediction settles {depths}; {verdict(table)}")
    print("wrote", *paths)


def verdict(table: pandas.DataFrame) -> str:
    """Whether the tuned lens is nearer to the output at every layer and checkpoint, or where it is not."""
    of_output = table["layer"] == table["layer"].max()  # the same in both
    rows = table[(table["metric"] == "tuned_minus_lens_kl") & ~of_output]
    not_better = rows[~(rows["high"] < 0)]
    if not_better.empty:
        return f"the tuned lens is nearer to the output than the logit lens at all {len(rows)} layers and checkpoints"
    where = ", ".join(f"{row.label} at step {row.step}" for row in not_better.itertuples())
    return f"the tuned lens is NOT nearer to the output than the logit lens at {len(not_better)} of {len(rows)}: {where}"


if __name__ == "__main__":
    main()
