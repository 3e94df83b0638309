"""What changed between two models: two steps of a run, a base and its fine-tuned run, two seeds?

    python analyses/model_diff.py checkpoints/demo-text --from-step 128
    python analyses/model_diff.py checkpoints/base --to checkpoints/fine-tuned
    python analyses/model_diff.py checkpoints/demo-induction --to checkpoints/seed-1 --match

Which heads, neurons and logits moved, on the first run's held-out data, beside the distance to a yardstick: an untrained
model, or with --yardstick another run, such as a second seed. With --match, heads and neurons are also paired by what they
do. Writes the table as CSV, and the examples and everything else as JSON.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import median

from interp_gpt2 import Run
from interp_gpt2.analysis.model_diff import ModelDiff, model_diff
from interp_gpt2.analysis.model_matching import matched_heads, matched_neurons
from interp_gpt2.analysis.sequences import held_out
from interp_gpt2.analysis.windows import Windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", type=Path, help="default: the same run")
    parser.add_argument("--from-step", type=int, help="default: the last, or the first where both are of one run")
    parser.add_argument("--to-step", type=int, help="default: the last")
    parser.add_argument("--yardstick", type=Path, help="a run; default: an untrained model")
    parser.add_argument("--match", action="store_true")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--out", type=Path, help="default: RUN/analyses")
    args = parser.parse_args()
    out = args.out or args.run / "analyses"
    out.mkdir(parents=True, exist_ok=True)

    run, other = Run(args.run), Run(args.to or args.run)
    from_step = args.from_step if args.from_step is not None else run.steps[-1 if args.to else 0]
    to_step = args.to_step if args.to_step is not None else other.steps[-1]
    a, b = run.model(from_step), other.model(to_step)
    yardstick = Run(args.yardstick).model() if args.yardstick else None
    windows = Windows.of(held_out(run.source(), run.config.n_ctx, args.sequences).inputs)
    found = model_diff(a, b, windows, yardstick)
    labels = run.tokenizer().labels

    said = found.predictions
    beside = args.yardstick.name if args.yardstick else "an untrained model"
    print(f"{run.name}, step {from_step}, and {other.name}, step {to_step}, on {found.n:,} tokens; in brackets, {beside}")
    print(f"answer: {told(found)}; most raised: {labels[said.raised[0].token]}")
    print(f"KL {said.kl:.3f} nats a token ({said.kl_yardstick:.3f}); same first choice {said.agreement:.1%}", end=" ")
    print(f"({said.agreement_yardstick:.1%}); loss {said.loss_a:.3f} -> {said.loss_b:.3f} ({said.loss_yardstick:.3f})")
    for kind in ("weights", "heads", "neurons"):
        print(f"{kind}:", ", ".join(f"{part.label} {part.value:.2f} ({part.yardstick:.2f})" for part in found.most(kind, 6)))
    for name, side in (("said more often", said.raised), ("said less often", said.lowered)):
        print(f"{name}:", ", ".join(f"{labels[each.token]} {each.value:+.3f} ({each.yardstick:+.3f})" for each in side[:6]))
    for change in said.changes[:5]:
        text = "".join(labels[token] for token in change.tokens)
        before, after = (" ".join(f"{labels[token]} {p:.2f}" for token, p in side) for side in (change.before, change.after))
        print(f"  KL {change.kl:.2f} after {text}: {before} -> {after}")

    record = {"predictions": asdict(said), "from": [run.name, from_step], "to": [other.name, to_step], "yardstick": beside}
    if args.match:
        for kind, match in (("heads", matched_heads), ("neurons", matched_neurons)):
            pairs = match(a, b, windows, yardstick)
            record[f"matched_{kind}"] = [asdict(pair) for pair in pairs]
            likeness, chance = median(pair.value for pair in pairs), median(pair.by_chance for pair in pairs)
            print(f"{kind} paired by what they do: median likeness {likeness:.2f} ({chance:.2f})")
    name = f"model_diff_{from_step}_{other.name}_{to_step}"
    found.to_frame().to_csv(out / f"{name}.csv", index=False)
    (out / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print("wrote", out / f"{name}.csv", out / f"{name}.json")


def told(found: ModelDiff) -> str:
    """How far predictions are apart, and the head and the neuron that moved most; in brackets, to the yardstick."""
    said = found.predictions
    moved = [found.most(kind, 1)[0] for kind in ("heads", "neurons")]
    most = " and ".join(f"{part.label} {part.value:.2f} ({part.yardstick:.2f})" for part in moved)
    same = f"same first choice {said.agreement:.1%} ({said.agreement_yardstick:.1%})"
    return f"KL {said.kl:.3f} nats a token ({said.kl_yardstick:.3f}), {same}; moved most: {most}"


if __name__ == "__main__":
    main()
