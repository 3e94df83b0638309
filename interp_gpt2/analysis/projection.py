"""Scalar products of heads, neurons and other parts of the stream with directions, without forming the parts.

A neuron adds post * W_out[neuron] to the stream, so its products with directions are post * (W_out[neuron] @ directions):
(components, batch, pos, d_model) never exists. Behind a layer norm the same holds with its scale frozen. Functions, labels
and order are those of `residual`, whose stacks these are projections of; compare logit_attribution.project_resid, which
takes one direction for each position.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.analysis.residual import (
    Index,
    ResidualStack,
    W_O_of_layer,
    W_out_of_layer,
    accumulated_bias,
    frozen_scale,
    head_labels,
    head_results,
    neuron_labels,
    part_label,
    pick,
    read,
    stream_before,
    up_to,
)
from interp_gpt2.cache import ActivationCache
from interp_gpt2.model import GPT2


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions in the stream and, where they stand behind a layer norm, what that divides by."""

    values: Float[Tensor, "d_model out"]
    scale: Float[Tensor, "batch pos 1"] | None = None

    def of(self, parts: Float[Tensor, "*component batch pos d_model"]) -> Float[Tensor, "*component batch pos out"]:
        """Products of parts of the stream."""
        return self.scaled(parts @ self.values.to(parts))

    def scaled(self, products: Float[Tensor, "*component batch pos out"]) -> Float[Tensor, "*component batch pos out"]:
        return products if self.scale is None else products / self.scale


def behind_layer_norm(
    model: GPT2,
    cache: ActivationCache,
    directions: Float[Tensor, "d_model out"],
    layer: int | None = None,
    mlp_input: bool = False,
    positions: Index | None = None,
) -> Directions:
    """Directions in what `layer` reads (None: the unembedding), less gain and bias: (part - its mean) / scale . direction.

    That is part . (direction - its mean) / scale. The cache holds `scale`; a model without layer norms needs none.
    """
    layer = up_to(model, cache, layer, mlp_input)
    if not model.config.layer_norm:
        return Directions(directions)
    return Directions(directions - directions.mean(0), frozen_scale(cache, layer, mlp_input, positions))


def project_neurons(
    model: GPT2,
    cache: ActivationCache,
    onto: Directions,
    layer: int,
    neurons: Index | None = None,
    positions: Index | None = None,
) -> Float[Tensor, "neuron batch pos out"]:
    """Products of what neurons of one layer add. The cache holds `post`."""
    neuron_labels(model, 1, neurons)  # which refuses neurons that do not exist
    post = pick(read(cache, "post", layer, positions), neurons, -1).permute(2, 0, 1)  # (neuron, batch, pos)
    W_out = pick(W_out_of_layer(model, layer, post), neurons, 0) @ onto.values.to(post)  # (neuron, out)
    return onto.scaled(post[..., None] * W_out[:, None, None])


def project_heads(
    model: GPT2, cache: ActivationCache, onto: Directions, layer: int, positions: Index | None = None
) -> Float[Tensor, "head batch pos out"]:
    """Products of what the heads of one layer add, without b_O. The cache holds `result` or `z`."""
    if ("result", layer) in cache:
        return onto.of(head_results(model, cache, layer, positions))
    z = read(cache, "z", layer, positions)
    W_O = torch.einsum("dhe,do->heo", W_O_of_layer(model, layer, z), onto.values.to(z))
    return onto.scaled(torch.einsum("bphe,heo->hbpo", z, W_O))


def project_neuron_stack(
    model: GPT2,
    cache: ActivationCache,
    onto: Directions,
    layer: int | None = None,
    neurons: Index | None = None,
    positions: Index | None = None,
    incl_remainder: bool = False,
) -> ResidualStack:
    """Products of `residual.stack_neuron_results`, with its labels: values (component, batch, pos, out)."""
    layer = up_to(model, cache, layer)
    stream = onto.of(stream_before(cache, layer, positions))[None]
    parts = [project_neurons(model, cache, onto, at, neurons, positions) for at in range(layer)]
    labels = neuron_labels(model, layer, neurons)
    if incl_remainder:
        labels = (*labels, "remainder")
        parts.append(stream - sum(part.sum(0) for part in parts))
    return ResidualStack(torch.cat([stream[:0], *parts]), labels, positions)


def project_full_decomposition(
    model: GPT2,
    cache: ActivationCache,
    onto: Directions,
    layer: int | None = None,
    mlp_input: bool = False,
    expand_neurons: bool = True,
    positions: Index | None = None,
) -> ResidualStack:
    """Products of `residual.get_full_resid_decomposition`, with its labels: values (component, batch, pos, out)."""
    layer = up_to(model, cache, layer, mlp_input)
    attns, mlps = layer + mlp_input, 0 if model.config.attn_only else layer
    labels = head_labels(model, attns)
    parts = [project_heads(model, cache, onto, at, positions) for at in range(attns)]
    if mlps and expand_neurons:
        labels += neuron_labels(model, mlps)
        parts += [project_neurons(model, cache, onto, at, None, positions) for at in range(mlps)]
    named = [("mlp_out", at) for at in range(0 if expand_neurons else mlps)] + [("embed", None), ("pos_embed", None)]
    streams = torch.stack([read(cache, *name, positions) for name in named])
    bias = accumulated_bias(model, attns, mlps if expand_neurons else 0).to(streams).expand_as(streams[:1])
    values = torch.cat([*parts, onto.of(streams), onto.of(bias)])
    return ResidualStack(values, (*labels, *map(part_label, named), "bias"), positions)
