"""Arithmetic on the residual stream: its states and its parts, stacked and labelled.

The stream is a sum: embeddings, and what every attention layer (head by head) and MLP (neuron by neuron) adds. The
functions are TransformerLens's by name, order and label, and read a cache of `run_with_cache`; what must be in it is
said by each, and by the error when it is not there. All layers count up to, and not including, `layer`: 0 to n_layers,
None for n_layers, the stream that is unembedded. Stacks of heads and neurons are large, (components, batch, pos,
d_model): ask for `positions`, or project at once with logit_attribution.project_resid.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.analysis.attention_patterns import head_label
from interp_gpt2.cache import ActivationCache
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

Index = int | slice | Sequence[int]  # of positions or neurons; a number keeps its axis, of length 1

BATCH_POS_D_MODEL = 3  # axes of most activations; those of heads have one more


@dataclass(frozen=True, eq=False)
class ResidualStack:
    """States of the stream, or parts of it, with a label each. `positions` are those taken of the cache (None: all)."""

    values: Float[Tensor, "component batch pos d_model"]
    labels: tuple[str, ...]
    positions: Index | None = None

    def __getitem__(self, label: str) -> Float[Tensor, "batch pos d_model"]:
        """One component by its label. Raises AnalysisError if there is none."""
        if label not in self.labels:
            raise AnalysisError(f"no component is labelled {label!r}; the labels are {_some(self.labels)}")
        return self.values[self.labels.index(label)]


# States of the stream -------------------------------------------------------------------------------------------------


def accumulated_resid(
    model: GPT2,
    cache: ActivationCache,
    layer: int | None = None,
    incl_mid: bool = False,
    mlp_input: bool = False,
    positions: Index | None = None,
) -> ResidualStack:
    """The stream before each layer up to and including `layer`: "0_pre", "1_pre", ..., "final_post" before unembedding.

    `incl_mid` adds the streams between attention and MLP ("0_mid") of the layers before, `mlp_input` that of `layer`
    itself. The cache holds `resid_pre` (or `resid_post` of the layer before), and `resid_mid` where asked for.
    """
    layer = up_to(model, cache, layer, mlp_input)
    if incl_mid and model.config.attn_only:
        raise AnalysisError("an attention-only model has no stream between attention and MLP; leave incl_mid out")
    found, labels = [], []
    for at in range(layer + 1):
        found.append(stream_before(cache, at, positions))
        labels.append(f"{at}_pre" if at < cache.n_layers else "final_post")
        if (incl_mid and at < layer) or (mlp_input and at == layer):
            found.append(read(cache, "resid_mid", at, positions))
            labels.append(f"{at}_mid")
    return ResidualStack(torch.stack(found), tuple(labels), positions)


def stack_activation(
    cache: ActivationCache, name: str, layer: int | None = None, scope: str | None = None
) -> Float[Tensor, "layer batch ..."]:
    """One kind of activation from every layer before `layer` (None: all). `scope` tells `scale` of "ln1" from "ln2"."""
    n_layers = cache.n_layers if layer is None else layer
    if not 0 < n_layers <= cache.n_layers:
        raise AnalysisError(f"layer={layer} leaves nothing to stack; pass 1 to {cache.n_layers}, or None for all layers")
    return torch.stack([cache[name, at, scope] for at in range(n_layers)])


# Parts of the stream --------------------------------------------------------------------------------------------------


def decompose_resid(
    model: GPT2,
    cache: ActivationCache,
    layer: int | None = None,
    mode: Literal["all", "attn", "mlp"] = "all",
    mlp_input: bool = False,
    positions: Index | None = None,
) -> ResidualStack:
    """What the stream before `layer` is the sum of: "embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out", ...

    `mode` leaves out the MLPs ("attn") or the attention layers ("mlp"); `mlp_input` takes the stream between attention and
    MLP of `layer` instead. The cache holds what is listed.
    """
    layer = up_to(model, cache, layer, mlp_input)
    names = layer_parts(model, layer, mode, mlp_input)
    values = [read(cache, *name, positions) for name in names]
    return ResidualStack(torch.stack(values), tuple(part_label(name) for name in names), positions)


def stack_head_results(
    model: GPT2,
    cache: ActivationCache,
    layer: int | None = None,
    positions: Index | None = None,
    incl_remainder: bool = False,
) -> ResidualStack:
    """What every head before `layer` adds to the stream: "L0H0", "L0H1", ...; without the bias b_O, which they share.

    `incl_remainder` adds "remainder": the stream before `layer` less all of them. The cache holds `result` or `z`, and for
    the remainder `resid_pre` or `resid_post`.
    """
    layer = up_to(model, cache, layer)
    labels, heads = head_labels(model, layer), _heads(model, cache, layer, positions)
    if incl_remainder:
        labels, heads = (*labels, "remainder"), _and_remainder(heads, stream_before(cache, layer, positions))
    return _stacked(cache, heads, labels, positions)


def get_neuron_results(
    model: GPT2, cache: ActivationCache, layer: int, neurons: Index | None = None, positions: Index | None = None
) -> Float[Tensor, "batch pos neuron d_model"]:
    """What neurons of one layer add to the stream: `post` times their rows of W_out. The cache holds `post`."""
    neuron_labels(model, 1, neurons)  # which refuses neurons that do not exist
    post = read(cache, "post", layer, positions)
    return pick(post, neurons, -1)[..., None] * pick(W_out_of_layer(model, layer, post), neurons, 0)


def stack_neuron_results(
    model: GPT2,
    cache: ActivationCache,
    layer: int | None = None,
    neurons: Index | None = None,
    positions: Index | None = None,
    incl_remainder: bool = False,
) -> ResidualStack:
    """What neurons of every layer before `layer` add to the stream: "L0N0", "L0N1", ...; without the bias b_out.

    `neurons` are the same in each layer. `incl_remainder` adds "remainder", as for heads. The cache holds `post`.
    """
    layer = up_to(model, cache, layer)
    labels, parts = neuron_labels(model, layer, neurons), _neurons(model, cache, layer, neurons, positions)
    if incl_remainder:
        labels, parts = (*labels, "remainder"), _and_remainder(parts, stream_before(cache, layer, positions))
    return _stacked(cache, parts, labels, positions)


def get_full_resid_decomposition(
    model: GPT2,
    cache: ActivationCache,
    layer: int | None = None,
    mlp_input: bool = False,
    expand_neurons: bool = True,
    positions: Index | None = None,
) -> ResidualStack:
    """The whole stream before `layer` in its finest parts: heads, then neurons, then "embed", "pos_embed" and "bias".

    Without `expand_neurons`, MLP layers ("0_mlp_out") stand for their neurons. "bias" is the sum of the b_O, and of the
    b_out of neurons, so the components add up to the stream. The cache holds `z` or `result`, `post` or `mlp_out`, and the
    embeddings.
    """
    layer = up_to(model, cache, layer, mlp_input)
    attns, mlps = layer + mlp_input, 0 if model.config.attn_only else layer
    labels, parts = head_labels(model, attns), _heads(model, cache, attns, positions)
    if mlps and expand_neurons:
        labels, parts = (*labels, *neuron_labels(model, mlps)), chain(parts, _neurons(model, cache, mlps, None, positions))
    named = [("mlp_out", at) for at in range(0 if expand_neurons else mlps)] + [("embed", None), ("pos_embed", None)]
    values = torch.stack([read(cache, *name, positions) for name in named])
    bias = accumulated_bias(model, attns, mlps if expand_neurons else 0).to(values).expand_as(values[:1])
    return _stacked(cache, chain(parts, [values, bias]), (*labels, *map(part_label, named), "bias"), positions)


# Layer norm on stacks -------------------------------------------------------------------------------------------------


def apply_ln_to_stack(
    model: GPT2, cache: ActivationCache, stack: ResidualStack, layer: int | None = None, mlp_input: bool = False
) -> ResidualStack:
    """Each part's share of what `layer` reads (None: the unembedding): less its mean, over the stream's own scale.

    The scale is the cache's and the same for all, so the parts still sum to `normalized`; gain and bias come after it. A
    model without layer norms reads the parts as they are. The cache holds `scale`. Compare `renormalise_stack`.
    """
    layer = up_to(model, cache, layer, mlp_input)
    if not model.config.layer_norm:
        return stack
    centred = stack.values - stack.values.mean(-1, keepdim=True)
    return replace(stack, values=centred / frozen_scale(cache, layer, mlp_input, stack.positions))


def renormalise_stack(model: GPT2, stack: ResidualStack) -> ResidualStack:
    """Each state by itself through the final layer norm, gain and bias included, as if the model ended there.

    What a logit lens unembeds. Of parts of a stream it has no meaning: they do not sum to anything afterwards. Compare
    `apply_ln_to_stack`.
    """
    return replace(stack, values=model.ln_final(stack.values))


# What they are made of; shared with logit_attribution -----------------------------------------------------------------


def up_to(model: GPT2, cache: ActivationCache, layer: int | None, mlp_input: bool = False) -> int:
    """`layer` as a number from 0 to n_layers. Raises AnalysisError for another, and for a cache of another model."""
    n_layers = model.config.n_layers
    if cache.n_layers != n_layers:
        raise AnalysisError(f"the cache is of a model with {cache.n_layers} layers, this one has {n_layers}")
    layer = n_layers if layer is None else layer
    if not 0 <= layer <= n_layers:
        raise AnalysisError(f"layer={layer} must be 0 to {n_layers}, or None for the stream that is unembedded")
    if mlp_input and (layer == n_layers or model.config.attn_only):
        raise AnalysisError(f"mlp_input=True with layer={layer}, where no MLP reads the stream")
    return layer


def read(
    cache: ActivationCache, name: str, layer: int | None, positions: Index | None, scope: str | None = None
) -> Float[Tensor, "batch pos *rest"]:
    """An activation at some positions. Raises HookNameError if it was not recorded, AnalysisError if not (batch, pos, ...)."""
    value = cache[name] if layer is None else cache[name, layer, scope]
    n_axes = BATCH_POS_D_MODEL + (name in ("q", "k", "v", "z", "result"))
    if value.ndim != n_axes:
        raise AnalysisError(
            f"{name!r} was kept with shape {tuple(value.shape)}; expected {n_axes} axes, (batch, pos, ...): "
            "let keep= leave axes where they are, as a[:, -1:] does"
        )
    return pick(value, positions, 1)


def pick(value: Tensor, index: Index | None, dim: int) -> Tensor:
    """Some entries along an axis, which stays. Raises AnalysisError for entries that are not there."""
    if index is None:
        return value
    if isinstance(index, slice):
        return value[(slice(None),) * (dim % value.ndim) + (index,)]
    numbers = [index] if isinstance(index, int) else list(index)
    size = value.shape[dim]
    if wrong := [number for number in numbers if not -size <= number < size]:
        raise AnalysisError(f"{wrong[0]} is not among the {size} positions or neurons that there are")
    return value.index_select(dim, torch.tensor([number % size for number in numbers], device=value.device))


def stream_before(cache: ActivationCache, layer: int, positions: Index | None) -> Float[Tensor, "batch pos d_model"]:
    """The stream that `layer` reads, from whichever of its names was recorded."""
    if not cache.n_layers:
        return read(cache, "embed", None, positions) + read(cache, "pos_embed", None, positions)
    names = [("resid_pre", layer)] * (layer < cache.n_layers) + [("resid_post", layer - 1)] * (layer > 0)
    return read(cache, *next((name for name in names if name in cache), names[0]), positions)


def frozen_scale(cache: ActivationCache, layer: int, mlp_input: bool, positions: Index | None) -> Float[Tensor, "batch pos 1"]:
    """What the layer norm before `layer` divided by (at n_layers: the final one)."""
    if layer == cache.n_layers:
        return read(cache, "scale", None, positions)
    return read(cache, "scale", layer, positions, "ln2" if mlp_input else "ln1")


def layer_parts(model: GPT2, layer: int, mode: str, mlp_input: bool) -> list[tuple[str, int | None]]:
    """Names of embeddings and of what layers before `layer` add, in the order of the pass."""
    if mode not in ("all", "attn", "mlp"):
        raise AnalysisError(f"mode={mode!r} is not one of 'all', 'attn', 'mlp'")
    attn = [] if mode == "mlp" else ["attn_out"]
    mlp = [] if mode == "attn" or model.config.attn_only else ["mlp_out"]
    parts = [(name, at) for at in range(layer) for name in (*attn, *mlp)]
    return [("embed", None), ("pos_embed", None), *parts, *((name, layer) for name in attn if mlp_input)]


def part_label(name: tuple[str, int | None]) -> str:
    return name[0] if name[1] is None else f"{name[1]}_{name[0]}"


def head_labels(model: GPT2, layer: int) -> tuple[str, ...]:
    return tuple(head_label(at, head) for at in range(layer) for head in range(model.config.n_heads))


def neuron_labels(model: GPT2, layer: int, neurons: Index | None = None) -> tuple[str, ...]:
    if model.config.attn_only and layer:
        raise AnalysisError("an attention-only model has no neurons")
    chosen = pick(torch.arange(model.config.d_mlp), neurons, 0).tolist()
    return tuple(f"L{at}N{neuron}" for at in range(layer) for neuron in chosen)


def head_results(
    model: GPT2, cache: ActivationCache, layer: int, positions: Index | None
) -> Float[Tensor, "head batch pos d_model"]:
    """What each head of a layer adds to the stream, as recorded or from `z`."""
    if ("result", layer) in cache:
        return read(cache, "result", layer, positions).permute(2, 0, 1, 3)
    z = read(cache, "z", layer, positions)
    return torch.einsum("bphe,dhe->hbpd", z, W_O_of_layer(model, layer, z))


def W_O_of_layer(model: GPT2, layer: int, like: Tensor) -> Float[Tensor, "d_model head d_head"]:
    """As the model stores it: a view where `like` has the model's device and dtype."""
    return model.blocks[layer].attn.proj.weight.unflatten(1, (model.config.n_heads, model.config.d_head)).to(like)


def accumulated_bias(model: GPT2, attn_layers: int, mlp_layers: int) -> Float[Tensor, "d_model"]:
    """The sum of the b_O of the first attention layers and of the b_out of the first MLPs."""
    return model.b_O[:attn_layers].sum(0) + (model.b_out[:mlp_layers].sum(0) if mlp_layers else 0)


def W_out_of_layer(model: GPT2, layer: int, like: Tensor) -> Float[Tensor, "neuron d_model"]:
    """A view where `like` has the model's device and dtype."""
    return model.blocks[layer].mlp.proj.weight.T.to(like)


def _heads(model: GPT2, cache: ActivationCache, layer: int, positions: Index | None) -> Iterator[Tensor]:
    return (head_results(model, cache, at, positions) for at in range(layer))


def _neurons(model: GPT2, cache: ActivationCache, layer: int, neurons: Index | None, positions: Index | None) -> Iterator[Tensor]:
    return (get_neuron_results(model, cache, at, neurons, positions).permute(2, 0, 1, 3) for at in range(layer))


def _and_remainder(parts: Iterable[Tensor], stream: Tensor) -> Iterator[Tensor]:
    for part in parts:
        stream = stream - part.sum(0)
        yield part
    yield stream[None]


def _stacked(cache: ActivationCache, parts: Iterable[Tensor], labels: tuple[str, ...], positions: Index | None) -> ResidualStack:
    """The parts as one stack, filled layer by layer: two copies of what may be large never exist."""
    if not labels:  # no head or neuron stands before layer 0
        stream = stream_before(cache, 0, positions)
        return ResidualStack(stream.new_empty(0, *stream.shape), (), positions)
    values, filled = None, 0
    for part in parts:
        values = part.new_empty(len(labels), *part.shape[1:]) if values is None else values
        values[filled : filled + len(part)] = part
        filled += len(part)
    return ResidualStack(values, labels, positions)


def _some(labels: tuple[str, ...]) -> str:
    return ", ".join(labels) if len(labels) <= 12 else f"{', '.join(labels[:6])}, ..., {', '.join(labels[-3:])}"
