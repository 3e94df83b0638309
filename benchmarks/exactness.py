"""How far our logits are from Hugging Face's, and in low precision from its float32, in the published small size.

    python benchmarks/exactness.py                   a table
    python benchmarks/exactness.py --tokens 2 256    batch and length

Random weights; once as initialised, and once with the projections into the residual stream scaled until its largest norm
is 3,000, as in the trained model. In float32: the largest difference of a logit. In bfloat16 and float16: the mean over
positions of KL(Hugging Face's float32 || low precision) in nats, beside that of Hugging Face's own low precision.
"""

import argparse
from copy import deepcopy

import torch
from torch import Tensor

from interp_gpt2 import GPT2, GPT2Config
from interp_gpt2.convert.huggingface import to_huggingface

NORM = 3000.0
MOST = {"as initialised": 1e-5, "residual norm 3,000": 1e-3}  # largest difference of a logit in float32
MOST_KL = 1.1  # times Hugging Face's own


def largest_norm(model: GPT2, tokens: Tensor) -> float:
    resid = model.run_until(tokens, model.config.n_layers, ())[0]
    return resid.norm(dim=-1).max().item()


def scaled(model: GPT2, tokens: Tensor) -> GPT2:
    """The model with its projections into the stream grown until the stream is as long as in the trained model."""
    for _ in range(20):
        factor = NORM / largest_norm(model, tokens)
        if abs(factor - 1) < 0.01:
            break
        for block in model.blocks:
            block.attn.proj.weight.mul_(factor)
            block.mlp.proj.weight.mul_(factor)
    return model


def mean_kl(reference: Tensor, logits: Tensor) -> float:
    log_p, log_q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


def rows(name: str, model: GPT2, tokens: Tensor) -> None:
    hf_model = to_huggingface(model)
    reference = hf_model(tokens, use_cache=False).logits
    worst = (model(tokens) - reference).abs().max().item()
    print(f"| {name} (norm {largest_norm(model, tokens):,.0f}) | float32: largest difference of a logit | {worst:.1e} | "
          f"<= {MOST[name]:.0e} | {'yes' if worst <= MOST[name] else 'no'} |", flush=True)  # fmt: skip
    for dtype in (torch.bfloat16, torch.float16):  # from float32 each time: neither holds the other
        ours = mean_kl(reference, deepcopy(model).to(dtype)(tokens))
        theirs = mean_kl(reference, deepcopy(hf_model).to(dtype)(tokens, use_cache=False).logits)
        what, met = str(dtype).removeprefix("torch."), "yes" if ours <= MOST_KL * theirs else "no"
        print(f"| {name} | {what}: mean KL to float32, ours / theirs | {ours:.2e} / {theirs:.2e} | "
              f"<= {MOST_KL} x theirs | {met} ({ours / theirs:.2f}) |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs=2, default=(2, 256), metavar=("BATCH", "POS"))
    parser.add_argument("--tiny", action="store_true", help="a model of 2 layers: only to see that everything runs")
    options = parser.parse_args()
    config = GPT2Config(n_layers=2, n_heads=4, d_model=64, d_vocab=1000) if options.tiny else GPT2Config()
    tokens = torch.randint(config.d_vocab, options.tokens, generator=torch.Generator().manual_seed(0))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.tokens[0]} x {options.tokens[1]} tokens\n")
    print("| weights | what | measured | target | met |\n|---|---|---|---|---|")
    with torch.no_grad():
        rows("as initialised", GPT2(config).eval(), tokens)
        rows("residual norm 3,000", scaled(GPT2(config).eval(), tokens), tokens)


if __name__ == "__main__":
    main()
