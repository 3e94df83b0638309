"""Direct logit attribution: one logit, split among the parts of the stream it is read from.

The final layer norm's scale is frozen at what it was in the pass, which makes the logit a linear function of the stream.
(The logit lens, which normalises each layer's stream anew, is another measurement: see logit_lens.) A direct effect is not
the whole effect: what a part does to later layers counts as theirs. Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"; Wang et al. 2022, "Interpretability in the Wild", for differences of logits.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.residual import (
    Index,
    ResidualStack,
    W_O_of_layer,
    W_out_of_layer,
    accumulated_bias,
    frozen_scale,
    head_labels,
    layer_parts,
    neuron_labels,
    part_label,
    read,
    up_to,
)
from interp_gpt2.cache import ActivationCache
from interp_gpt2.errors import AnalysisError, TokenError
from interp_gpt2.model import GPT2

Parts = Literal["layers", "heads", "neurons"]
Tokens = int | Int[Tensor, "batch"] | Int[Tensor, "batch pos"]  # one token for all, for each sequence, for each position


@dataclass(frozen=True, eq=False)
class LogitAttribution:
    """`values` add up to `logits` but for `residue`, in the unit of logits.

    `logits` are those of the pass: of the token, or of the token less the incorrect one. `residue` = logits - the sum of
    values is rounding (below 1e-4 in float32), or what an edit of the stream itself put there.
    """

    values: Float[Tensor, "component batch pos"]
    labels: tuple[str, ...]
    logits: Float[Tensor, "batch pos"]
    residue: Float[Tensor, "batch pos"]


@dataclass(frozen=True, eq=False)
class ResidualProjection:
    """Scalar products of the parts of a stream with one direction; they add up to the stream's own."""

    values: Float[Tensor, "component batch pos"]
    labels: tuple[str, ...]


def direct_logit_attribution(
    model: GPT2,
    cache: ActivationCache,
    tokens: Tokens,
    incorrect_tokens: Tokens | None = None,
    parts: Parts = "layers",
    positions: Index | None = None,
) -> LogitAttribution:
    """Each part's share of the logits of `tokens`, or of how far they exceed those of `incorrect_tokens`.

    share = (part - its mean) / scale * gain . (W_U[:, token] - W_U[:, incorrect]). The components are those of
    `project_resid`, and "logit_bias": what the final layer norm's bias and the unembedding's add whatever the stream.
    Tokens (batch, pos) have only the `positions` asked for. The cache holds "ln_final.scale", "unembed.out" and what the
    parts need. Raises TokenError for tokens that are not in the vocabulary, or of another shape.
    """
    logit = logit_direction(model, cache, tokens, incorrect_tokens, positions)
    shares = project_resid(model, cache, logit.direction, parts, None, positions)
    values = torch.cat([shares.values, logit.bias[None]])
    return LogitAttribution(values, (*shares.labels, "logit_bias"), logit.logits, logit.logits - values.sum(0))


@dataclass(frozen=True, eq=False)
class LogitDirection:
    """A logit, or a difference of two, as a linear function of the last stream: logits = stream . direction + bias."""

    direction: Float[Tensor, "batch pos d_model"]
    bias: Float[Tensor, "batch pos"]
    logits: Float[Tensor, "batch pos"]


def logit_direction(
    model: GPT2,
    cache: ActivationCache,
    tokens: Tokens,
    incorrect_tokens: Tokens | None = None,
    positions: Index | None = None,
) -> LogitDirection:
    """What `direct_logit_attribution` projects on: the direction in the stream, behind the frozen final layer norm.

    The cache holds "ln_final.scale" and "unembed.out". Raises TokenError as that does.
    """
    logits = read(cache, "unembed.out", None, positions)
    ids = _ids(model, tokens, logits)
    direction, bias, logit = _W_U_of(model, ids, logits), _b_U_of(model, ids, logits), _at(logits, ids)
    if incorrect_tokens is not None:
        ids = _ids(model, incorrect_tokens, logits)
        direction, bias = direction - _W_U_of(model, ids, logits), bias - _b_U_of(model, ids, logits)
        logit = logit - _at(logits, ids)
    if model.config.layer_norm:
        if model.config.bias:
            bias = bias + direction @ model.ln_final.bias.to(logits)
        direction = direction * model.ln_final.weight.to(logits)
    return LogitDirection(_before_final_norm(model, cache, direction, positions), bias, logit)


def logit_attrs(
    model: GPT2,
    cache: ActivationCache,
    stack: ResidualStack,
    tokens: Tokens,
    incorrect_tokens: Tokens | None = None,
) -> Float[Tensor, "component batch pos"]:
    """(component - its mean) / scale . (W_U[:, token] - W_U[:, incorrect]), for any stack: TransformerLens's `logit_attrs`.

    As there, the final layer norm's gain and all biases are left out. They are inside W_U after `fold_layer_norm`, and
    only then do the parts of a stream add up to its logits (less b_U); `direct_logit_attribution` needs no folding. Tokens
    (batch, pos) have the stack's positions. The cache holds "ln_final.scale". Raises TokenError as that does.
    """
    like = stack.values[0]
    direction = _W_U_of(model, _ids(model, tokens, like), like)
    if incorrect_tokens is not None:
        direction = direction - _W_U_of(model, _ids(model, incorrect_tokens, like), like)
    direction = _before_final_norm(model, cache, direction, stack.positions)
    return torch.einsum("cbpd,bpd->cbp", stack.values, direction)


def project_resid(
    model: GPT2,
    cache: ActivationCache,
    direction: Float[Tensor, "d_model"] | Float[Tensor, "batch pos d_model"],
    parts: Parts = "layers",
    layer: int | None = None,
    positions: Index | None = None,
) -> ResidualProjection:
    """Scalar products with a direction of the parts that the stream before `layer` is the sum of.

    "layers": embeddings, attention layers and MLPs, as `decompose_resid`. "heads": every head, every MLP, embeddings and
    "bias", the sum of the b_O. "neurons": neurons in place of MLPs, and their b_out too, as `get_full_resid_decomposition`.
    The products with W_O and W_out come first, so that nothing of shape (components, batch, pos, d_model) ever exists. The
    cache holds the embeddings, and `attn_out`, `z` and `mlp_out` or `post`.
    """
    layer = up_to(model, cache, layer)
    if parts not in ("layers", "heads", "neurons"):
        raise AnalysisError(f"parts={parts!r} is not one of 'layers', 'heads', 'neurons'")
    mlps = 0 if model.config.attn_only else layer
    named, labels, products = layer_parts(model, layer, "all", False), (), []
    if parts != "layers":
        labels = head_labels(model, layer)
        products += [_heads_onto(model, cache, at, direction, positions) for at in range(layer)]
        named = [name for name in named if name[0] != "attn_out"]
    if parts == "neurons" and mlps:
        labels += neuron_labels(model, mlps)
        products += [_neurons_onto(model, cache, at, direction, positions) for at in range(mlps)]
        named = [name for name in named if name[0] != "mlp_out"]
    named = named if parts == "layers" else [*named[2:], *named[:2]]  # TransformerLens's order: embeddings behind
    products += [(read(cache, *name, positions) * direction).sum(-1)[None] for name in named]
    labels += tuple(map(part_label, named))
    if parts != "layers":
        bias = accumulated_bias(model, layer, mlps if parts == "neurons" else 0).to(direction)
        products.append((bias * direction).sum(-1).expand_as(products[-1]))
        labels += ("bias",)
    return ResidualProjection(torch.cat(products), labels)


def _heads_onto(
    model: GPT2, cache: ActivationCache, layer: int, direction: Tensor, positions: Index | None
) -> Float[Tensor, "head batch pos"]:
    z = read(cache, "z", layer, positions)
    W_O = W_O_of_layer(model, layer, z)  # (d_model, head, d_head)
    return (z * torch.tensordot(direction, W_O, dims=1)).sum(-1).permute(2, 0, 1)


def _neurons_onto(
    model: GPT2, cache: ActivationCache, layer: int, direction: Tensor, positions: Index | None
) -> Float[Tensor, "neuron batch pos"]:
    post = read(cache, "post", layer, positions)
    return (post * (direction @ W_out_of_layer(model, layer, post).T)).permute(2, 0, 1)


def _before_final_norm(
    model: GPT2, cache: ActivationCache, direction: Float[Tensor, "batch pos d_model"], positions: Index | None
) -> Float[Tensor, "batch pos d_model"]:
    """The direction in the stream that a direction behind the frozen final layer norm amounts to.

    (part - mean(part)) / scale . d = part . (d - mean(d)) / scale: centring the direction spares centring every part.
    """
    if not model.config.layer_norm:
        return direction
    return (direction - direction.mean(-1, keepdim=True)) / frozen_scale(cache, cache.n_layers, False, positions)


def _ids(model: GPT2, tokens: Tokens, like: Float[Tensor, "batch pos *rest"]) -> Int[Tensor, "batch pos"]:
    ids, shape = torch.as_tensor(tokens, device=like.device), like.shape[:2]
    if ids.dtype not in (torch.int64, torch.int32) or tuple(ids.shape) not in ((), shape[:1], tuple(shape)):
        raise TokenError(
            f"tokens to attribute to are {str(ids.dtype).removeprefix('torch.')} of shape {tuple(ids.shape)}; expected ids: "
            f"one for all, one for each sequence {tuple(shape[:1])}, or one for each position {tuple(shape)}"
        )
    if wrong := [token for token in ids.flatten().tolist() if not 0 <= token < model.config.d_vocab]:
        raise TokenError(f"token {wrong[0]} is not in the vocabulary: ids are 0 to {model.config.d_vocab - 1}")
    return (ids[:, None] if ids.ndim == 1 else ids).expand(shape).long()


def _W_U_of(model: GPT2, ids: Int[Tensor, "batch pos"], like: Tensor) -> Float[Tensor, "batch pos d_model"]:
    return model.W_U.T[ids.to(model.device)].to(like)


def _b_U_of(model: GPT2, ids: Int[Tensor, "batch pos"], like: Tensor) -> Float[Tensor, "batch pos"]:
    return model.b_U[ids.to(model.device)].to(like)


def _at(logits: Float[Tensor, "batch pos d_vocab"], ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    return logits.gather(-1, ids[..., None])[..., 0]
