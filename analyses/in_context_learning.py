"""Does the model predict better the more it has read, how near to the best possible, and since when?

    python analyses/in_context_learning.py checkpoints/demo-induction

Loss late in the context less loss early in it, at every checkpoint, beside the same windows for the trigram model of a text
or the best predictor of Markov chains; the step of its phase change; and the loss by class of token at the last step.
"""

import argparse
from pathlib import Path

from interp_gpt2 import Run, sweep
from interp_gpt2.analysis.in_context import SHORTEST
from interp_gpt2.analysis.phase_changes import detect
from interp_gpt2.analysis.registry import analysis_named
from interp_gpt2.sweeps import save_rows
from interp_gpt2.views import figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="default: RUN/analyses")
    args = parser.parse_args()

    run = Run(args.run)
    if run.config.n_ctx < SHORTEST:
        parser.error(f"{run.name} has a context of {run.config.n_ctx}; early and late are told apart from {SHORTEST} on")
    out = args.out or args.run / "analyses"
    out.mkdir(parents=True, exist_ok=True)
    source, n_ctx = run.source(), run.config.n_ctx
    table = sweep(run, [analysis_named(name, source, n_ctx) for name in ("in_context_learning", "loss_by_token_class")])

    score = table[table["metric"] == "in_context_learning"].sort_values("step")
    reference = table[table["metric"].str.startswith("in_context_learning_")].drop_duplicates("metric")
    name, level = ("none", 0.0)
    for row in reference.itertuples():
        name, level = row.metric.removeprefix("in_context_learning_").replace("_", " "), -row.value
    found = detect(score["step"], score["value"]) if len(score) >= 8 else None
    window = None if found is None or found.change is None else found.step_interval
    figure = figures.curves(
        list(score["step"]),
        [list(-score["value"])],
        ["model"],
        (name, level),
        "Loss falls along the context by",
        "nats per token",
        window,
    )
    paths = [save_rows(table, out / "in_context_learning.json"), *figures.save(figure, out / "in_context_learning.pdf")]

    last = score.iloc[-1]
    told = f"{last['value']:.3f} [{last['low']:.3f}, {last['high']:.3f}]"
    since = found.verdict if found else f"{len(score)} checkpoints are too few to look for a phase change"
    print(f"answer: late loss less early loss at step {last['step']}: {told} nats; {name} {-level:.3f}; {since}")
    classes = table[(table["step"] == last["step"]) & (table["metric"].str.startswith("class_loss"))]
    for label, rows in classes.groupby("label", sort=False):
        values = [
            f"{row.metric.removeprefix('class_loss').strip('_').replace('_', ' ') or 'model'} {row.value:.3f}"
            for row in rows.itertuples()
        ]
        print(f"  {label}: {', '.join(values)} nats per token")
    print("wrote", *paths)


if __name__ == "__main__":
    main()
