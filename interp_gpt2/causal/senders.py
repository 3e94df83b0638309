"""What every writer of the graph writes, in a plain pass or on average: (sender, pair, pos, d_model), as `Graph.senders`."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.causal.ablation import Ablation
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.means import activation_means
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.prompts.pairs import PromptPairs


def sender_points(config: GPT2Config) -> list[str]:
    """The hook points from which every sender's output follows; `activation_means(model, data, names)` of these will do."""
    if not config.n_layers:
        return ["embed", "pos_embed"]
    return ["blocks.0.resid_pre", "*.z"] + ([] if config.attn_only else ["*mlp_out"])


@torch.no_grad()
def sender_outputs(
    model: GPT2, tokens: Int[Tensor, "batch pos"], attention_mask: Tensor | None = None
) -> Float[Tensor, "sender batch pos d_model"]:
    """What every sender writes in a plain pass."""
    _, cache = model.run_with_cache(tokens, sender_points(model.config), attention_mask=attention_mask)
    return _outputs(model, lambda name: cache[name])


def _outputs(model: GPT2, read) -> Tensor:
    """From activations (..., d_model), and z (..., head, d_head), by their names; linear in them."""
    if not model.config.n_layers:
        return (read("embed") + read("pos_embed"))[None]
    parts = [read("blocks.0.resid_pre")[None]]
    for layer, block in enumerate(model.blocks):
        W_O = block.attn.proj.weight.detach().unflatten(1, (model.config.n_heads, model.config.d_head))  # (d_model, head, d_head)
        z = read(f"blocks.{layer}.attn.z")
        parts.append(torch.einsum("...he,dhe->h...d", z, W_O.to(z)))
        if not model.config.attn_only:
            parts.append(read(f"blocks.{layer}.mlp_out")[None])
    return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class Stand:
    """What ablated edges carry in place of what their senders write, for any of the pairs.

    `fixed` (sender, 1, pos | 1, d_model) is the same for all; None is what each sender writes in the corrupted prompt.
    """

    name: str
    model: GPT2
    pairs: PromptPairs
    fixed: Float[Tensor, "sender 1 pos d_model"] | None

    def of(self, pair: slice) -> Float[Tensor, "sender pair pos d_model"]:
        corrupted, mask = self.pairs.corrupted[pair], self.pairs.attention_mask
        if self.fixed is None:
            return sender_outputs(self.model, corrupted, None if mask is None else mask[pair])
        return self.fixed.expand(-1, *corrupted.shape, -1)


def stand_in(ablation: str | Ablation, model: GPT2, pairs: PromptPairs) -> Stand:
    """What an ablation puts in the senders' place.

    By name: "resample" (what they write in the corrupted prompt), "zero", "mean" and "positional mean" (over the corrupted
    prompts, the mean over all their tokens). Or an `Ablation` with means of its own, which need `sender_points`.
    Raises AnalysisError for another name, an ablation of some positions, or means without these points.
    """
    if isinstance(ablation, str):
        ablation = _named(ablation, model, pairs)
    elif not isinstance(ablation, Ablation):
        raise AnalysisError(f"ablation={ablation!r} is none; give a name, such as 'resample', or make one with mean(means)")
    elif ablation.means is not None:
        ablation.means.check(model)
    if ablation.positions is not None or ablation.source is not None:
        raise AnalysisError("edges are ablated at all positions, and resampled from the pairs' corrupted prompts; give neither")
    if ablation.kind == "resample":
        return Stand("resample", model, pairs, None)
    n, n_pos, d_model = len(Graph.of(model.config).senders), pairs.clean.shape[1], model.config.d_model
    weights = model.wte.weight.detach()
    if ablation.kind == "zero":
        return Stand("zero", model, pairs, weights.new_zeros(n, 1, 1, d_model))
    if ablation.kind == "mean":
        return Stand("mean", model, pairs, _outputs(model, ablation.means.mean)[:, None, None].to(weights))
    if ablation.means.computed_on.n_sequences < 2:
        raise AnalysisError("the positional means of one prompt are its own activations; take more pairs, or ablation='resample'")
    if len(ablation.means.counts) < n_pos:
        raise AnalysisError(f"there are means of {len(ablation.means.counts)} positions; the prompts have {n_pos}")
    by_position = _outputs(model, lambda name: ablation.means.positional_mean(name)[:n_pos])
    return Stand("positional mean", model, pairs, by_position[:, None].to(weights))


def _named(name: str, model: GPT2, pairs: PromptPairs) -> Ablation:
    if name in ("resample", "zero"):
        return Ablation(name)
    if name in ("mean", "positional mean"):
        names = sender_points(model.config)
        return Ablation(name, activation_means(model, pairs.corrupted, names, pairs.attention_mask))
    raise AnalysisError(f"no ablation is called {name!r}; there are 'resample', 'zero', 'mean' and 'positional mean'")
