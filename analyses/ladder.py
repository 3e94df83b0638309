"""What does each part of a GPT-2 buy? TinyShakespeare, from a bigram table to the whole model, one part at a time.

    python analyses/ladder.py --out checkpoints/ladder
    python analyses/ladder.py --out checkpoints/ladder --full      with the 10.7-million-parameter model: hours without a GPU
    python analyses/ladder.py --out checkpoints/ladder --recorded  trains nothing: draws the curves that were recorded

The rungs of Karpathy's lecture "Let's build GPT" as configs of one model (analyses/ladder/*.toml): a bigram, one head, four
heads, an MLP, depth, the residual stream, layer norm, and the recipe tiny-shakespeare-cpu (--full: tiny-shakespeare). Rungs
below the residual stream are trained under an edit that takes it out. Losses are over the whole validation split.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from interp_gpt2.causal.ablation import without_residual
from interp_gpt2.data.source import load_source
from interp_gpt2.training.config import TrainConfig, load_recipe
from interp_gpt2.training.in_memory import train_in_memory
from interp_gpt2.views import figures

RECIPES = Path(__file__).parent / "ladder"
RUNGS = ("1-bigram", "2-one-head", "3-four-heads", "4-feed-forward", "5-three-blocks", "6-residual", "7-layer-norm")
WITHOUT_RESIDUAL = RUNGS[1:5]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where ladder.json and the figure go")
    parser.add_argument("--full", action="store_true", help="end with the recipe tiny-shakespeare")
    parser.add_argument("--steps", type=int, help="updates of every rung, for a quick look")
    parser.add_argument("--recorded", action="store_true", help="train nothing: the curves of analyses/ladder/recorded.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    found = json.loads((RECIPES / "recorded.json").read_text()) if args.recorded else trained(args.full, args.steps)
    curves, references = found["curves"], found["references"]
    ends = ", ".join(f"{name} {rows[-1]['val_loss']:.2f}" for name, rows in curves.items())
    counted = ", ".join(f"{name}s {loss:.2f}" for name, loss in references.items())
    print(f"answer: nats per character: {ends}; by counting {counted}")
    path = args.out / "ladder.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    figure = figures.ladder(
        {name: ([row["tokens"] for row in rows], [row["val_loss"] for row in rows]) for name, rows in curves.items()}, references
    )
    print("wrote", path, *figures.save(figure, args.out / "ladder.pdf"))


def trained(full: bool, n_steps: int | None) -> dict[str, dict]:
    """Every rung's curve, and what counting reaches."""
    configs = {rung[2:].replace("-", " "): load_recipe(str(RECIPES / f"{rung}.toml")) for rung in RUNGS}
    last = load_recipe("tiny-shakespeare" if full else "tiny-shakespeare-cpu")
    configs[f"GPT, {last.model.n_layers} x {last.model.d_model}"] = last
    curves = {}
    for rung, (name, config) in zip([*RUNGS, None], configs.items(), strict=True):
        curves[name] = curve(config if n_steps is None else replace(config, n_steps=n_steps), rung in WITHOUT_RESIDUAL)
        print(f"{name}: {curves[name][-1]['val_loss']:.3f} nats per character", flush=True)
    references = {r.name: r.loss for r in load_source("tiny-shakespeare").references(8) if r.name in ("bigram", "trigram")}
    return {"curves": curves, "references": references}


def curve(config: TrainConfig, replacing: bool) -> list[dict[str, float]]:
    return train_in_memory(config, without_residual(config.model) if replacing else None).rows


if __name__ == "__main__":
    main()
