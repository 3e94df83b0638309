"""Does the model predict as an n-gram model would, and of which order, as it learns?

    python analyses/ngram_agreement.py checkpoints/demo-text

KL from the model to the unigram, bigram and trigram models of its training data (of Markov chains, to the in-context unigram
and the best possible predictor) on held-out windows, at every checkpoint.
"""

import argparse
from pathlib import Path

from interp_gpt2 import Run, sweep
from interp_gpt2.analysis.registry import analysis_named
from interp_gpt2.sweeps import save_rows
from interp_gpt2.views import figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="default: RUN/analyses")
    args = parser.parse_args()

    run = Run(args.run)
    out = args.out or args.run / "analyses"
    out.mkdir(parents=True, exist_ok=True)
    table = sweep(run, analysis_named("ngram_agreement", run.source(), run.config.n_ctx))
    kl = table[table["metric"] == "agreement_kl"].pivot(index="label", columns="step", values="value")
    kl = kl.loc[list(dict.fromkeys(table["label"].dropna()))]
    uniform = table[table["metric"] == "agreement_kl_uniform"].drop_duplicates("label").set_index("label")["value"]
    strongest = kl.index[-1]
    figure = figures.curves(
        list(kl.columns),
        kl.to_numpy(),
        list(kl.index),
        (f"uniform to {strongest}", uniform[strongest]),
        "KL from the model",
        "nats",
    )
    paths = [save_rows(table, out / "ngram_agreement.json"), *figures.save(figure, out / "ngram_agreement.pdf")]
    nearest = kl.idxmin()
    changes = [
        (step, name) for step, name, before in zip(kl.columns, nearest, [None, *nearest[:-1]], strict=True) if name != before
    ]
    told = ", ".join(f"{name} from step {step}" for step, name in changes)
    print(f"answer: {kl.iloc[:, -1].min():.3f} nats from the nearest predictor at the end: {told}")
    for label, row in kl.iterrows():
        step = row.idxmin()
        at_end = f"{row.iloc[-1]:.3f} at the end, {uniform[label]:.3f} knowing nothing"
        print(f"{label}: nearest at step {step}, {row[step]:.3f} nats; {at_end}")
    print("wrote", *paths)


if __name__ == "__main__":
    main()
