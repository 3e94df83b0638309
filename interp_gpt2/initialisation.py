"""Where learning starts."""

import math

import torch
from torch import Tensor, nn

from interp_gpt2.config import GPT2Config


@torch.no_grad()
def initialise(model: nn.Module, config: GPT2Config, seed: int) -> None:
    """GPT-2's initialisation: N(0, 0.02), and 0.02 / sqrt(2 n_layers) for the projections into the residual stream."""
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith(".bias"):
            weight.zero_()
        elif ".ln" in name or name.startswith("ln"):
            weight.fill_(1)
        elif name == "wpe.weight" and config.pos_init == "sinusoidal":
            weight.copy_(config.pos_std * sinusoids(config.n_ctx, config.d_model))
        else:
            std = {"wte.weight": config.embed_std, "wpe.weight": config.pos_std}.get(name, 0.02)
            weight.normal_(0, std / math.sqrt(2 * config.n_layers) if name.endswith("proj.weight") else std, generator=draw)


def sinusoids(n_ctx: int, d_model: int) -> Tensor:
    """Sines, then cosines, of positions at wavelengths from 2 pi to 10,000 * 2 pi: (n_ctx, d_model), within [-1, 1].

    Vaswani et al. 2017, "Attention Is All You Need".
    """
    half = (d_model + 1) // 2
    angles = torch.arange(n_ctx)[:, None] * torch.exp(torch.arange(half) * (-math.log(10_000) / half))
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :d_model]
