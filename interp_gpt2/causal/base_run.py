"""The run that is patched: what it computed is there for every intervention to start from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.inputs import positions_and_visible
from interp_gpt2.model import GPT2

# What the engine reads of every layer, and beside it at a patch of each point that it knows a short way through.
STATE = ("resid_pre", "q", "k", "v")
BESIDE = {
    "resid_pre": (), "q": (), "k": (), "v": (), "z": (), "pattern": ("z",), "attn_out": (), "resid_mid": (),
    "pre": ("resid_mid",), "post": ("resid_mid",), "mlp_out": ("resid_mid",), "resid_post": (),
}  # fmt: skip
ANOTHER_WAY = {"attn_scores", "pattern", "result", "scale", "normalized"}  # listening to these, a pass takes other kernels


@dataclass(frozen=True, eq=False)
class BaseRun:
    """A pass over tokens (pair, pos), with the activations that interventions on it start from."""

    model: GPT2
    tokens: Int[Tensor, "pair pos"]
    attention_mask: Int[Tensor, "pair pos"] | None
    positions: Int[Tensor, "*pair pos"]
    visible: Bool[Tensor, "pair 1 query key"] | None
    cache: Mapping[str, Tensor]
    logits: Float[Tensor, "pair pos d_vocab"]

    @classmethod
    def of(
        cls, model: GPT2, tokens: Tensor, attention_mask: Tensor | None, patched: Iterable[str], source: Iterable[str] = ()
    ) -> "BaseRun":
        """The pass, keeping what patches at these hook points need; `source` are those of the run that patches come from."""
        needed = names_needed(model.config, patched)
        # Recorded in both runs or in neither, so that both round alike and what is the same in both is seen to be.
        like_source = [name for name in source if name.rpartition(".")[2] in ANOTHER_WAY]
        logits, cache = model.run_with_cache(tokens, [*needed, *like_source], attention_mask=attention_mask)
        positions, visible = positions_and_visible(tokens.shape[1], attention_mask, 0, tokens.device)
        return cls(model, tokens, attention_mask, positions, visible, {name: cache[name] for name in needed}, logits)

    def at(self, leaf: str, layer: int) -> Tensor:
        return self.cache[_name(leaf, layer)]

    def stream(self, layer: int) -> Float[Tensor, "pair pos d_model"]:
        """The residual stream before a layer; before the final layer norm for n_layers."""
        if layer < self.model.config.n_layers:
            return self.at("resid_pre", layer)
        return self.cache[f"blocks.{layer - 1}.resid_post"] if layer else self.cache["embed"] + self.cache["pos_embed"]


def names_needed(config: GPT2Config, patched: Iterable[str]) -> list[str]:
    """The engine's own hook points, those patched, and what it reads beside them."""
    names = {_name(leaf, layer) for layer in range(config.n_layers) for leaf in STATE}
    names |= {_name("resid_post", config.n_layers - 1)} if config.n_layers else {"embed", "pos_embed"}
    for name in patched:
        names.add(name)
        if name.startswith("blocks."):
            names |= {_name(leaf, int(name.split(".")[1])) for leaf in BESIDE.get(name.rpartition(".")[2], ())}
    return sorted(names)


def _name(leaf: str, layer: int) -> str:
    scope = "attn." if leaf in ("q", "k", "v", "z", "pattern") else "mlp." if leaf in ("pre", "post") else ""
    return f"blocks.{layer}.{scope}{leaf}"
