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
from interp_gpt2.runs.checkpoint import load_weights
from interp_gpt2.runs.manifest import CONFIG, HF_WEIGHTS, MANIFEST, NATIVE_WEIGHTS, step_of_name
from interp_gpt2.runs.strict_json import parse
from interp_gpt2.runs.tensor_files import TensorInfo, check_weight_dtypes, header_of_file, tensors_of_file

INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_WANTED = [CONFIG, HF_WEIGHTS, NATIVE_WEIGHTS, INDEX, "model-*.safetensors"]


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
    if os.path.lexists(directory / MANIFEST) or step_of_name(directory.name) is not None:
        return load_weights(directory)
    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no model: {CONFIG} is missing")
    fields = parse(path.read_bytes(), path)
    try:
        config = config_from_hf(fields)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    if fields.get("model_type") == NATIVE_MODEL_TYPE:
        return config, _native_state(directory / NATIVE_WEIGHTS, config)
    try:
        return config, state_from_hf(_hf_tensors(directory, config), config)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error


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
    """The local copy of a model on the Hub, downloaded if need be: its config and its safetensors, no code."""
    parts = name.split("/")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or parts[0] in (".", "..") or (len(parts) == 2 and Path(parts[0]).is_dir()):
        raise CheckpointError(f"there is no directory {name}, and it is not a name on the Hugging Face Hub either")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.errors import LocalEntryNotFoundError as NotInCache

    try:
        cached = Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED, local_files_only=True))
        if (cached / CONFIG).is_file() and any(cached.glob("*.safetensors")):
            return cached
    except NotInCache:
        pass  # then it is downloaded
    except HFValidationError as error:
        raise CheckpointError(f"there is no directory {name}, and no Hub name looks like this: {error}") from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED, etag_timeout=5))
    except (HfHubHTTPError, OSError) as error:
        hint = f" ({', '.join(SIZES)} are the published sizes)" if len(parts) == 1 and name not in SIZES else ""
        raise CheckpointError(
            f"there is no directory {name}, and the Hugging Face Hub cannot be asked for it or does not have it{hint}: "
            f"{_first_line(error)}; without a network, give a directory with {CONFIG} and {HF_WEIGHTS}"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
