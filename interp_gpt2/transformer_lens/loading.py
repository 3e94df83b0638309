"""Where a drop-in's model and tokenizer come from: a Hub name, a directory, a run, or a model of another library."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp_gpt2.convert.huggingface import from_huggingface
from interp_gpt2.errors import ConfigError, RunError, TokenizerError
from interp_gpt2.folding import (
    center_unembed,
    center_writing_weights,
    fold_layer_norm,
    fold_value_biases,
    refactor_factored_attn_matrices,
)
from interp_gpt2.model import GPT2
from interp_gpt2.runs.pretrained import load_pretrained
from interp_gpt2.runs.run import SETTINGS, Run
from interp_gpt2.tokenizers import load_tokenizer, tokenizer_named

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# TransformerLens's short names for models on the Hugging Face Hub.
_ALIASES = {"gpt2-small": "gpt2", "distillgpt2": "distilgpt2"}
_STANFORD = {
    "small": {"a": "alias-gpt2-small-x21", "b": "battlestar-gpt2-small-x49", "c": "caprica-gpt2-small-x81",
              "d": "darkmatter-gpt2-small-x343", "e": "expanse-gpt2-small-x777"},
    "medium": {"a": "arwen-gpt2-medium-x21", "b": "beren-gpt2-medium-x49", "c": "celebrimbor-gpt2-medium-x81",
               "d": "durin-gpt2-medium-x343", "e": "eowyn-gpt2-medium-x777"},
}  # fmt: skip
_ALIASES |= {
    f"stanford-gpt2-{size}-{letter}": f"stanford-crfm/{name}" for size, by in _STANFORD.items() for letter, name in by.items()
}


def load(
    name: str | Path,
    hf_model: "PreTrainedModel | None" = None,
    checkpoint_index: int | None = None,
    checkpoint_value: int | None = None,
    revision: str | None = None,
) -> tuple[GPT2, Any, int | None]:
    """The model, a tokenizer (ours, or None where there is none), and the step of a run that it is.

    A run's checkpoints are chosen by `checkpoint_value` (a step) or `checkpoint_index` (of `run.steps`, from 0, or from
    the last when negative); without either it is the last. Raises ConfigError for a choice where there are no steps.
    """
    path = Path(name).expanduser()
    chosen = {"checkpoint_index": checkpoint_index, "checkpoint_value": checkpoint_value}
    given = [key for key, value in chosen.items() if value is not None]
    if hf_model is None and (path / SETTINGS).is_file():
        run = Run(path)
        step = _step(run, checkpoint_index, checkpoint_value)
        return run.model(step), run.tokenizer(), step
    if given:
        raise ConfigError(f"{given[0]}={chosen[given[0]]!r} chooses a step of a run, and {name} is not a run's directory")
    if hf_model is not None:
        return from_huggingface(hf_model), None, None
    if path.is_dir():
        tokenizer = load_tokenizer(path) if (path / "tokenizer.json").is_file() else None
        return load_pretrained(path, revision), tokenizer, None
    model = load_pretrained(_ALIASES.get(str(name), str(name)), revision)
    return model, tokenizer_named("gpt2"), None


def _step(run: Run, index: int | None, value: int | None) -> int:
    if index is not None and value is not None:
        raise ConfigError(f"checkpoint_index={index} and checkpoint_value={value} both choose a step; pass one")
    if value is not None:
        run.checkpoint(value)  # refuses a step that is not there, naming the nearest
        return value
    steps = run.steps
    index = -1 if index is None else index
    if not -len(steps) <= index < len(steps):
        raise RunError(f"checkpoint_index={index} is not among the {len(steps)} checkpoints of {run.path}")
    return steps[index]


def process(
    model: GPT2,
    fold_ln: bool,
    center_writing: bool,
    center_unembedding: bool,
    fold_values: bool,
    refactor: bool,
) -> GPT2:
    """TransformerLens's processing, in its order. A model without layer norms has none to fold and its stream stays."""
    if fold_ln and model.config.layer_norm:
        model = fold_layer_norm(model)
    if center_writing and model.config.layer_norm:
        model = center_writing_weights(model)
    if center_unembedding:
        model = center_unembed(model)
    model = fold_value_biases(model) if fold_values else model
    return refactor_factored_attn_matrices(model) if refactor else model


def dtype_named(dtype: str | torch.dtype) -> torch.dtype:
    """A dtype by its name. Raises ConfigError for what is no floating-point dtype."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype={dtype!r} is no floating-point dtype such as 'float32' or torch.bfloat16")
    return found


def tokenizer_for(name: str) -> Any:
    """The tokenizer of a config's `tokenizer_name`: GPT-2's, or that of a directory. Raises TokenizerError for others."""
    if name in ("gpt2", "gpt2-small"):
        return tokenizer_named("gpt2")
    if Path(name).is_dir():
        return load_tokenizer(name)
    raise TokenizerError(f"tokenizer_name={name!r} is neither 'gpt2' nor a directory; pass tokenizer= instead")
