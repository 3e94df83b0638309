"""At which layer is the next token settled, and does that change with training?

    python analyses/logit_lens.py checkpoints/demo-text

The logit lens at every layer and checkpoint, averaged over held-out sequences: the loss of the model stopped at that layer.
"""

import argparse
from pathlib import Path

import pandas

from interp_gpt2 import Run, sweep
from interp_gpt2.analysis.logit_lens import LensByLayer
from interp_gpt2.sweeps import save_rows
from interp_gpt2.views import figures

SETTLED = 0.1  # nats of KL to the output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--out", type=Path, help="default: RUN/analyses")
    args = parser.parse_args()

    run = Run(args.run)
    out = args.out or args.run / "analyses"
    out.mkdir(parents=True, exist_ok=True)
    sequences = next(run.source().validation(run.config.n_ctx, args.sequences))
    table = sweep(run, LensByLayer(sequences[:, :-1]))

    rows = table[table["metric"] == "lens_loss"]
    loss = rows.pivot(index="label", columns="step", values="value").loc[list(dict.fromkeys(rows["label"]))]
    knows_nothing = float(table.loc[table["metric"] == "lens_loss_uniform", "value"].iloc[0])
    figure = figures.curves(
        list(loss.columns), loss.to_numpy(), list(loss.index), ("knows nothing", knows_nothing), "Lens loss", "nats per token"
    )
    paths = [save_rows(table, out / "logit_lens.json"), *figures.save(figure, out / "logit_lens_loss.pdf")]
    print(f"answer: {told(table, loss)}")
    for label, value in loss.iloc[:, -1].items():
        print(f"{label}: {value:.3f} nats per token at step {loss.columns[-1]}")
    print("wrote", *paths)


def told(table: pandas.DataFrame, loss: pandas.DataFrame) -> str:
    """The first layer within SETTLED of the output, halfway through the checkpoints and at the end; and the last but one."""
    kl = table[table["metric"] == "lens_kl"].pivot(index="label", columns="step", values="value").loc[loss.index]
    middle, last = loss.columns[len(loss.columns) // 2], loss.columns[-1]
    settled = ", ".join(f"{(kl[step] <= SETTLED).idxmax()} at step {step}" for step in (middle, last))
    before = kl.index[max(0, len(kl) - 2)]
    nearly = f"{before} has a KL of {kl.loc[before, last]:.3f} and a loss of {loss.loc[before, last]:.3f}"
    return f"first within {SETTLED} nats of the output: {settled}; there {nearly} beside the model's {loss.iloc[-1, -1]:.3f}"


if __name__ == "__main__":
    main()
