"""The same function in weights that are easier to read: each returns a new model with the same log-probabilities.

What is folded is what a reader of weights would have to carry along: the gains and biases of layer norms, the mean that
layer norms take away, the constant that softmax ignores, the value biases that every position passes on. What is
refactored is the choice of coordinates inside a head. The old model is never changed; the new one has its dtype, device
and mode, shares no memory with it, and can be folded again. Layer norms come first: folding them makes new value biases
and a new mean of the unembedding. TransformerLens's `from_pretrained` folds all of it (`process_weights`), with the same
weights as a result.

Computed in float64, and rounded once. Exact in eval mode, or without dropout.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConfigError
from interp_gpt2.factored import FactoredMatrix
from interp_gpt2.model import GPT2
from interp_gpt2.passes import refuse_edited


@torch.no_grad()
def fold_layer_norm(model: GPT2) -> GPT2:
    """Gains and biases of layer norms moved into what reads from them, which then reads `normalized` itself.

    W' = gain * W with the mean over d_model taken out (there is none in what it reads), b' = b + bias @ W. The bias of the
    last layer norm becomes an unembedding bias: the result is untied, with `unembed_bias=True` if the model has biases.
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", on which scores of weights rest.

    Raises ConfigError for a model without layer norms.
    """
    config, state = _untied(_with_layer_norm(model, "folded"))
    config = replace(config, unembed_bias=config.bias or config.unembed_bias)
    readers = {"ln_final": "lm_head"}
    for layer in range(config.n_layers):
        readers[f"blocks.{layer}.ln1"] = f"blocks.{layer}.attn.qkv"
        if not config.attn_only:
            readers[f"blocks.{layer}.ln2"] = f"blocks.{layer}.mlp.fc"
    for norm, reader in readers.items():
        W = state[f"{reader}.weight"].double()  # (out, d_model)
        if config.bias:
            b = state.get(f"{reader}.bias", torch.zeros(len(W))).double()
            state[f"{reader}.bias"] = b + W @ state[f"{norm}.bias"].double()
            state[f"{norm}.bias"] = torch.zeros(config.d_model)
        W = W * state[f"{norm}.weight"].double()
        state[f"{reader}.weight"] = W - W.mean(1, keepdim=True)
        state[f"{norm}.weight"] = torch.ones(config.d_model)
    return _model(model, config, state)


@torch.no_grad()
def center_writing_weights(model: GPT2) -> GPT2:
    """The mean over d_model taken out of everything that writes to the stream, which layer norms take out of it anyway.

    Of W_E, W_pos, W_O, b_O, W_out and b_out. The unembedding stays what it was, so the result is untied: its streams are
    the old ones less their mean. Raises ConfigError for a model without layer norms, which would see the difference.
    """
    config, state = _untied(_with_layer_norm(model, "centred"))
    for name, weight in state.items():
        if name in ("wte.weight", "wpe.weight"):
            state[name] = weight.double() - weight.double().mean(1, keepdim=True)  # (n, d_model)
        elif name.endswith(("proj.weight", "proj.bias")):
            state[name] = weight.double() - weight.double().mean(0)  # (d_model, n) or (d_model,)
    return _model(model, config, state)


@torch.no_grad()
def center_unembed(model: GPT2) -> GPT2:
    """The mean over the vocabulary taken out of W_U and b_U: every position's logits have mean 0, and softmax is the same.

    A part of the stream then never seems to speak for a token by raising all of them. The result is untied.
    """
    config, state = _untied(model)
    for name in ("lm_head.weight", "lm_head.bias"):
        if name in state:
            state[name] = state[name].double() - state[name].double().mean(0)  # over the vocabulary
    return _model(model, config, state)


@torch.no_grad()
def fold_value_biases(model: GPT2) -> GPT2:
    """b_V moved into b_O: b_O' = b_O + sum over heads of b_V @ W_O, and b_V' = 0.

    Rows of a pattern sum to 1, so a head adds b_V @ W_O at every position whatever it attends to; what remains of its
    result depends on its attention. Under edits that break the sum (a pattern set to zero) the two models differ.
    """
    state = _state(model)
    if model.config.bias:
        n_values = model.config.n_heads * model.config.d_head
        for layer in range(model.config.n_layers):
            attn = f"blocks.{layer}.attn"
            b_V = state[f"{attn}.qkv.bias"][-n_values:].double()
            state[f"{attn}.proj.bias"] = state[f"{attn}.proj.bias"].double() + state[f"{attn}.proj.weight"].double() @ b_V
            state[f"{attn}.qkv.bias"] = torch.cat([state[f"{attn}.qkv.bias"][:-n_values], torch.zeros(n_values)])
    return _model(model, model.config, state)


@torch.no_grad()
def refactor_factored_attn_matrices(model: GPT2) -> GPT2:
    """Heads in the coordinates of their singular vectors: the same QK and OV circuits, from factors that mean something.

    With U S V^T the singular value decomposition of [W_Q; b_Q] @ [W_K; b_K]^T: [W_Q; b_Q]' = U sqrt(S), [W_K; b_K]' =
    V sqrt(S). Of W_V @ W_O: W_V' = U S, W_O' = V^T, so that z has the norm of the head's result. Columns are orthogonal,
    the largest singular value first; their signs are arbitrary. b_V is folded into b_O as in `fold_value_biases`.
    TransformerLens's option of this name; it comes last, since folding layer norms changes what is decomposed. Activations
    `q k v z` become others; scores, patterns and results (less b_V's part) stay.
    """
    config, state = model.config, _state(fold_value_biases(model))
    heads = (config.n_heads, config.d_head)
    for layer in range(config.n_layers):
        attn = f"blocks.{layer}.attn"
        qkv = state[f"{attn}.qkv.weight"].double()  # (3 head d_head, d_model)
        if config.bias:
            qkv = torch.cat([qkv, state[f"{attn}.qkv.bias"].double()[:, None]], 1)
        q, k, v = qkv.unflatten(0, (3, *heads)).mT  # each (head, d_model [+ 1], d_head)
        W_V = v[:, : config.d_model]
        W_O = state[f"{attn}.proj.weight"].double().T.unflatten(0, heads)  # (head, d_head, d_model)
        even, (U, S, V) = FactoredMatrix(q, k.mT).make_even(), FactoredMatrix(W_V, W_O).svd()
        q, k, v, o = (_columns(part, config.d_head) for part in (even.A, even.B.mT, U * S[:, None], V))
        qkv = torch.stack([q[:, : config.d_model], k[:, : config.d_model], v]).mT.flatten(0, 2)  # (3 head d_head, d_model)
        state[f"{attn}.qkv.weight"] = qkv
        state[f"{attn}.proj.weight"] = o.mT.flatten(0, 1).T
        if config.bias:
            biases = torch.stack([q[:, -1], k[:, -1], torch.zeros_like(q[:, -1])])  # (3, head, d_head)
            state[f"{attn}.qkv.bias"] = biases.flatten()
    return _model(model, config, state)


def process_weights(model: GPT2) -> GPT2:
    """All four, as TransformerLens's `from_pretrained` does by default; without layer norms, the two that are left."""
    if model.config.layer_norm:
        model = center_writing_weights(fold_layer_norm(model))
    return fold_value_biases(center_unembed(model))


def _with_layer_norm(model: GPT2, what: str) -> GPT2:
    if not model.config.layer_norm:
        raise ConfigError(f"a model without layer norms (layer_norm=False) cannot be {what}: they are what makes the two equal")
    return model


def _columns(part: Tensor, n: int) -> Tensor:
    """Columns of zeros behind those there are, up to n: a circuit's rank is at most d_model, which d_head may exceed."""
    return torch.cat([part, part.new_zeros(*part.shape[:-1], n - part.shape[-1])], -1)


def _state(model: GPT2) -> dict[str, Tensor]:
    """The weights, in the CPU's memory, where float64 exists; to be replaced one by one, never changed in place."""
    refuse_edited(model, "folded")
    return {name: weight.detach().cpu() for name, weight in model.state_dict().items()}


def _untied(model: GPT2) -> tuple[GPT2Config, dict[str, Tensor]]:
    state = _state(model)
    state.setdefault("lm_head.weight", state["wte.weight"])
    return replace(model.config, tied=False), state


def _model(old: GPT2, config: GPT2Config, state: Mapping[str, Tensor]) -> GPT2:
    new = GPT2(config, device="meta")
    own = {name: weight.to(device=old.device, dtype=old.wte.weight.dtype, copy=True) for name, weight in state.items()}
    new.load_state_dict(own, assign=True)
    return new.train(old.training)
