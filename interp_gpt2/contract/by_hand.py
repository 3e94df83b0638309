"""GPT-2 by its definition, one line for each hook point: what the contract measures every model against.

Plain and slow on purpose: nothing is fused, and nothing is shared with model.py. Weights have TransformerLens's names and
shapes (`convert.transformer_lens.hooked_state_dict`). Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners"; layer norm before each part, tanh GELU.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from interp_gpt2.config import GPT2Config

Edit = Callable[[Tensor], Tensor]
Weights = Mapping[str, Tensor]

SPLIT_INPUTS = ("attn_in", "q_input", "k_input", "v_input")


def by_hand(tokens: Tensor, weights: Weights, config: GPT2Config, edits: Mapping[str, Edit] | None = None) -> dict[str, Tensor]:
    """Every activation by hook point, in the order of the pass, with `edits` applied where they are named.

    `unembed.out` is the logits. An edited point is what its edit returned, and everything after it follows from that.
    """
    return _Definition(weights, config, edits or {}).run(tokens)


class _Definition:
    def __init__(self, weights: Weights, config: GPT2Config, edits: Mapping[str, Edit]) -> None:
        self.weights, self.config, self.edits = weights, config, edits
        self.seen: dict[str, Tensor] = {}

    def at(self, name: str, value: Tensor) -> Tensor:
        self.seen[name] = self.edits[name](value.clone()) if name in self.edits else value
        return self.seen[name]

    def run(self, tokens: Tensor) -> dict[str, Tensor]:
        n_batch, n_pos = tokens.shape
        embed = self.at("embed", self.weights["embed.W_E"][tokens])  # (batch, pos, d_model)
        pos_embed = self.at("pos_embed", self.weights["pos_embed.W_pos"][:n_pos].expand(n_batch, -1, -1))
        resid = embed + pos_embed
        for layer in range(self.config.n_layers):
            resid = self.block(layer, resid)
        final = self.at("unembed.in", self.norm("ln_final", resid))
        self.at("unembed.out", final @ self.weights["unembed.W_U"] + self.weights["unembed.b_U"])  # (batch, pos, d_vocab)
        return self.seen

    def block(self, layer: int, resid: Tensor) -> Tensor:
        block = f"blocks.{layer}"
        resid = self.at(f"{block}.resid_pre", resid)
        resid = resid + self.at(f"{block}.attn_out", self.attention(layer, resid))
        if self.config.attn_only:
            return self.at(f"{block}.resid_post", resid)
        resid = self.at(f"{block}.resid_mid", resid)
        mlp_in = self.at(f"{block}.mlp_in", resid)
        resid = resid + self.at(f"{block}.mlp_out", self.mlp(f"{block}.mlp", self.norm(f"{block}.ln2", mlp_in)))
        return self.at(f"{block}.resid_post", resid)

    def attention(self, layer: int, resid: Tensor) -> Tensor:
        attn = f"blocks.{layer}.attn"
        q, k, v = self.queries_keys_values(layer, resid)  # (batch, pos, head, d_head)
        n_pos = q.shape[1]
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(self.config.d_head)
        if self.config.scale_attn_by_inverse_layer_idx:
            scores = scores / (layer + 1)
        future = torch.ones(n_pos, n_pos, dtype=torch.bool).triu(1)
        scores = self.at(f"{attn}.attn_scores", scores.masked_fill(future, -math.inf))  # (batch, head, query, key)
        pattern = self.at(f"{attn}.pattern", scores.softmax(-1))
        z = self.at(f"{attn}.z", torch.einsum("bhqk,bkhe->bqhe", pattern, v))  # (batch, pos, head, d_head)
        result = self.at(f"{attn}.result", torch.einsum("bphe,hed->bphd", z, self.weights[f"{attn}.W_O"]))
        return result.sum(2) + self.weights[f"{attn}.b_O"]  # (batch, pos, d_model)

    def queries_keys_values(self, layer: int, resid: Tensor) -> list[Tensor]:
        """From the shared stream through ln1; from one stream for each head if one of those is edited."""
        block = f"blocks.{layer}"
        shared = self.norm(f"{block}.ln1", resid)
        attn_in = self.at(f"{block}.attn_in", resid.unsqueeze(2).expand(-1, -1, self.config.n_heads, -1))
        streams = [self.at(f"{block}.{name}_input", attn_in) for name in "qkv"]  # (batch, pos, head, d_model)
        split = any(f"{block}.{name}" in self.edits for name in SPLIT_INPUTS)
        found = []
        for name, stream in zip("qkv", streams, strict=True):
            normed = self.unnamed_norm(f"{block}.ln1", stream) if split else shared.unsqueeze(2).expand_as(stream)
            W, b = self.weights[f"{block}.attn.W_{name.upper()}"], self.weights[f"{block}.attn.b_{name.upper()}"]
            found.append(self.at(f"{block}.attn.{name}", torch.einsum("bphd,hde->bphe", normed, W) + b))
        return found

    def mlp(self, mlp: str, normed: Tensor) -> Tensor:
        W, act = self.weights, ACTIVATIONS[self.config.act_fn]
        pre = self.at(f"{mlp}.pre", normed @ W[f"{mlp}.W_in"] + W[f"{mlp}.b_in"])  # (batch, pos, d_mlp)
        return self.at(f"{mlp}.post", act(pre)) @ W[f"{mlp}.W_out"] + W[f"{mlp}.b_out"]

    def norm(self, norm: str, resid: Tensor) -> Tensor:
        if not self.config.layer_norm:
            return resid
        centred = resid - resid.mean(-1, keepdim=True)
        scale = self.at(f"{norm}.scale", (centred.square().mean(-1, keepdim=True) + self.config.eps).sqrt())
        normalized = self.at(f"{norm}.normalized", centred / scale)
        return normalized * self.weights[f"{norm}.w"] + self.weights[f"{norm}.b"]

    def unnamed_norm(self, norm: str, resid: Tensor) -> Tensor:
        return _Definition(self.weights, self.config, {}).norm(norm, resid)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "relu": lambda x: x.clamp(min=0),
}

_PARTS = {  # what writes each part of the stream; b_O stays when a head's z or result is removed
    "embed": ("embed.W_E",),
    "pos_embed": ("pos_embed.W_pos",),
    "attn_out": ("attn.W_O", "attn.b_O"),
    "z": ("W_O",),
    "result": ("W_O",),
    "mlp_out": ("mlp.W_out", "mlp.b_out"),
}


def without(weights: Weights, point: str) -> dict[str, Tensor] | None:
    """The weights of the model that lacks what `point` carries; None for points that are no part of the stream.

    The unembedding stays when the embedding is removed, also where the two are tied.
    """
    scope, _, leaf = point.rpartition(".")
    if leaf not in _PARTS:
        return None
    removed = {".".join(part for part in (scope, name) if part) for name in _PARTS[leaf]}
    return {name: torch.zeros_like(weight) if name in removed else weight for name, weight in weights.items()}
