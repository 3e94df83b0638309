"""What about the text can be read from the residual stream, and when does it become readable?

    python analyses/neuron_probes.py checkpoints/demo-text --label inside_quotes

A linear probe of every residual stream at twelve checkpoints, on documents it was not trained on, beside what the
last two tokens alone tell and what the same probe finds in shuffled labels.
"""

import argparse
from pathlib import Path

from interp_gpt2 import Run, sweep
from interp_gpt2.analysis.neuron_probing import Probes
from interp_gpt2.analysis.probe_sets import probe_set
from interp_gpt2.sweeps import save_rows
from interp_gpt2.views import figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--label", default="inside_quotes")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--out", type=Path, help="default: RUN/analyses")
    args = parser.parse_args()

    run = Run(args.run)
    out = args.out or args.run / "analyses"
    out.mkdir(parents=True, exist_ok=True)
    data = probe_set(run.source().validation_documents(), run.tokenizer(), run.config.n_ctx, [args.label], args.tokens)
    steps = run.steps[:: -max(1, len(run.steps) // 12)][::-1]
    table = sweep(run, Probes(data), steps)

    rows = table[table["metric"] == "probe_auroc"]
    auroc = rows.pivot(index="hook_point", columns="step", values="value").loc[list(dict.fromkeys(rows["hook_point"]))]
    yardsticks = table[table["step"] == steps[-1]].groupby("metric")["value"].mean()
    last_two, shuffled = yardsticks["probe_auroc_last_two_tokens"], yardsticks["probe_auroc_shuffled"]
    figure = figures.curves(
        list(auroc.columns), auroc.to_numpy(), list(auroc.index), ("last two tokens", last_two), f"AUROC of {args.label}", "AUROC"
    )
    paths = [save_rows(table, out / "neuron_probes.json"), *figures.save(figure, out / f"neuron_probes_{args.label}.pdf")]
    best = auroc.iloc[:, -1].idxmax()
    above = auroc.columns[auroc.max() > last_two]
    since = f"above that from step {above[0]} on" if len(above) else "never above that"
    read = f"{args.label} at step {steps[-1]}: AUROC {auroc.loc[best].iloc[-1]:.3f} at {best}"
    print(f"answer: {read}, from the last two tokens alone {last_two:.3f}, {since}; with shuffled labels {shuffled:.3f}")
    print("wrote", *paths)


if __name__ == "__main__":
    main()
