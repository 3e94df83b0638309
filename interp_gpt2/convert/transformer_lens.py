"""Whole models to and from TransformerLens, unprocessed: the same activation at every hook point, or a refusal by name.

Nothing is folded, centred or refactored, so the weights stay the model's own. What is shared by every TransformerLens is
the state dict in its property names (`hooked_state_dict`). `HookedTransformer` exists up to version 3.9; from version 3 on
there is `TransformerBridge`, which wraps a Hugging Face model. TransformerLens computes no dropout: in training mode a
model with dropout is another one there, in eval mode the same.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.huggingface import model_of_state, to_huggingface
from interp_gpt2.errors import ConversionError
from interp_gpt2.hf_format import check_shapes, unrepresentable
from interp_gpt2.model import GPT2
from interp_gpt2.passes import refuse_edited

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.model_bridge import TransformerBridge

_ATTN = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
_MLP = ("W_in", "b_in", "W_out", "b_out")
_BUFFERS = (".attn.mask", ".attn.IGNORE")  # stand beside the weights in TransformerLens's own state dicts

# gelu_fast and gelu_pytorch_tanh write GPT-2's tanh approximation in other ways.
_ACT_FNS = {"gelu_new": "gelu_new", "gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}
_ARCHITECTURES = (None, "custom", "GPT2LMHeadModel")
# fmt: off
_SHARED = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "eps", "attn_only",
           "scale_attn_by_inverse_layer_idx")  # same name, same meaning
_READ = {*_SHARED, "act_fn", "normalization_type", "attn_scale", "d_vocab_out", "original_architecture"}
_HARMLESS = {  # where a model came from, how it was drawn, which hook points are on, how it reads text
    "model_name", "from_checkpoint", "checkpoint_index", "checkpoint_label_type", "checkpoint_value", "trust_remote_code",
    "init_mode", "init_weights", "initializer_range", "seed", "device", "dtype", "n_params", "tie_word_embeddings",
    "use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in", "use_hook_tokens",
    "tokenizer_name", "tokenizer_prepends_bos", "default_prepend_bos",
}
# fmt: on


def hooked_state_dict(model: GPT2) -> dict[str, Tensor]:
    """The weights under TransformerLens's names and in its shapes; a copy.

    `embed.W_E`, `pos_embed.W_pos`, `blocks.{layer}.attn.W_Q` (head, d_model, d_head) and so on, `ln_final.w`,
    `unembed.W_U` (d_model, d_vocab). What a GPT-2 may lack and TransformerLens always has is zero: `unembed.b_U`, and
    every bias of a model without biases. Both `HookedTransformer.load_and_process_state_dict` (version 3) and
    `convert_tl_checkpoint` (version 4) read it. Raises EditError for a view with standing edits, which would be lost.
    """
    refuse_edited(model, "converted")
    stacked = {f"attn.{name}": getattr(model, name) for name in _ATTN}
    if not model.config.attn_only:
        stacked |= {f"mlp.{name}": getattr(model, name) for name in _MLP}
    state = {"embed.W_E": model.W_E, "pos_embed.W_pos": model.W_pos}
    for layer in range(model.config.n_layers):
        state |= {f"blocks.{layer}.{name}": weight[layer] for name, weight in stacked.items()}
    for name, norm in model.named_modules():
        if name.rpartition(".")[2] in ("ln1", "ln2", "ln_final") and model.config.layer_norm:
            state |= {f"{name}.w": norm.weight, f"{name}.b": torch.zeros_like(norm.weight) if norm.bias is None else norm.bias}
    state |= {"unembed.W_U": model.W_U, "unembed.b_U": model.b_U}
    return {name: weight.detach().clone(memory_format=torch.contiguous_format) for name, weight in state.items()}


def from_hooked_state_dict(state: Mapping[str, Tensor], config: GPT2Config) -> GPT2:
    """The model with these weights, named as `hooked_state_dict` names them: float32, eval mode, a copy.

    Raises CheckpointError, naming the tensor, for one that is missing, unexpected or of another shape, and ConversionError
    for one that `config` has no place for: an unembedding bias with `unembed_bias=False`, other biases with `bias=False`,
    an unembedding that is not the embedding with `tied=True`.
    """
    expected = hooked_state_dict(GPT2(config, device="meta"))
    state = {name: weight for name, weight in state.items() if not name.endswith(_BUFFERS)}
    check_shapes(
        {name: tuple(weight.shape) for name, weight in state.items()},
        {name: tuple(weight.shape) for name, weight in expected.items()},
    )
    _refuse_what_has_no_place(state, config)
    ours = {"wte.weight": state["embed.W_E"], "wpe.weight": state["pos_embed.W_pos"]}
    if not config.tied:
        ours["lm_head.weight"] = state["unembed.W_U"].T
    unembed_bias = {"lm_head.bias": state["unembed.b_U"]} if config.unembed_bias else {}
    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        q, k, v = (state[f"{block}.attn.W_{name}"].transpose(1, 2).flatten(0, 1) for name in "QKV")
        ours[f"{block}.attn.qkv.weight"] = torch.cat([q, k, v])
        ours[f"{block}.attn.qkv.bias"] = torch.cat([state[f"{block}.attn.b_{name}"].flatten() for name in "QKV"])
        ours[f"{block}.attn.proj.weight"] = state[f"{block}.attn.W_O"].flatten(0, 1).T
        ours[f"{block}.attn.proj.bias"] = state[f"{block}.attn.b_O"]
        for theirs, name in (("in", "fc"), ("out", "proj")) * (not config.attn_only):
            ours[f"{block}.mlp.{name}.weight"] = state[f"{block}.mlp.W_{theirs}"].T
            ours[f"{block}.mlp.{name}.bias"] = state[f"{block}.mlp.b_{theirs}"]
    for name in state:
        if name.endswith((".w", ".b")):  # the layer norms'
            ours[f"{name[:-2]}.{'weight' if name.endswith('w') else 'bias'}"] = state[name]
    kept = {name: weight.contiguous() for name, weight in ours.items() if config.bias or not name.endswith(".bias")}
    return model_of_state(config, kept | unembed_bias)


def _refuse_what_has_no_place(state: Mapping[str, Tensor], config: GPT2Config) -> None:
    if not config.unembed_bias and state["unembed.b_U"].count_nonzero():
        raise ConversionError(
            "unembed.b_U is not zero, but the config says unembed_bias=False; folding the layer norms makes such a bias: "
            "set unembed_bias=True and tied=False, or convert the model as it was before processing (fold_ln=False)"
        )
    for name, weight in state.items():
        is_bias = name.rpartition(".")[2].startswith("b") and name != "unembed.b_U"
        if not config.bias and is_bias and weight.count_nonzero():
            raise ConversionError(f"{name} is not zero, but the config says bias=False")
    if config.tied and not torch.equal(state["unembed.W_U"].T, state["embed.W_E"]):
        raise ConversionError("unembed.W_U is not embed.W_E transposed, but the config says tied=True; set tied=False")


# HookedTransformer: up to version 3.9 --------------------------------------------------------------------------------


def to_hooked_transformer(model: GPT2) -> "HookedTransformer":
    """A HookedTransformer with the same weights, dtype and device, unprocessed and in eval mode; it shares no memory.

    Every activation in its cache is ours by name and value. TransformerLens 3.9 is the last that has it: raises
    ConversionError on 4.x.
    """
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as error:
        raise ConversionError(
            f"transformer-lens {version('transformer-lens')} has no HookedTransformer, which 4.0 removed: "
            "pip install 'transformer-lens<4', or use to_transformer_bridge(model)"
        ) from error
    hooked = HookedTransformer(HookedTransformerConfig(**_hooked_fields(model)))
    hooked.load_state_dict({**dict(hooked.named_buffers()), **hooked_state_dict(model)})
    return hooked.eval()


def hooked_config(model: GPT2) -> dict[str, Any]:
    """What to pass to HookedTransformerConfig beside `hooked_state_dict`, ready for JSON; device and dtype are the loader's."""
    return {name: value for name, value in _hooked_fields(model).items() if name not in ("dtype", "device")}


def _hooked_fields(model: GPT2) -> dict[str, Any]:
    return {name: getattr(model.config, name) for name in _SHARED} | {
        "act_fn": model.config.act_fn,
        "normalization_type": "LN" if model.config.layer_norm else None,
        "dtype": model.W_E.dtype,
        "device": str(model.device),
        "init_weights": False,
        "default_prepend_bos": False,  # no token that the caller did not write
    }


def from_hooked_transformer(hooked: "HookedTransformer") -> GPT2:
    """Our model with the weights of a HookedTransformer, in float32, in eval mode, on its device; a copy.

    It is tied if its unembedding equals its embedding and has no bias. Folded layer norms ("LNPre", what TransformerLens's
    `from_pretrained` makes) become layer norms of gain 1 and bias 0, which compute the same. Raises ConversionError, naming
    the field, for what a GPT-2 cannot compute: rotary positions, RMS norms, gated MLPs, grouped heads, and any other field
    of its config that is not at its default and that we do not know to be harmless.
    """
    config, state = _config_from_hooked(hooked.cfg), hooked.state_dict()
    if hooked.cfg.normalization_type == "LNPre":
        state |= _unit_norms(config, state["embed.W_E"])
    unembed_bias = bool(state["unembed.b_U"].count_nonzero())
    tied = not unembed_bias and torch.equal(state["unembed.W_U"].T, state["embed.W_E"])
    return from_hooked_state_dict(state, replace(config, tied=tied, unembed_bias=unembed_bias))


def _unit_norms(config: GPT2Config, like: Tensor) -> dict[str, Tensor]:
    kinds = ("ln1",) if config.attn_only else ("ln1", "ln2")
    names = ["ln_final", *(f"blocks.{layer}.{kind}" for layer in range(config.n_layers) for kind in kinds)]
    gains = {f"{name}.w": like.new_ones(config.d_model) for name in names}
    return gains | {f"{name}.b": like.new_zeros(config.d_model) for name in names}


def _config_from_hooked(cfg: "HookedTransformerConfig") -> GPT2Config:
    known = _READ | _HARMLESS
    for field in fields(cfg):
        value = getattr(cfg, field.name)
        if field.name not in known and value != field.default:
            raise ConversionError(f"{field.name}={value!r} is not a GPT-2's; only {field.default!r} is converted")
    if cfg.normalization_type not in ("LN", "LNPre", None):
        raise ConversionError(f"normalization_type={cfg.normalization_type!r} is not a GPT-2's layer norm ('LN')")
    if cfg.act_fn not in _ACT_FNS and not cfg.attn_only:
        raise ConversionError(f"act_fn={cfg.act_fn!r} is not one of {', '.join(_ACT_FNS)}")
    if cfg.original_architecture not in _ARCHITECTURES:
        raise ConversionError(f"original_architecture={cfg.original_architecture!r} is not a GPT-2")
    if not math.isclose(cfg.attn_scale, math.sqrt(cfg.d_head), rel_tol=1e-6):
        raise ConversionError(f"attn_scale={cfg.attn_scale} is not sqrt(d_head)={math.sqrt(cfg.d_head):.6g}, as in a GPT-2")
    if cfg.d_vocab_out != cfg.d_vocab:
        raise ConversionError(f"d_vocab_out={cfg.d_vocab_out} is not d_vocab={cfg.d_vocab}, as in a GPT-2")
    return GPT2Config(
        **{name: getattr(cfg, name) for name in _SHARED},
        act_fn=_ACT_FNS.get(cfg.act_fn, "gelu_new"),
        layer_norm=cfg.normalization_type is not None,
    )


# TransformerBridge: 3.9 and 4.x --------------------------------------------------------------------------------------


def to_transformer_bridge(model: GPT2) -> "TransformerBridge":
    """A TransformerBridge around a Hugging Face copy of the model: no network, no tokenizer, no shared memory.

    Unprocessed; every activation in its cache is ours by name and value, but for what TransformerLens itself does
    otherwise (tests/convert/test_transformer_lens.py lists it): without `enable_compatibility_mode()` masked scores are the
    lowest float instead of -inf, and an edit of `resid_mid` reaches the MLP but not the stream. Raises ConversionError,
    naming the field, for a model that Hugging Face's GPT-2 cannot compute.
    """
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    reason = unrepresentable(model.config)
    if reason:
        raise ConversionError(f"TransformerBridge wraps Hugging Face's GPT-2, which cannot represent {reason}")
    hf_model = to_huggingface(model)
    with torch.random.fork_rng(devices=[]):  # it draws initial values, and throws them away
        bridge = build_bridge_from_module(hf_model, "GPT2LMHeadModel", hf_config=hf_model.config, tokenizer=None)
    return bridge.eval()
