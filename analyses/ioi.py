"""Which heads of GPT-2 say who was given the drink?

    python analyses/ioi.py gpt2 --out checkpoints/ioi
    python analyses/ioi.py path/to/gpt2 --pairs 100

Indirect object identification (Wang et al. 2022, "Interpretability in the Wild"), with the published small GPT-2: the logit
difference on TransformerLens's eight prompts (about 3.55); the heads whose output raises the name directly (name movers 9.9,
10.0, 9.6; negative ones 10.7, 11.10); and those that tell the name movers' queries whom not to name (S-inhibition 7.3, 7.9,
8.6, 8.10). The weights are not part of this project: give a directory, or a name to be found in the Hub's cache or on the
network. A model without the circuit is measured as well, and said not to have it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from interp_gpt2 import GPT2
from interp_gpt2.analysis.logit_attribution import direct_logit_attribution
from interp_gpt2.causal.path_patching import get_path_patch_head_to_final_resid_post, get_path_patch_head_to_heads
from interp_gpt2.prompts.ioi import ioi
from interp_gpt2.prompts.pairs import PromptPairs
from interp_gpt2.tokenizers import Tokenizer, load_tokenizer, tokenizer_named
from interp_gpt2.views import figures
from interp_gpt2.views.patching_figures import patching_heat_map

NAME_MOVERS = ("L9H9", "L10H0", "L9H6")
NEGATIVE = ("L10H7", "L11H10")
S_INHIBITION = ("L7H3", "L7H9", "L8H6", "L8H10")

# TransformerLens's exploratory demo asks these four both ways round; 3.55 is the mean over the eight.
EIGHT = (
    ("When{} and{} went to the shops,{} gave the bag to", " John", " Mary"),
    ("When{} and{} went to the park,{} gave the ball to", " Tom", " James"),
    ("When{} and{} went to the shops,{} gave an apple to", " Dan", " Sid"),
    ("After{} and{} went to the park,{} gave a drink to", " Martin", " Amy"),
)


def eight_prompts(tokenizer: Tokenizer) -> PromptPairs:
    """The eight prompts, each corrupted into the other of its two: its subject is then the answer."""
    texts, answers = [], []
    for template, first, second in EIGHT:
        for subject, other in ((second, first), (first, second)):
            texts.append((template.format(first, second, subject), template.format(first, second, other)))
            answers.append((other, subject))
    clean, corrupted = zip(*texts, strict=True)
    correct, incorrect = zip(*answers, strict=True)
    return PromptPairs.from_text(tokenizer, clean, corrupted, correct, incorrect, bos=True)


def study(model: GPT2, tokenizer: Tokenizer, n_pairs: int) -> dict[str, Any]:
    """Logit difference on the eight prompts; of every head, what it says directly and what passes through it, ranked."""
    eight = eight_prompts(tokenizer)
    eight.check(model.config)
    with torch.no_grad():
        logits = model(eight.clean)[:, -1]
    difference = (logits.gather(1, eight.correct) - logits.gather(1, eight.incorrect)).mean().item()

    pairs = ioi(tokenizer, n_pairs, corruption="abc", bos=True).pairs
    to_logits = get_path_patch_head_to_final_resid_post(model, pairs)
    queries = [f"{head}.q" for head in NAME_MOVERS]
    to_movers = get_path_patch_head_to_heads(model, pairs, queries)
    return {
        "pairs": pairs,
        "logit difference": difference,
        "direct": head_attribution(model, pairs),
        "to logits": to_logits,
        "to name movers": to_movers,
    }


@torch.no_grad()
def head_attribution(model: GPT2, pairs: PromptPairs) -> dict[str, float]:
    """Each head's own share of the logit difference at the last token, mean over pairs."""
    _, cache = model.run_with_cache(pairs.clean)
    found = direct_logit_attribution(model, cache, pairs.correct[:, 0], pairs.incorrect[:, 0], "heads", [-1])
    shares = dict(zip(found.labels, found.values.mean((1, 2)).tolist(), strict=True))
    return {label: share for label, share in shares.items() if "H" in label}


def ranked(values: dict[str, float], largest_first: bool) -> list[str]:
    return sorted(values, key=lambda label: -values[label] if largest_first else values[label])


def by_head(result: Any) -> dict[str, float]:
    """What path patching takes from the logit difference, as a share of the gap: positive where the head helps."""
    layers, heads = (result.labels[axis] for axis in result.axes)
    return {
        f"L{layer}{head}": 1 - result.normalised[i, j].item() for i, layer in enumerate(layers) for j, head in enumerate(heads)
    }


def table(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The published heads, where each stands among all heads, and its number."""
    direct, logits, movers = found["direct"], by_head(found["to logits"]), by_head(found["to name movers"])
    asked = [
        ("name mover", NAME_MOVERS, "direct logit attribution", direct, True),
        ("name mover", NAME_MOVERS, "path to logits", logits, True),
        ("negative name mover", NEGATIVE, "direct logit attribution", direct, False),
        ("negative name mover", NEGATIVE, "path to logits", logits, False),
        ("S-inhibition", S_INHIBITION, "path to name movers' queries", movers, True),
    ]
    return [
        {"role": role, "head": head, "measured by": name, "value": values[head], "rank": ranked(values, first).index(head) + 1}
        for role, heads, name, values, first in asked
        for head in heads
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help='directory, or a name on the Hub such as "gpt2"')
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/ioi"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    model = GPT2.from_pretrained(args.model)
    local = Path(args.model) / "tokenizer.json"
    tokenizer = load_tokenizer(local.parent) if local.is_file() else tokenizer_named("gpt2")
    if model.config.n_layers != 12 or model.config.n_heads != 12:
        parser.error(f"the heads are those of the small GPT-2; {args.model} has {model.config.n_layers} x {model.config.n_heads}")
    found = study(model, tokenizer, args.pairs)
    rows = table(found)
    expected = {"name mover": 5, "negative name mover": 3, "S-inhibition": 6}
    agreed = sum(row["rank"] <= expected[row["role"]] for row in rows)
    verdict = "" if agreed > 9 else ": not this circuit"
    print(f"answer: {agreed} of {len(rows)} stand where the published circuit has them{verdict}")
    print(f"Logit difference on the eight prompts: {found['logit difference']:.2f} (published weights: about 3.55).")
    for row in rows:
        print(f"{row['head']:>6} {row['role']:<20} {row['measured by']:<30} {row['value']:+.3f}   {row['rank']} of 144")

    (args.out / "ioi.json").write_text(
        json.dumps({"logit_difference": found["logit difference"], "heads": rows}, indent=1) + "\n"
    )
    written = [args.out / "ioi.json"]
    for name in ("to logits", "to name movers"):
        written += figures.save(patching_heat_map(found[name]), args.out / f"ioi_{name.replace(' ', '_')}.pdf")
    print("wrote", *written)


if __name__ == "__main__":
    main()
