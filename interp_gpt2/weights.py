"""A model's weights under their names in the literature, with one axis for layers and one for heads.

Row vectors multiply from the left, as in TransformerLens: `q = normed @ W_Q[layer, head] + b_Q[layer, head]`. W_E, W_pos
and W_U are views of the model's own tensors, so that changing them in place changes the model. Everything else is a
stacked copy: gradients flow through it to the model, changes do not. Biases a model does not have are zeros. Each function
is also a property of the model, `model.W_Q`.

Raises ConfigError when the MLP's weights are asked of an attention-only model.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_gpt2.errors import ConfigError
from interp_gpt2.factored import FactoredMatrix
from interp_gpt2.model import GPT2, Block


def W_E(model: GPT2) -> Float[Tensor, "d_vocab d_model"]:
    """Token embedding. A view."""
    return model.wte.weight


def W_pos(model: GPT2) -> Float[Tensor, "n_ctx d_model"]:
    """Position embedding. A view."""
    return model.wpe.weight


def W_U(model: GPT2) -> Float[Tensor, "d_model d_vocab"]:
    """Unembedding, `logits = normalised stream @ W_U`. A view; of W_E itself where the two are tied."""
    return (model.wte if model.config.tied else model.lm_head).weight.T


def b_U(model: GPT2) -> Float[Tensor, "d_vocab"]:
    """Bias of the unembedding: zeros, except in a model whose last layer norm is folded. A view where there is one."""
    return model.W_U.new_zeros(model.config.d_vocab) if model.config.tied else bias_of(model.lm_head)


def W_Q(model: GPT2) -> Float[Tensor, "layer head d_model d_head"]:
    """Queries from the normalised stream. A stacked copy."""
    return _stack(model, lambda block: _qkv_weights(block)[0])


def W_K(model: GPT2) -> Float[Tensor, "layer head d_model d_head"]:
    """Keys from the normalised stream. A stacked copy."""
    return _stack(model, lambda block: _qkv_weights(block)[1])


def W_V(model: GPT2) -> Float[Tensor, "layer head d_model d_head"]:
    """Values from the normalised stream. A stacked copy."""
    return _stack(model, lambda block: _qkv_weights(block)[2])


def W_O(model: GPT2) -> Float[Tensor, "layer head d_head d_model"]:
    """From a head's z to what it adds to the stream, `result = z @ W_O`. A stacked copy."""
    return _stack(model, lambda block: block.attn.proj.weight.T.unflatten(0, (model.config.n_heads, model.config.d_head)))


def b_Q(model: GPT2) -> Float[Tensor, "layer head d_head"]:
    """Bias of the queries. A stacked copy."""
    return _stack(model, lambda block: _qkv_biases(block)[0])


def b_K(model: GPT2) -> Float[Tensor, "layer head d_head"]:
    """Bias of the keys, which changes no pattern: softmax ignores what all keys share. A stacked copy."""
    return _stack(model, lambda block: _qkv_biases(block)[1])


def b_V(model: GPT2) -> Float[Tensor, "layer head d_head"]:
    """Bias of the values. A stacked copy."""
    return _stack(model, lambda block: _qkv_biases(block)[2])


def b_O(model: GPT2) -> Float[Tensor, "layer d_model"]:
    """Bias of the attention layer's output, shared by its heads. A stacked copy."""
    return _stack(model, lambda block: bias_of(block.attn.proj))


def QK(model: GPT2) -> FactoredMatrix:
    """What a head's query looks for, (layer, head, d_model, d_model): W_Q @ W_K.T, of rank d_head.

    `normed[query] @ QK[layer, head] @ normed[key]` is the score, but for the biases and the division by sqrt(d_head).
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
    """
    return FactoredMatrix(W_Q(model), W_K(model).mT)


def OV(model: GPT2) -> FactoredMatrix:
    """What a head writes when it attends to a token, (layer, head, d_model, d_model): W_V @ W_O, of rank d_head.

    `normed[key] @ OV[layer, head]` times the pattern is what the head adds to the stream, but for the biases.
    """
    return FactoredMatrix(W_V(model), W_O(model))


def full_QK(model: GPT2, layer: int, head: int) -> FactoredMatrix:
    """Which token would attend to which, (d_vocab, d_vocab): W_E @ QK @ W_E.T of one head, query tokens first.

    Of the embeddings alone: positions, biases, layer norm and earlier layers are left out.
    """
    return W_E(model) @ QK(model)[layer, head] @ W_E(model).T


def full_OV(model: GPT2, layer: int, head: int) -> FactoredMatrix:
    """What attending to a token does to each logit, (d_vocab, d_vocab): W_E @ OV @ W_U of one head, read tokens first.

    Of the embeddings alone: positions, biases, layer norms and other layers are left out.
    """
    return W_E(model) @ OV(model)[layer, head] @ W_U(model)


def W_in(model: GPT2) -> Float[Tensor, "layer d_model d_mlp"]:
    """From the normalised stream to the neurons; column n is what neuron n reads. A stacked copy."""
    return _stack(_with_mlp(model, "W_in"), lambda block: block.mlp.fc.weight.T)


def b_in(model: GPT2) -> Float[Tensor, "layer d_mlp"]:
    """Bias of the neurons, before the activation function. A stacked copy."""
    return _stack(_with_mlp(model, "b_in"), lambda block: bias_of(block.mlp.fc))


def W_out(model: GPT2) -> Float[Tensor, "layer d_mlp d_model"]:
    """From the neurons to the stream; row n is what neuron n writes. A stacked copy."""
    return _stack(_with_mlp(model, "W_out"), lambda block: block.mlp.proj.weight.T)


def b_out(model: GPT2) -> Float[Tensor, "layer d_model"]:
    """Bias of the MLP's output. A stacked copy."""
    return _stack(_with_mlp(model, "b_out"), lambda block: bias_of(block.mlp.proj))


def _stack(model: GPT2, of_block: Callable[[Block], Tensor]) -> Tensor:
    blocks: Iterable[Block] = model.blocks
    if model.config.n_layers:
        return torch.stack([of_block(block) for block in blocks])
    with torch.device("meta"):  # a model without blocks has weights without layers, of the shape that one block's would have
        shape = of_block(Block(model.config, 0)).shape
    return model.wte.weight.new_zeros(0, *shape)


def _qkv_weights(block: Block) -> Float[Tensor, "3 head d_model d_head"]:
    return block.attn.qkv.weight.unflatten(0, (3, block.attn.n_heads, block.attn.d_head)).transpose(-1, -2)


def _qkv_biases(block: Block) -> Float[Tensor, "3 head d_head"]:
    return bias_of(block.attn.qkv).unflatten(0, (3, block.attn.n_heads, block.attn.d_head))


def bias_of(linear: nn.Linear) -> Float[Tensor, "out"]:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


def _with_mlp(model: GPT2, name: str) -> GPT2:
    if model.config.attn_only:
        raise ConfigError(f"an attention-only model has no {name}: its blocks have no MLP (config.attn_only=True)")
    return model
