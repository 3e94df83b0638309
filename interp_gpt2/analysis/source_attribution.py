"""Direct logit attribution by source position: what each head says for a token, split by where it read it.

A head's result is a sum over the positions it attends to, so its share of a logit is one too:
pattern[destination, source] * v[source] . W_O . (direction of the token's logit, behind the frozen final layer norm).
Where `logit_attribution` says which head speaks for a token, this says from which position it has that. Elhage et al. 2021,
"A Mathematical Framework for Transformer Circuits".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.attention_patterns import head_label
from interp_gpt2.analysis.logit_attribution import Tokens, logit_direction
from interp_gpt2.analysis.residual import Index, W_O_of_layer, pick, read, up_to
from interp_gpt2.cache import ActivationCache
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class SourceAttribution:
    """`values` are in the unit of logits, 0 for positions a destination does not see; over keys they add up to `shares`.

    `shares` are the heads' direct logit attributions, from their z. `residue` = shares - the sum over keys is rounding
    (below 1e-5 in float32), or what an edit of z put there. `destinations` are the positions of the axis `pos`.
    """

    values: Float[Tensor, "head batch pos key"]
    labels: tuple[str, ...]
    heads: tuple[tuple[int, int], ...]
    shares: Float[Tensor, "head batch pos"]
    residue: Float[Tensor, "head batch pos"]
    destinations: Int[Tensor, "pos"]

    def to_frame(self) -> "DataFrame":
        """A row for each head, sequence, destination and source up to it: label, layer, head, batch, destination, source,
        value, share (the head's whole). Largest absolute value first."""
        import pandas

        seen = torch.arange(self.values.shape[-1]) <= self.destinations[:, None]
        head, batch, pos, key = seen.expand(self.values.shape).nonzero(as_tuple=True)
        where = torch.tensor(self.heads, dtype=torch.long).reshape(-1, 2)[head]
        frame = pandas.DataFrame(
            {
                "label": [self.labels[at] for at in head.tolist()],
                "layer": where[:, 0].numpy(),
                "head": where[:, 1].numpy(),
                "batch": batch.numpy(),
                "destination": self.destinations[pos].numpy(),
                "source": key.numpy(),
                "value": self.values.detach().cpu()[head, batch, pos, key].float().numpy(),
                "share": self.shares.detach().cpu()[head, batch, pos].float().numpy(),
            }
        )
        return frame.sort_values("value", key=abs, ascending=False, kind="stable", ignore_index=True)


def source_attribution(
    model: GPT2,
    cache: ActivationCache,
    tokens: Tokens,
    incorrect_tokens: Tokens | None = None,
    layers: Sequence[int] | None = None,
    positions: Index | None = None,
) -> SourceAttribution:
    """Each head's share of the logits of `tokens` (or of how far they exceed those of `incorrect_tokens`), by source.

    `tokens` and `positions` (the destinations) are those of `direct_logit_attribution`, whose shares of heads these add up
    to; `layers` (None: all) says whose heads. A head's value bias counts where it attends to, in proportion to its pattern
    (`folding.fold_value_biases` takes it out of the heads). The cache holds `pattern`, `v`, `z`, "ln_final.scale" and
    "unembed.out". Raises TokenError as that does, AnalysisError for layers that do not exist or a cache of a continued pass.
    """
    n_layers = up_to(model, cache, None)
    chosen = list(range(n_layers)) if layers is None else list(layers)
    if wrong := [layer for layer in chosen if not 0 <= layer < n_layers]:
        raise AnalysisError(f"layer {wrong[0]} is not among the model's layers, 0 to {n_layers - 1}")
    direction = logit_direction(model, cache, tokens, incorrect_tokens, positions).direction
    values, shares = [], []
    for layer in chosen:
        pattern, v, z = cache["pattern", layer], read(cache, "v", layer, None), read(cache, "z", layer, positions)
        if pattern.shape[-2:] != (v.shape[1], v.shape[1]):
            raise AnalysisError(
                f"the pattern is {tuple(pattern.shape[-2:])} queries by keys where v has {v.shape[1]} positions: pass a cache of "
                "the whole sequence in one pass, without past, and let keep= leave positions as they are"
            )
        onto = torch.tensordot(direction.to(z), W_O_of_layer(model, layer, z), dims=1)  # (batch, pos, head, d_head)
        spoken = torch.einsum("bphe,bkhe->hbpk", onto, v)
        values.append(pick(pattern, positions, 2).transpose(0, 1) * spoken)
        shares.append((z * onto).sum(-1).permute(2, 0, 1))
    heads = tuple((layer, head) for layer in chosen for head in range(model.config.n_heads))
    n_pos = cache["unembed.out"].shape[1]
    destinations = pick(torch.arange(n_pos), positions, 0)
    if not chosen:
        shares = [direction.new_zeros(0, *direction.shape[:2])]
        values = [direction.new_zeros(0, *direction.shape[:2], n_pos)]
    whole, share = torch.cat(values), torch.cat(shares)
    labels = tuple(head_label(*head) for head in heads)
    return SourceAttribution(whole, labels, heads, share, share - whole.sum(-1), destinations)
