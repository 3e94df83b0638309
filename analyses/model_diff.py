"""What changed between two models: two steps of a run, a base and its fine-tuned run, two seeds?

    python analyses/model_diff.py checkpoints/demo-text --from-step 128
    python analyses/model_diff.py checkpoints/base --to checkpoints/fine-tuned
    python analyses/model_diff.py checkpoints/demo-induction --to checkpoints/seed-1 --match

Which heads, neurons and logits moved, on the first run's held-out data, with examples, beside the distance to a yardstick: an
untrained model, or with --yardstick another run, such as a second seed. With --match, heads and neurons are also paired by what
they do. Writes the table as CSV, the examples and everything else as JSON, and the distances as a figure.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from interp_gpt2 import GPT2, Run
from interp_gpt2.analysis.diff_examples import Keys, neuron_examples, pattern_examples
from interp_gpt2.analysis.model_diff import ModelDiff, model_diff
from interp_gpt2.analysis.model_matching import matched_heads, matched_neurons
from interp_gpt2.analysis.sequences import held_out
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.views import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"weights": "relative distance", "heads": "attention that moved", "neurons": "1 - correlation"}
SHOWN = 3  # heads and neurons with examples


def main() -> None:
    args = options()
    run, other = Run(args.run), Run(args.to or args.run)
    out = args.out or args.run / "analyses"
    out.mkdir(parents=True, exist_ok=True)
    labels = run.tokenizer().labels
    if other.tokenizer().labels != labels:
        raise SystemExit(f"{run.name} and {other.name} have different tokenizers: the same token means something else in each")
    from_step = args.from_step if args.from_step is not None else run.steps[-1 if args.to else 0]
    to_step = args.to_step if args.to_step is not None else other.steps[-1]
    a, b = run.model(from_step), other.model(to_step)
    yardstick = Run(args.yardstick).model() if args.yardstick else None
    windows = Windows.of(held_out(run.source(), run.config.n_ctx, args.sequences).inputs)
    found = model_diff(a, b, windows, yardstick)

    beside = args.yardstick.name if args.yardstick else "an untrained model"
    print(f"{run.name}, step {from_step}, and {other.name}, step {to_step}, on {found.n:,} tokens; in brackets, {beside}")
    print(f"answer: {told(found)}; most raised: {labels[found.predictions.raised[0].token]}")
    print(*details(found, labels), sep="\n")
    shown = examples(found, (a, b), windows)
    print(*example_lines(shown, labels), sep="\n")
    record = {"predictions": asdict(found.predictions), "examples": shown, "yardstick": beside}
    record |= {"from": [run.name, from_step], "to": [other.name, to_step]}
    if args.match:
        record |= matches(a, b, windows, yardstick)
    name = f"model_diff_{from_step}_{other.name}_{to_step}"
    found.to_frame().to_csv(out / f"{name}.csv", index=False)
    (out / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print("wrote", out / f"{name}.csv", out / f"{name}.json", figures.save_picture(scatter(found, beside), out / f"{name}.pdf"))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", type=Path, help="default: the same run")
    parser.add_argument("--from-step", type=int, help="default: the last, or the first where both are of one run")
    parser.add_argument("--to-step", type=int, help="default: the last")
    parser.add_argument("--yardstick", type=Path, help="a run; default: an untrained model")
    parser.add_argument("--match", action="store_true")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--out", type=Path, help="default: RUN/analyses")
    return parser.parse_args()


def told(found: ModelDiff) -> str:
    """How far predictions are apart, and the head and the neuron that moved most; in brackets, to the yardstick."""
    said = found.predictions
    moved = [part for kind in ("heads", "neurons") for part in found.most(kind, 1)]
    most = " and ".join(f"{part.label} {part.value:.2f} ({part.yardstick:.2f})" for part in moved)
    same = f"same first choice {said.agreement:.1%} ({said.agreement_yardstick:.1%})"
    return f"KL {said.kl:.3f} nats a token ({said.kl_yardstick:.3f}), {same}" + (f"; moved most: {most}" if moved else "")


def details(found: ModelDiff, labels: list[str]) -> list[str]:
    """The parts and tokens that moved most, and places where the prediction did."""
    said = found.predictions
    lines = [f"loss {said.loss_a:.3f} -> {said.loss_b:.3f} ({said.loss_yardstick:.3f}) nats per token"]
    for kind in KINDS:
        parts = (f"{part.label} {part.value:.2f} ({part.yardstick:.2f})" for part in found.most(kind, 6))
        lines.append(f"{kind}: {', '.join(parts) or 'none'}")
    for name, side in (("said more often", said.raised), ("said less often", said.lowered)):
        shifts = (f"{labels[each.token]} {each.value:+.3f} ({each.yardstick:+.3f})" for each in side[:6])
        lines.append(f"{name}: {', '.join(shifts)}")
    for change in said.changes[:5]:
        text = "".join(labels[token] for token in change.tokens)
        before, after = (" ".join(f"{labels[token]} {p:.2f}" for token, p in side) for side in (change.before, change.after))
        lines.append(f"  KL {change.kl:.2f} after {text}: {before} -> {after}")
    return lines


def examples(found: ModelDiff, models: tuple[GPT2, GPT2], windows: Windows) -> dict[str, dict[str, Any]]:
    """Places where the heads and neurons that moved most moved most."""
    heads = [(part.layer, part.head) for part in found.most("heads", SHOWN)]
    neurons = [(part.layer, part.neuron) for part in found.most("neurons", SHOWN)]
    of_heads = pattern_examples(*models, windows, heads) if heads else {}
    of_neurons = neuron_examples(*models, windows, neurons) if neurons else {}
    return {
        "heads": {label: [asdict(change) for change in changes] for label, changes in of_heads.items()},
        "neurons": {label: asdict(change) for label, change in of_neurons.items()},
    }


def example_lines(shown: dict[str, dict[str, Any]], labels: list[str]) -> list[str]:
    """The first example of each head and neuron."""

    def keys(side: Keys) -> str:
        return " ".join(f"{labels[token]}@{position} {weight:.2f}" for position, token, weight in side)

    lines = []
    for label, changes in shown["heads"].items():
        for change in changes[:1]:
            text = "".join(labels[token] for token in change["tokens"])
            at = f"{label} at the end of {text} (position {change['position']})"
            lines.append(f"  {at} looked at {keys(change['before'])}, then at {keys(change['after'])}")
    for label, both in shown["neurons"].items():
        peaks = []
        for context in (both["before"][0], both["after"][0]):
            text = "".join(labels[token] for token in context["tokens"][: context["peak"] + 1])
            peaks.append(f"{context['activations'][context['peak']]:.2f} at the end of {text}")
        lines.append(f"  {label} was highest, {peaks[0]}; then {peaks[1]}")
    return lines


def matches(a: GPT2, b: GPT2, windows: Windows, yardstick: GPT2 | None) -> dict[str, list[dict[str, Any]]]:
    """Heads and neurons paired by what they do: whether they stand in another order, and how alike the pairs are."""
    record = {}
    for kind, match in (("heads", matched_heads), ("neurons", matched_neurons)):
        if not a.config.n_layers or (kind == "neurons" and a.config.attn_only):
            continue
        pairs = match(a, b, windows, yardstick)
        record[f"matched_{kind}"] = [asdict(pair) for pair in pairs]
        likeness, chance = median(pair.value for pair in pairs), median(pair.by_chance for pair in pairs)
        same = sum(pair.index == pair.other for pair in pairs)
        where = f"{same} of {len(pairs)} stand where they stood"
        print(f"{kind} paired by what they do: {where}; median likeness {likeness:.2f} ({chance:.2f})")
    return record


def scatter(found: ModelDiff, beside: str) -> "Figure":
    """Every part: how far it moved, over how far it is from the yardstick; on the dashed line it has nothing left."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    kinds = {kind: unit for kind, unit in KINDS.items() if found.most(kind, 1)}
    with rc_context(figures.STYLE):
        figure = Figure(figsize=(2.3 * len(kinds), 2.5), layout="constrained")
        for axes, (kind, unit) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds.items(), strict=True):
            parts = [part for part in getattr(found, kind) if part.value == part.value and part.yardstick == part.yardstick]
            xs, ys = [part.yardstick for part in parts], [part.value for part in parts]
            axes.plot(xs, ys, ".", color=figures.COLOURS[1], markersize=3 if len(parts) < 100 else 1.5, label=kind)
            axes.axline((0, 0), slope=1, color=figures.GREY, linestyle="--", linewidth=0.8)
            reach, taken = 1.05 * max([*xs, *ys, 1e-9]), []
            for part in found.most(kind, 6):
                if all(abs(part.value - height) > 0.06 * reach for height in taken):  # else names would lie on each other
                    axes.annotate(part.label, (part.yardstick, part.value), fontsize=6, xytext=(2, 2), textcoords="offset points")
                    taken.append(part.value)
            axes.set(xlim=(0, reach), ylim=(0, reach), title=f"{kind}: {unit}", xlabel=f"to {beside}", ylabel="moved")
    return figure


if __name__ == "__main__":
    main()
