"""A model from a directory or from the Hugging Face Hub, every tensor accounted for.

A directory with our manifest is verified to the byte. Any other is read as Hugging Face's: safetensors, in one file or in
shards, or an old pytorch_model.bin through torch's restricted unpickler; names and shapes are checked against the config
before any value reaches a model.
"""

import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from interp_gpt2.config import SIZES, GPT2Config
from interp_gpt2.convert.huggingface import model_of_state
from interp_gpt2.convert.pickled import read_old_or_archive, tensors_by_name
from interp_gpt2.errors import CheckpointError, ConversionError
from interp_gpt2.hf_format import NATIVE_MODEL_TYPE, check_hf_shapes, check_our_shapes, config_from_hf, state_from_hf
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import load_config, load_weights
from interp_gpt2.runs.hub import INDEX, PICKLED, is_hub_name, local_copy
from interp_gpt2.runs.manifest import CONFIG, HF_WEIGHTS, MANIFEST, NATIVE_WEIGHTS, step_of_name
from interp_gpt2.runs.strict_json import parse
from interp_gpt2.runs.tensor_files import TensorInfo, check_weight_dtypes, header_of_file, tensors_of_file

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def load_pretrained(source: Path | str, revision: str | None = None) -> GPT2:
    """A model from a checkpoint directory, a Hugging Face GPT-2 directory, or a name on the Hub such as "gpt2".

    A directory that exists comes first. A Hub name is looked up in the local Hub cache and only then on the network;
    `revision` names a branch, tag or commit there. Float32, on the CPU, in eval mode.
    Raises CheckpointError or ConversionError naming the file, tensor or config field that does not fit.
    """
    directory = Path(source).expanduser()
    if not directory.is_dir():
        directory = _from_hub(str(source), revision)
    elif revision is not None:
        raise CheckpointError(f"{directory} is a local directory, which has no revision {revision!r}; leave revision out")
    return model_of_state(*load_directory(directory))


def load_directory(directory: Path | str) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Config and state dict (our names) of a model directory, ours or Hugging Face's. Raises as `load_pretrained`."""
    directory = Path(directory)
    if is_ours(directory):
        return load_weights(directory)
    config, native = _foreign_config(directory)
    if native:
        return config, _native_state(directory / NATIVE_WEIGHTS, config)
    try:
        return config, state_from_hf(_hf_tensors(directory, config), config)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error


def config_of_directory(directory: Path | str) -> GPT2Config:
    """The config of a model directory, from its config.json alone. Raises as `load_pretrained`."""
    directory = Path(directory)
    return load_config(directory) if is_ours(directory) else _foreign_config(directory)[0]


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a model directory's weights, as `load_directory` chooses them. Raises CheckpointError."""
    for name in (HF_WEIGHTS, INDEX, NATIVE_WEIGHTS, PICKLED):
        if (directory / name).is_file():
            return sorted(_shards(directory)) if name == INDEX else [directory / name]
    raise CheckpointError(f"{directory}: no weights: neither {HF_WEIGHTS}, {INDEX} nor {PICKLED} is there")


def is_ours(directory: Path) -> bool:
    """Does a manifest vouch for it, or should one?"""
    return os.path.lexists(directory / MANIFEST) or step_of_name(directory.name) is not None


def _foreign_config(directory: Path) -> tuple[GPT2Config, bool]:
    """The config, and whether the weights are under our names."""
    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no model: {CONFIG} is missing")
    fields = parse(path.read_bytes(), path)
    try:
        return config_from_hf(fields), fields.get("model_type") == NATIVE_MODEL_TYPE
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error


def _native_state(path: Path, config: GPT2Config) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    header = header_of_file(path)
    check_weight_dtypes(header, path)
    check_our_shapes({name: info.shape for name, info in header.items()}, config)
    return tensors_of_file(path)


def _hf_tensors(directory: Path, config: GPT2Config) -> dict[str, Tensor]:
    if (directory / HF_WEIGHTS).is_file():
        files = {directory / HF_WEIGHTS: None}
    elif (directory / INDEX).is_file():
        files = _shards(directory)
    elif (directory / PICKLED).is_file():
        return _unpickled(directory / PICKLED)
    else:
        raise CheckpointError(f"no weights: neither {HF_WEIGHTS}, {INDEX} nor {PICKLED} is there")
    headers: dict[str, TensorInfo] = {}
    for path, names in files.items():
        header = header_of_file(path)
        if names is not None and header.keys() != names:
            odd = sorted(header.keys() ^ names)[0]
            raise CheckpointError(f"{path.name} and {INDEX} disagree about tensor {odd}")
        headers |= header
    check_hf_shapes({name: info.shape for name, info in headers.items()}, config)
    return {name: tensor for path in files for name, tensor in tensors_of_file(path).items()}


def _shards(directory: Path) -> dict[Path, set[str]]:
    """Each shard with the tensors that the index says are in it, so that no tensor is in two."""
    weight_map: Any = parse((directory / INDEX).read_bytes(), directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX} has no weight_map")
    shards: dict[Path, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise CheckpointError(f"{INDEX} names {file!r}, which is no shard such as model-00001-of-00002.safetensors")
        shards.setdefault(directory / file, set()).add(name)
    for path in shards:
        if not path.is_file():
            raise CheckpointError(f"{path.name} is missing; {INDEX} names it")
    return shards


def _unpickled(path: Path) -> dict[str, Tensor]:
    """An old pytorch_model.bin: tensors only, and a zip file only if it is no larger unpacked than on disk."""
    return tensors_by_name(read_old_or_archive(path), path.name)


def _from_hub(name: str, revision: str | None) -> Path:
    """The local copy of a model on the Hub, downloaded if need be: its config and its weights, no code."""
    if not is_hub_name(name):
        raise CheckpointError(f"there is no directory {name}, and it is not a name on the Hugging Face Hub either")
    try:
        return local_copy(name, revision)
    except CheckpointError as error:
        hint = f"; {', '.join(SIZES)} are the published sizes" if "/" not in name and name not in SIZES else ""
        raise CheckpointError(f"there is no directory {name}, and {error}{hint}") from error
