"""One checkpoint: a directory that transformers loads as it stands, and that we load only if every byte is as written.

    step-00001000/
      model.safetensors       weights in Hugging Face's names
      config.json             Hugging Face's fields, and our config in full under "interp_gpt2"
      tokenizer.json, tokenizer_config.json
      optimizer.safetensors, trainer.json     in checkpoints that training can resume from; where several processes share
                              the optimizer's state, optimizer-00001-of-00004.safetensors and so on instead
      manifest.json           step, tokens seen, size and SHA-256 of each file, then its own SHA-256

What Hugging Face's GPT-2 cannot compute is in interp_gpt2.safetensors, under our names, with a config that it refuses:
a directory that transformers would load with random MLPs would be a lie.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError, CheckpointWriteError, ConversionError
from interp_gpt2.files import written_atomically
from interp_gpt2.hf_format import (
    NATIVE_MODEL_TYPE,
    OURS,
    check_hf_shapes,
    check_our_shapes,
    config_from_hf,
    config_to_hf,
    state_from_hf,
    state_to_hf,
    unrepresentable,
)
from interp_gpt2.runs.durable import move_file, new_directory, sync_directory, sync_file, write_errors_named, write_file
from interp_gpt2.runs.manifest import (
    CONFIG,
    HF_WEIGHTS,
    MANIFEST,
    NATIVE_WEIGHTS,
    OPTIMIZER,
    RESUME_FILES,
    TOKENIZER_FILES,
    TRAINER,
    Manifest,
    entry_of,
    is_resume_file,
    read_manifest,
    read_one,
    read_verified,
    step_name,
)
from interp_gpt2.runs.strict_json import parse, render
from interp_gpt2.runs.tensor_files import check_weight_dtypes, header_of_bytes, tensor_chunks, tensors_of_bytes


class Saveable(Protocol):
    """What a checkpoint asks of a tokenizer."""

    eos_token_id: int | None

    def save(self, directory: Path) -> None: ...


@dataclass(frozen=True)
class ResumeState:
    """What training needs besides the weights: the optimizer's state by name, and a JSON object.

    `shards` are files that hold the state in the place of `tensors`, by the names they are to have; saving moves them.
    """

    tensors: Mapping[str, Tensor]
    trainer: Mapping[str, Any]
    shards: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """A checkpoint that is about to be written: tensors named and laid out as in its files, which they may share memory with."""

    step: int | None
    tokens_seen: int | None
    tensors: Mapping[str, Mapping[str, Tensor]]  # by file
    texts: Mapping[str, bytes]
    tokenizer: Saveable | None
    moved: Mapping[str, Path] = field(default_factory=dict)  # files that are on this disk already, under other names

    @property
    def n_bytes(self) -> int:
        values = sum(tensor.nbytes for tensors in self.tensors.values() for tensor in tensors.values())
        return values + sum(map(len, self.texts.values()))


# ------------------------------------------------------------------------------------------------------------ write


def save_checkpoint(
    run_dir: Path | str,
    step: int,
    state: Mapping[str, Tensor],
    config: GPT2Config,
    tokens_seen: int,
    tokenizer: Saveable | None = None,
    resume: ResumeState | None = None,
) -> Path:
    """Write `<run_dir>/step-<step>` and return it, on disk and complete.

    `state` is `model.state_dict()`, from any device. Raises CheckpointWriteError if it cannot be written or already
    exists; whatever happens, no half-written checkpoint is visible and earlier ones are untouched.
    """
    return write_checkpoint(run_dir, contents_of(step, state, config, tokens_seen, tokenizer, resume))


def contents_of(
    step: int,
    state: Mapping[str, Tensor],
    config: GPT2Config,
    tokens_seen: int,
    tokenizer: Saveable | None = None,
    resume: ResumeState | None = None,
) -> Contents:
    """What `save_checkpoint` writes. The tensors are views of `state`: copy them if training goes on before they are written."""
    if type(step) is not int or type(tokens_seen) is not int or step < 0 or tokens_seen < 0:
        raise CheckpointWriteError(f"step={step!r} and tokens_seen={tokens_seen!r} must be whole numbers of at least 0")
    contents = _model_contents(state, config, tokenizer)
    tensors, texts = dict(contents.tensors), dict(contents.texts)
    if resume is None:
        return Contents(step, tokens_seen, tensors, texts, tokenizer)
    if not resume.shards:
        tensors[OPTIMIZER] = dict(resume.tensors)
    texts[TRAINER] = _rendered(resume.trainer, step)
    return Contents(step, tokens_seen, tensors, texts, tokenizer, resume.shards)


def write_checkpoint(run_dir: Path | str, contents: Contents) -> Path:
    """Write `<run_dir>/step-<contents.step>` and return it, on disk and complete. Raises as `save_checkpoint` does."""
    return _write(Path(run_dir) / step_name(contents.step), contents)


def save_weights(
    directory: Path | str, state: Mapping[str, Tensor], config: GPT2Config, tokenizer: Saveable | None = None
) -> Path:
    """Write a model, outside any run, to a directory that does not exist or is empty; same files, same guarantees."""
    return _write(Path(directory), _model_contents(state, config, tokenizer))


def weights_sha256(state: Mapping[str, Tensor], config: GPT2Config) -> str:
    """SHA-256 of the file with the weights, were this state saved: what the manifest of its checkpoint says."""
    (tensors,) = _model_contents(state, config, None).tensors.values()
    sha256 = hashlib.sha256()
    for chunk in tensor_chunks(tensors):
        sha256.update(chunk)
    return sha256.hexdigest()


def drop_resume(step_dir: Path | str) -> int:
    """Take the resume files out of a checkpoint to save space, and return the bytes freed. The weights stay.

    The manifest that no longer vouches for them is on disk before they go, so a process killed in between leaves a
    sound checkpoint. Raises CheckpointError if the manifest is not sound, CheckpointWriteError if it cannot be written.
    """
    step_dir = Path(step_dir)
    manifest = read_manifest(step_dir)
    kept = {name: entry for name, entry in manifest.files.items() if not is_resume_file(name)}
    gone = sorted({*RESUME_FILES, *manifest.files, *manifest.dropped} - kept.keys())
    freed = 0
    with write_errors_named(step_dir / MANIFEST, 0):
        if len(kept) < len(manifest.files):
            with written_atomically(step_dir / MANIFEST) as file:
                file.write(replace(manifest, files=kept, dropped=tuple(gone)).to_bytes())
            sync_directory(step_dir)
        for path in (step_dir / name for name in gone):
            if path.exists():
                freed += path.stat().st_size
                path.unlink()
    return freed


def _model_contents(state: Mapping[str, Tensor], config: GPT2Config, tokenizer: Saveable | None) -> Contents:
    eos = None if tokenizer is None else tokenizer.eos_token_id
    if unrepresentable(config) is None:
        fields, name, tensors = config_to_hf(config, eos), HF_WEIGHTS, state_to_hf(state, config)
    else:
        check_our_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, config)
        fields = {"model_type": NATIVE_MODEL_TYPE, "bos_token_id": eos, "eos_token_id": eos}
        name, tensors = NATIVE_WEIGHTS, dict(state)
    return Contents(None, None, {name: tensors}, {CONFIG: render(fields | {OURS: config.to_dict()})}, tokenizer)


def _rendered(trainer: Mapping[str, Any], step: int) -> bytes:
    try:
        return render(trainer)
    except (TypeError, ValueError) as error:
        raise CheckpointWriteError(
            f"{step_name(step)}/{TRAINER} cannot be written: the trainer's state is not JSON: {error}"
        ) from error


def _write(target: Path, contents: Contents) -> Path:
    with write_errors_named(target, contents.n_bytes), new_directory(target) as temporary:
        entries = {name: write_file(temporary / name, tensor_chunks(tensors)) for name, tensors in contents.tensors.items()}
        entries |= {name: write_file(temporary / name, [text]) for name, text in contents.texts.items()}
        entries |= {name: move_file(path, temporary / name) for name, path in contents.moved.items()}
        for emptied in {path.parent for path in contents.moved.values()}:
            emptied.rmdir()
        if contents.tokenizer is not None:
            contents.tokenizer.save(temporary)
            for name in TOKENIZER_FILES:
                sync_file(temporary / name)
                entries[name] = entry_of((temporary / name).read_bytes())
        write_file(temporary / MANIFEST, [Manifest(contents.step, contents.tokens_seen, entries).to_bytes()])
    return target


# ------------------------------------------------------------------------------------------------------------- read


def verify_checkpoint(step_dir: Path | str) -> Manifest:
    """The manifest, after every byte of the directory has been checked. Raises CheckpointError naming what is wrong."""
    return read_verified(Path(step_dir))[0]


def load_config(step_dir: Path | str) -> GPT2Config:
    """The config of a checkpoint, from config.json alone, checked against its manifest. Raises CheckpointError."""
    path = Path(step_dir) / CONFIG
    data = read_one(path.parent, CONFIG)
    try:
        return config_from_hf(parse(data, path))
    except ConversionError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_weights(step_dir: Path | str, verify: bool = True) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Config and state dict (our names, as stored, on the CPU) of a checkpoint that we wrote.

    `verify=False` skips the hashes and still checks names, sizes and shapes. Raises CheckpointError naming the file or
    tensor that is missing, altered, truncated or out of place, before any value is returned.
    """
    step_dir = Path(step_dir)
    manifest, contents = read_verified(step_dir, {CONFIG, HF_WEIGHTS, NATIVE_WEIGHTS}, verify)
    where = step_dir / manifest.weights
    fields = parse(contents[CONFIG], step_dir / CONFIG)
    native = manifest.weights == NATIVE_WEIGHTS
    if native != (fields.get("model_type") == NATIVE_MODEL_TYPE) or OURS not in fields:
        raise CheckpointError(f"{step_dir / CONFIG} does not belong to {where.name}")
    header = header_of_bytes(contents[manifest.weights], where)
    check_weight_dtypes(header, where)
    shapes = {name: info.shape for name, info in header.items()}
    try:
        config = config_from_hf(fields)
        if native:
            check_our_shapes(shapes, config)
        else:
            check_hf_shapes(shapes, config)
        tensors = tensors_of_bytes(contents[manifest.weights], where)
        return config, tensors if native else state_from_hf(tensors, config)
    except (CheckpointError, ConversionError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def load_resume(step_dir: Path | str) -> ResumeState:
    """What `save_checkpoint(resume=)` was given, every byte verified; of shards, their files.

    Raises CheckpointError, also if it holds none.
    """
    step_dir = Path(step_dir)
    manifest, contents = read_verified(step_dir, RESUME_FILES)
    if not manifest.can_resume:
        raise CheckpointError(f"{step_dir} holds weights only; training cannot resume from it")
    trainer = parse(contents[TRAINER], step_dir / TRAINER)
    if OPTIMIZER not in contents:
        return ResumeState({}, trainer, {name: step_dir / name for name in manifest.optimizer_files})
    where = step_dir / OPTIMIZER
    header_of_bytes(contents[OPTIMIZER], where)
    return ResumeState(tensors_of_bytes(contents[OPTIMIZER], where), trainer)
