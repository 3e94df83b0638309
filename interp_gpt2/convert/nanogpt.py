"""Models of nanoGPT, and others that use its names, such as minGPT's and llm.c's in Python: exactly, or a refusal by name.

Its matrices lie as nn.Linear wants them (Hugging Face's are transposed). Two things a checkpoint does not tell: whether its
GELU is the exact one, as in nanoGPT since 2023, or the tanh approximation, as before, in minGPT and in llm.c (`act_fn`); and
whether rows of the embedding are padding, as 47 of nanoGPT's 50,304 are (`d_vocab`). Neither is guessed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp_gpt2.config import ActFn, GPT2Config
from interp_gpt2.convert.huggingface import model_of_state
from interp_gpt2.convert.pickled import read_archive, tensors_by_name
from interp_gpt2.errors import CheckpointError, ConfigError, ConversionError
from interp_gpt2.hf_format import check_shapes, parameters
from interp_gpt2.model import GPT2

_SIZES = {"n_layer": "n_layers", "n_head": "n_heads", "n_embd": "d_model", "block_size": "n_ctx", "vocab_size": "d_vocab"}
_ARGS = (*_SIZES, "bias", "dropout")
_PARTS = ("model", "model_args", "optimizer", "iter_num", "best_val_loss", "config")  # all that train.py saves
_WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and of DistributedDataParallel, in any order
_MASK = re.compile(r"transformer\.h\.\d+\.attn\.bias")
_EMBED, _HEAD = "transformer.wte.weight", "lm_head.weight"


def load_nanogpt(path: Path | str, d_vocab: int | None = None, act_fn: ActFn = "gelu") -> GPT2:
    """The model of a nanoGPT checkpoint (`ckpt.pt`), in float32 on the CPU and in eval mode. Nothing in the file is run.

    `d_vocab` keeps only the first so many rows of the embedding, which are then all that probability is shared among; None
    keeps every row, padding too. `act_fn`: "gelu_new" for checkpoints of before mid-2023, when nanoGPT took to torch's GELU.
    Raises CheckpointError naming the tensor that is missing, unexpected or misshapen, ConversionError naming the field.
    """
    path = Path(path)
    parts = _parts(path, read_archive(path))
    state = _unwrapped(tensors_by_name(parts["model"], f"{path.name}: model"))
    return _model(state, _config_of_args(parts["model_args"], state, act_fn), d_vocab)


@dataclass(frozen=True)
class NanoGPTHeader:
    """What a nanoGPT checkpoint says of itself: its number of updates, and the shape of its model."""

    step: int
    config: GPT2Config


def nanogpt_header(path: Path | str, d_vocab: int | None = None, act_fn: ActFn = "gelu") -> NanoGPTHeader:
    """The step and config of a nanoGPT checkpoint, without reading its tensors. Raises as `load_nanogpt`."""
    path = Path(path)
    parts = _parts(path, read_archive(path, mapped=True))
    step = parts.get("iter_num")
    if type(step) is not int or step < 0:
        raise CheckpointError(f"{path.name}: iter_num={step!r} is no number of updates")
    names = _unwrapped(tensors_by_name(parts["model"], f"{path.name}: model"))
    config = _config_of_args(parts["model_args"], names, act_fn)
    return NanoGPTHeader(step, config if d_vocab is None else GPT2Config.from_dict(config.to_dict() | {"d_vocab": d_vocab}))


def _parts(path: Path, parts: Any) -> dict[str, Any]:
    """The dictionary that train.py saves. Raises CheckpointError, ConversionError for anything else."""
    if not isinstance(parts, dict) or not isinstance(parts.get("model_args"), dict) or "model" not in parts:
        raise CheckpointError(
            f"{path.name} is no nanoGPT checkpoint, a dictionary with model and model_args; "
            "for a file that holds a state dict alone, use from_nanogpt(load_state(path), n_heads=...)"
        )
    for name in parts:
        if name not in _PARTS:
            raise ConversionError(f"{path.name} holds {name!r}, which nanoGPT does not write and we do not know")
    return parts


def load_state(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a file that holds a state dict and nothing else, for `from_nanogpt`. Raises CheckpointError."""
    return tensors_by_name(read_archive(Path(path)), Path(path).name)


def from_nanogpt(state: Mapping[str, Tensor], n_heads: int, d_vocab: int | None = None, act_fn: ActFn = "gelu") -> GPT2:
    """The model with these tensors in nanoGPT's names: its state dict, or minGPT's or llm.c's (`act_fn="gelu_new"`).

    Sizes are read from the shapes, except `n_heads`, which they do not tell. The unembedding is tied if `lm_head.weight`
    is absent or equal to the embedding. `d_vocab` as in `load_nanogpt`. Raises as `load_nanogpt` does.
    """
    state = _unwrapped(state)
    return _model(state, _config_of_shapes(state, n_heads, act_fn), d_vocab)


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, and without the causal masks that older torch needed."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = name
        while plain.startswith(_WRAPPERS):
            plain = plain.removeprefix(_WRAPPERS[0]).removeprefix(_WRAPPERS[1])
        if plain in found:
            raise CheckpointError(f"tensor {plain} is there twice, with and without the prefix of a wrapper ({name})")
        found[plain] = tensor
    for name in [name for name in found if _MASK.fullmatch(name)]:
        _check_mask(name, found.pop(name))
    return found


def _check_mask(name: str, mask: Tensor) -> None:
    causal = mask.ndim == 4 and mask.shape[:2] == (1, 1) and mask.shape[2] == mask.shape[3]
    if not causal or not torch.equal(mask[0, 0] != 0, torch.ones_like(mask[0, 0], dtype=torch.bool).tril()):
        raise ConversionError(f"{name} is not a causal mask; attention that is not causal is another model")


def _config_of_args(args: Mapping[str, Any], state: Mapping[str, Tensor], act_fn: ActFn) -> GPT2Config:
    for name, value in args.items():
        if name not in _ARGS:
            nearest = get_close_matches(str(name), _ARGS, n=1)
            hint = f"; did it mean {nearest[0]}?" if nearest else ""
            raise ConversionError(f"model_args: {name}={value!r} is not a field of nanoGPT's{hint}")
    for name in _SIZES:
        if type(args.get(name)) is not int:
            raise ConversionError(f"model_args: {name} must be a whole number, not {args.get(name)!r}")
    # Before January 2023 there was no such field, and always a bias.
    bias, dropout = args.get("bias", _has_biases(state)), args.get("dropout", 0.0)
    if type(bias) is not bool or type(dropout) not in (int, float):
        raise ConversionError(f"model_args: bias={bias!r} must be true or false and dropout={dropout!r} a number")
    try:
        sizes = {ours: args[theirs] for theirs, ours in _SIZES.items()}
        return GPT2Config(**sizes, bias=bias, dropout=float(dropout), act_fn=act_fn)
    except ConfigError as error:
        raise ConversionError(f"model_args describe no GPT-2: {error}") from error


def _config_of_shapes(state: Mapping[str, Tensor], n_heads: int, act_fn: ActFn) -> GPT2Config:
    for name in (_EMBED, "transformer.wpe.weight"):
        if name not in state or state[name].ndim != 2:
            raise CheckpointError(f"tensor {name} is missing, or no matrix; these are not nanoGPT's names")
    d_vocab, d_model = state[_EMBED].shape
    fc = state.get("transformer.h.0.mlp.c_fc.weight")
    try:
        return GPT2Config(
            n_layers=len({name.split(".")[2] for name in state if name.startswith("transformer.h.")}),
            n_heads=n_heads,
            d_model=d_model,
            d_mlp=fc.shape[0] if fc is not None and fc.ndim == 2 else None,
            d_vocab=d_vocab,
            n_ctx=state["transformer.wpe.weight"].shape[0],
            act_fn=act_fn,
            tied=_HEAD not in state or torch.equal(state[_HEAD], state[_EMBED]),
            bias=_has_biases(state),
        )
    except ConfigError as error:
        raise ConversionError(f"the shapes describe no GPT-2 with n_heads={n_heads}: {error}") from error


def _has_biases(state: Mapping[str, Tensor]) -> bool:
    return any(name.endswith(".bias") for name in state)


def _model(state: dict[str, Tensor], config: GPT2Config, d_vocab: int | None) -> GPT2:
    if config.n_layers > len(state):  # before every tensor of a trillion layers is listed
        raise CheckpointError(f"{len(state)} tensors cannot be those of a model with n_layers={config.n_layers}")
    wanted = [p for p in parameters(config) if config.bias or not p.is_bias]
    expected = {p.theirs: p.shape for p in wanted}
    if config.tied and _HEAD in state:
        expected[_HEAD] = expected[_EMBED]
    check_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, expected)
    for name, tensor in state.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise CheckpointError(f"{name} holds {tensor.dtype}; weights are floating-point")
    if config.tied and _HEAD in state and not torch.equal(state[_HEAD], state[_EMBED]):
        raise CheckpointError(f"{_HEAD} differs from {_EMBED}, which nanoGPT ties; with from_nanogpt it may have its own")
    ours = {p.ours: state[p.theirs] for p in wanted}
    return model_of_state(*_cut(ours, config, d_vocab))


def _cut(state: dict[str, Tensor], config: GPT2Config, d_vocab: int | None) -> tuple[GPT2Config, dict[str, Tensor]]:
    if d_vocab is None or d_vocab == config.d_vocab:
        return config, state
    if not 0 < d_vocab < config.d_vocab:
        raise ConversionError(f"d_vocab={d_vocab} rows cannot be kept of an embedding of {config.d_vocab}")
    rows = {name: state[name][:d_vocab] for name in ("wte.weight", "lm_head.weight") if name in state}
    return GPT2Config.from_dict(config.to_dict() | {"d_vocab": d_vocab}), state | rows
