"""When did each layer become what it ended as, and which weights moved?

    python analyses/representations.py checkpoints/demo-induction

The debiased CKA and the overlap of principal directions between every residual stream and the same one at the last
checkpoint; between all pairs of checkpoints for the last stream; norms and ranks of the weights, and their distance from
where they began.
"""

import argparse
import json
from pathlib import Path

from interp_gpt2 import Run, sweep
from interp_gpt2.analysis.registry import analysis_named
from interp_gpt2.analysis.representations import SimilarityTo, cka_between_steps
from interp_gpt2.analysis.sequences import held_out
from interp_gpt2.analysis.weight_spectra import WeightDistance
from interp_gpt2.sweeps import save_rows
from interp_gpt2.views import figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--out", type=Path, help="default: RUN/analyses")
    args = parser.parse_args()

    run = Run(args.run)
    out = args.out or args.run / "analyses"
    out.mkdir(parents=True, exist_ok=True)
    source, n_ctx, first, last = run.source(), run.config.n_ctx, run.steps[0], run.steps[-1]
    tokens = held_out(source, n_ctx, args.sequences).inputs
    named = [analysis_named(name, source, n_ctx) for name in ("layer_similarity", "weight_spectra")]
    table = sweep(run, [SimilarityTo.step(run, last, tokens), WeightDistance.from_step(run, first), *named])
    steps = run.steps[:: -max(1, len(run.steps) // 24)][::-1]
    between = cka_between_steps(run, steps, tokens)

    to_last = table[(table["analysis"] == "similarity_to") & (table["metric"] == "cka")]
    cka = to_last.pivot(index="label", columns="step", values="value").loc[list(dict.fromkeys(to_last["label"]))]
    chance = table.loc[(table["analysis"] == "similarity_to") & (table["metric"] == "cka_shuffled"), "value"].mean()
    labels = [label.split("~")[0] for label in cka.index]
    title = f"CKA with step {last}"
    figure = figures.curves(list(cka.columns), cka.to_numpy(), labels, ("shuffled tokens", chance), title, "debiased CKA")
    matrix = out / "cka_between_steps.json"
    matrix.write_text(json.dumps({"steps": steps, "stream": "last", "cka": between.tolist()}, indent=1) + "\n")
    paths = [save_rows(table, out / "representations.json"), matrix, *figures.save(figure, out / "representations_cka.pdf")]

    half = {label: next((step for step, value in zip(cka.columns, row, strict=True) if value > 0.5), "never")
            for label, row in zip(labels, cka.itertuples(index=False), strict=True)}  # fmt: skip
    moved = table[(table["metric"] == "weight_distance") & (table["step"] == last)].dropna(subset=["value"]).sort_values("value")
    alike = ", ".join(f"{label} {step if step == 'never' else f'from step {step}'}" for label, step in half.items())
    furthest = moved.iloc[-1]
    told = f"{furthest['label']} moved most, by {furthest['value']:.1f} times its norm at step {first}"
    print(f"answer: half like the end (CKA 0.5): {alike}; {told}")
    for label, row in zip(labels, cka.itertuples(index=False), strict=True):
        since = f"above one half: from step {half[label]} (shuffled tokens {chance:.2f})"
        print(f"{label}: CKA with its end {row[0]:.2f} at step {first}, {since}")
    print(
        f"moved most from step {first}: "
        + ", ".join(f"{row.label} {row.value:.1f}" for row in moved.tail(3)[::-1].itertuples())
        + " times its own norm"
    )
    print("wrote", *paths)


if __name__ == "__main__":
    main()
