"""What refusing costs: checking tokens and resolving names, beside the forward pass of 1,024 tokens that they stand before.

    python benchmarks/validation.py
    python benchmarks/validation.py --tiny     the smaller size alone, to see that everything runs

To be at most 1 % of it. Medians of processor time, so that a busy machine does not matter; the published small size and one
of 2 layers and width 64, where Python counts most.
"""

import sys
from collections.abc import Callable
from statistics import median
from time import process_time

import torch

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.hooks import resolve, resolve_edits
from interp_gpt2.inputs import check_tokens

SIZES = {"the small GPT-2": GPT2Config(), "2 layers, d_model 64": GPT2Config(n_layers=2, n_heads=4, d_model=64, d_vocab=1000)}


def microseconds(work: Callable[[], object], times: int, rounds: int) -> float:
    """The median over rounds of one call's share; the first round warms up."""
    found = []
    for _ in range(rounds + 1):
        start = process_time()
        for _ in range(times):
            work()
        found.append(1e6 * (process_time() - start) / times)
    return median(found[1:])


@torch.no_grad()
def costs(config: GPT2Config) -> str:
    model = GPT2(config).eval()
    tokens = torch.randint(config.d_vocab, (1, 1024), generator=torch.Generator().manual_seed(0))
    forward = microseconds(lambda: model(tokens), 1, 5)
    parts = {
        "tokens": lambda: check_tokens(tokens, config, device=model.device),
        "names and edits": lambda: (resolve("*.pattern", config), resolve_edits({("z", 0): torch.relu}, config)),
    }
    found = {name: microseconds(work, 200, 9) for name, work in parts.items()}
    shares = ", ".join(f"{name} {cost:.0f} µs" for name, cost in found.items())
    return f"{shares}: {100 * sum(found.values()) / forward:.3f} % of {forward / 1000:.1f} ms"


if __name__ == "__main__":
    for title, size in list(SIZES.items())[1 if sys.argv[1:] == ["--tiny"] else 0 :]:
        print(f"{title}: {costs(size)}")
