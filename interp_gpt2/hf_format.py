"""Hugging Face's GPT-2 names, shapes and config beside ours, dictionary to dictionary. Knows no model and reads no file.

Both ways are total: a tensor that is missing, unexpected or of another shape is refused by name, and so is a config field
that changes the arithmetic in a way `GPT2Config` cannot say. transformers itself fills a missing tensor with random
numbers and prints a line; a model that is wrong in one matrix is worse than no model.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError, ConfigError, ConversionError

MODEL_TYPE = "gpt2"
NATIVE_MODEL_TYPE = "interp_gpt2"  # unknown to transformers, which therefore refuses the directory
OURS = "interp_gpt2"  # the key of config.json that holds our own config in full

_HF_NAMES = {  # transformers reads either name of a size
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
_HF_DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
_ACT_FNS = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}

# Fields with one value that we compute; any other value is another model.
_FIXED = {
    "scale_attn_weights": True,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "chunk_size_feed_forward": 0,
}

# Fields that change no logit: what a decoder, a trainer or another head on the same body reads.
# fmt: off
_HARMLESS = frozenset({
    # Scales the keys before the product and multiplies in float32: the same function, rounded in another order. The
    # Stanford CRFM models set it; transformers itself ignores it under its default attention.
    "reorder_and_upcast_attn",
    "architectures", "attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label",
    "initializer_range", "is_decoder", "label2id", "length_penalty", "max_length", "min_length", "model_type",
    "n_ctx", "n_special", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_past", "output_scores",
    "pad_token_id", "predict_special_tokens", "prefix", "problem_type", "remove_invalid_values",
    "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class",
    "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p", "use_bfloat16",
    "use_cache",
})
# fmt: on

_PREFIX = "transformer."
_HEAD = "lm_head.weight"
_BUFFER = re.compile(r"transformer\.h\.\d+\.attn\.(masked_)?bias")  # causal masks, saved by older versions of transformers


@dataclass(frozen=True)
class Parameter:
    """One tensor under both names. `shape` is ours; Hugging Face stores the four matrices of a block transposed."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    transposed: bool = False
    is_bias: bool = False

    @property
    def their_shape(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transposed else self.shape


def parameters(config: GPT2Config) -> Iterator[Parameter]:
    """Every parameter of a GPT-2 with biases and without (`is_bias`), in the order of the forward pass."""
    d, heads = config.d_model, config.n_heads * config.d_head
    yield Parameter("wte.weight", "transformer.wte.weight", (config.d_vocab, d))
    yield Parameter("wpe.weight", "transformer.wpe.weight", (config.n_ctx, d))
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        if config.layer_norm:
            yield from _weight_and_bias(f"{ours}.ln1", f"{theirs}.ln_1", (d,))
        yield from _weight_and_bias(f"{ours}.attn.qkv", f"{theirs}.attn.c_attn", (3 * heads, d))
        yield from _weight_and_bias(f"{ours}.attn.proj", f"{theirs}.attn.c_proj", (d, heads))
        if config.attn_only:
            continue
        if config.layer_norm:
            yield from _weight_and_bias(f"{ours}.ln2", f"{theirs}.ln_2", (d,))
        yield from _weight_and_bias(f"{ours}.mlp.fc", f"{theirs}.mlp.c_fc", (config.d_mlp, d))
        yield from _weight_and_bias(f"{ours}.mlp.proj", f"{theirs}.mlp.c_proj", (d, config.d_mlp))
    if config.layer_norm:
        yield from _weight_and_bias("ln_final", "transformer.ln_f", (d,))
    if not config.tied:
        yield Parameter("lm_head.weight", _HEAD, (config.d_vocab, d))
    if config.unembed_bias:  # not among the biases that `bias` switches
        yield Parameter("lm_head.bias", "lm_head.bias", (config.d_vocab,))


def _weight_and_bias(ours: str, theirs: str, shape: tuple[int, ...]) -> Iterator[Parameter]:
    # OpenAI stores the matrices of a block as (in, out), transformers' Conv1D; nn.Linear wants (out, in).
    yield Parameter(f"{ours}.weight", f"{theirs}.weight", shape, transposed=len(shape) == 2)
    yield Parameter(f"{ours}.bias", f"{theirs}.bias", shape[:1], is_bias=True)


def our_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in our state dict, in order."""
    return {p.ours: p.shape for p in parameters(config) if config.bias or not p.is_bias}


def unrepresentable(config: GPT2Config) -> str | None:
    """Why Hugging Face's GPT-2 cannot compute this model, or None when it can.

    A model without biases is one whose biases are zero, and an untied unembedding is `tie_word_embeddings: false`; both
    can be said. (Measured with transformers 5.23, which also loads and runs n_layers=0.)
    """
    if config.attn_only:
        return "attn_only=True: its blocks always have an MLP"
    if not config.layer_norm:
        return "layer_norm=False: its blocks always normalise"
    if config.n_heads * config.d_head != config.d_model:
        return f"n_heads={config.n_heads} times d_head={config.d_head} is not d_model={config.d_model}, as it always has it"
    if config.unembed_bias:
        return "unembed_bias=True: its unembedding has no bias"
    return None


# ---------------------------------------------------------------------------------------------------------- config


def config_to_hf(config: GPT2Config, eos_token_id: int | None = None) -> dict[str, Any]:
    """The fields of a Hugging Face `config.json` for this model.

    `eos_token_id` also stands as `bos_token_id`, as in GPT-2; both are null unless the tokenizer has the token (the default
    of transformers is 50256, which a small vocabulary does not have). Raises ConversionError, naming the field, for a
    config that Hugging Face's GPT-2 cannot compute.
    """
    reason = unrepresentable(config)
    if reason:
        raise ConversionError(f"Hugging Face's GPT-2 cannot represent {reason}")
    if eos_token_id is not None and not 0 <= eos_token_id < config.d_vocab:
        raise ConversionError(f"eos_token_id={eos_token_id} is not a token of this model: d_vocab={config.d_vocab}")
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.d_vocab,
        "n_positions": config.n_ctx,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_mlp,
        "activation_function": config.act_fn,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.eps,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "tie_word_embeddings": config.tied,
        "bos_token_id": eos_token_id,
        "eos_token_id": eos_token_id,
    }


def config_from_hf(values: Mapping[str, Any]) -> GPT2Config:
    """Our config for a Hugging Face one; where the two share a default, an absent field has it.

    A config.json that we wrote also holds our own config (`"interp_gpt2"`), which is then the answer, checked against the
    fields beside it. Raises ConversionError, naming the field and its value, for anything that would change the arithmetic
    and that we do not compute: other activations, cross-attention, unscaled attention, three different dropouts,
    custom code, quantised weights, and any field that is neither known nor off.
    """
    model_type = values.get("model_type", MODEL_TYPE)
    if model_type == NATIVE_MODEL_TYPE:
        return _our_config(values)
    if model_type != MODEL_TYPE:
        raise ConversionError(f"model_type={model_type!r} is not a GPT-2; only model_type='gpt2' is read")
    known = {_HF_NAMES.get(name, name): value for name, value in values.items()}
    for name, value in values.items():
        _check_field(name, value)
    read = {name: known.get(name, default) for name, default in _HF_DEFAULTS.items()}
    config = _config_of_fields(read)
    if OURS not in values:
        return config
    ours = _our_config(values)
    stated, meant = config_to_hf(config), config_to_hf(ours)
    for name in _HF_DEFAULTS:
        if stated[name] != meant[name]:
            raise ConversionError(
                f"config.json contradicts itself: {name}={stated[name]!r}, but {meant[name]!r} by its {OURS!r} entry"
            )
    return ours


def _check_field(name: str, value: Any) -> None:
    name = _HF_NAMES.get(name, name)
    if name in _FIXED:
        if value != _FIXED[name]:
            raise ConversionError(f"{name}={value!r} changes what the model computes; only {_FIXED[name]!r} is supported")
    elif name in _HF_DEFAULTS or name in _HARMLESS or name == OURS or name.startswith("_"):
        return
    elif value not in (None, False, {}, []):  # an unknown switch that is off changes nothing
        nearest = get_close_matches(name, [*_HF_DEFAULTS, *_FIXED], n=1)
        hint = f" (did it mean {nearest[0]}?)" if nearest else ""
        raise ConversionError(f"{name}={value!r} is not a field of a GPT-2 that we know{hint}, and may change what it computes")


def _config_of_fields(read: Mapping[str, Any]) -> GPT2Config:
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
        if type(read[name]) is not int and (name != "n_inner" or read[name] is not None):
            raise ConversionError(f"{name}={read[name]!r} must be a whole number")
    act_fn = read["activation_function"]
    if not isinstance(act_fn, str) or act_fn not in _ACT_FNS:
        raise ConversionError(f"activation_function={act_fn!r} is not one of {', '.join(_ACT_FNS)}")
    for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop", "layer_norm_epsilon"):
        if type(read[name]) not in (int, float):
            raise ConversionError(f"{name}={read[name]!r} must be a number")
    dropouts = [read["embd_pdrop"], read["attn_pdrop"], read["resid_pdrop"]]
    if len(set(dropouts)) != 1:
        raise ConversionError(f"embd_pdrop, attn_pdrop, resid_pdrop = {dropouts} differ; there is one dropout for all three")
    for name in ("scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
        if type(read[name]) is not bool:
            raise ConversionError(f"{name}={read[name]!r} must be true or false")
    try:
        return GPT2Config(
            n_layers=read["n_layer"],
            n_heads=read["n_head"],
            d_model=read["n_embd"],
            d_mlp=read["n_inner"],
            d_vocab=read["vocab_size"],
            n_ctx=read["n_positions"],
            act_fn=_ACT_FNS[act_fn],
            eps=float(read["layer_norm_epsilon"]),
            tied=read["tie_word_embeddings"],
            dropout=float(dropouts[0]),
            scale_attn_by_inverse_layer_idx=read["scale_attn_by_inverse_layer_idx"],
        )
    except ConfigError as error:
        raise ConversionError(f"the config describes no GPT-2: {error}") from error


def _our_config(values: Mapping[str, Any]) -> GPT2Config:
    ours = values.get(OURS)
    if not isinstance(ours, Mapping):
        raise ConversionError(f"config.json lacks its {OURS!r} entry, which holds the model's config")
    for field in fields(GPT2Config):
        kind = int if field.default is None else type(field.default)
        value = ours.get(field.name, field.default)
        if value is not field.default and type(value) is not kind and not (kind is float and type(value) is int):
            raise ConversionError(f"config.json: {OURS}.{field.name}={value!r} is not of type {kind.__name__}")
    try:
        return GPT2Config.from_dict(dict(ours))
    except ConfigError as error:
        raise ConversionError(f"config.json: the {OURS!r} entry describes no model: {error}") from error


# ----------------------------------------------------------------------------------------------------------- state


def state_to_hf(state: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """Hugging Face's state dict for ours, as views of it; the tied head is left out, absent biases are zeros.

    Raises ConversionError for a config Hugging Face cannot represent, CheckpointError for a state that does not fit it.
    """
    reason = unrepresentable(config)
    if reason:
        raise ConversionError(f"Hugging Face's GPT-2 cannot represent {reason}")
    check_our_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, config)
    dtype, device = state["wte.weight"].dtype, state["wte.weight"].device
    theirs = {}
    for p in parameters(config):
        if p.ours in state:
            tensor = state[p.ours].detach()
            theirs[p.theirs] = tensor.T if p.transposed else tensor
        else:
            theirs[p.theirs] = torch.zeros(p.their_shape, dtype=dtype, device=device)
    return theirs


def state_from_hf(tensors: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """Our state dict for Hugging Face's, with or without the `transformer.` prefix.

    Mask buffers of older versions are dropped, `lm_head.weight` beside a tied embedding must equal it, and with
    `bias=False` every bias must be zero. Raises CheckpointError naming the tensor that is missing, unexpected, of another
    shape, or not what it must be.
    """
    check_hf_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config)
    tensors = {_with_prefix(name): tensor for name, tensor in tensors.items()}
    if config.tied and _HEAD in tensors and not _same(tensors[_HEAD], tensors["transformer.wte.weight"]):
        raise CheckpointError(
            f"{_HEAD} differs from transformer.wte.weight, but the config says they are tied; "
            "set tie_word_embeddings to false if the unembedding is its own"
        )
    ours = {}
    for p in parameters(config):
        tensor = tensors[p.theirs]
        if not tensor.is_floating_point():
            raise CheckpointError(f"{p.theirs} holds {tensor.dtype}; weights are floating-point")
        if config.bias or not p.is_bias:
            ours[p.ours] = tensor.T.contiguous() if p.transposed else tensor
        elif tensor.count_nonzero():
            raise CheckpointError(f"{p.theirs} is not zero, but the config says bias=false")
    return ours


def check_hf_shapes(shapes: Mapping[str, tuple[int, ...]], config: GPT2Config) -> None:
    """Refuse, by name, tensors that are not those Hugging Face's GPT-2 with this config has. Needs no values."""
    _check_layers(shapes, config)
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        full = _with_prefix(name)
        if full in found:
            raise CheckpointError(f"tensor {name} is there twice, with and without the prefix {_PREFIX!r}")
        if not _BUFFER.fullmatch(full):
            found[full] = shape
    expected = {p.theirs: p.their_shape for p in parameters(config)}
    if config.tied and _HEAD in found:
        expected[_HEAD] = (config.d_vocab, config.d_model)
    check_shapes(found, expected)


def check_our_shapes(shapes: Mapping[str, tuple[int, ...]], config: GPT2Config) -> None:
    """The same for tensors under our names."""
    _check_layers(shapes, config)
    check_shapes(shapes, our_shapes(config))


def _check_layers(shapes: Mapping[str, tuple[int, ...]], config: GPT2Config) -> None:
    if config.n_layers > len(shapes):  # before every tensor of a trillion layers is listed
        raise CheckpointError(f"{len(shapes)} tensors cannot be those of a model with n_layers={config.n_layers}")


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError naming the first tensor that is missing, unexpected or of another shape."""
    missing = [name for name in expected if name not in found]
    if missing:
        raise CheckpointError(f"tensor {missing[0]} is missing{_more(missing)}; the config implies {expected[missing[0]]}")
    unexpected = [name for name in found if name not in expected]
    if unexpected:
        raise CheckpointError(f"tensor {unexpected[0]} has no place in this model{_more(unexpected)}")
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            raise CheckpointError(f"tensor {name} has shape {tuple(found[name])}; the config implies {tuple(shape)}")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _with_prefix(name: str) -> str:
    return name if name == _HEAD or name.startswith(_PREFIX) else _PREFIX + name


def _same(a: Tensor, b: Tensor) -> bool:
    # Bit for bit, since NaN is not equal to itself: the copy of a diverged embedding is still its copy.
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
