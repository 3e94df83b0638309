"""What is asked of a store before anything is computed: which hook points of which models, and how they are kept."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from interp_gpt2.activations.record import DTYPES, Plan
from interp_gpt2.activations.texts import Texts
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ContextLengthError, StoreError
from interp_gpt2.hooks import Names, hook_point_names, resolve
from interp_gpt2.inputs import check_tokens
from interp_gpt2.model import GPT2
from interp_gpt2.passes import refuse_edited
from interp_gpt2.runs.checkpoint import weights_sha256
from interp_gpt2.runs.run import Run

BATCH_TOKENS = 4096
SHARD_BYTES = 512 * 2**20  # of all hook points together: what a killed writer has to make again


@dataclass(frozen=True)
class Recording:
    """Which hook points to store and how: "float16", "bfloat16" or "float32".

    `batch_size`: sequences in a pass (None: as many as have about 4,096 tokens). `shard_bytes`: at most, of all hook points'
    shards together, but never less than a batch. `device`: where a run's models compute; a model stays where it is.
    """

    names: Names
    dtype: str = "float16"
    batch_size: int | None = None
    shard_bytes: int = SHARD_BYTES
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise StoreError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}")
        for name in ("batch_size", "shard_bytes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise StoreError(f"{name}={value} must be at least 1")

    def plan(self, config: GPT2Config, texts: Texts, computed_in: str) -> Plan:
        """What a store with these activations holds. Raises HookNameError, TokenError and StoreError before any pass."""
        shapes = row_shapes(config, self.names)
        check_texts(config, texts)
        batch_size = self.batch_size or max(1, BATCH_TOKENS // texts.tokens.shape[1])
        row_bytes = sum(torch.Size(shape).numel() for shape in shapes.values()) * DTYPES[self.dtype][0].itemsize
        batches = max(1, self.shard_bytes // (row_bytes * texts.tokens.shape[1] * batch_size))
        shard_sequences = min(batches, -(-len(texts.tokens) // batch_size)) * batch_size
        return Plan(
            config=config.to_dict(),
            hook_points=shapes,
            dtype=self.dtype,
            texts=texts.sha256,
            note=texts.note,
            tokenizer=texts.tokenizer.sha256 if texts.tokenizer else None,
            computed_in=computed_in,
            batch_size=batch_size,
            shard_sequences=shard_sequences,
            shard_rows=tuple(int(part.sum()) for part in texts.lengths.split(shard_sequences)),
        )


def row_shapes(config: GPT2Config, names: Names) -> dict[str, tuple[int, ...]]:
    """The hook points, in the order of the pass, each with the shape of what it has for one token.

    Raises HookNameError for what matches none, StoreError for scores and patterns, which have no row for a token.
    """
    found = resolve(names, config)
    if square := sorted(name for name in found if name.endswith(("attn_scores", "pattern"))):
        raise StoreError(f"{square[0]!r} has a column for every key, and no row for each token; store z, q, k or v")
    shapes = GPT2(config, device="meta").hook_points(batch=1, pos=1)
    return {name: shapes[name][2:] for name in hook_point_names(config) if name in found}


def check_texts(config: GPT2Config, texts: Texts) -> None:
    """Raises what the model would raise when it came to read them, before anything is written."""
    if texts.tokens.shape[1] > config.n_ctx:
        raise ContextLengthError(
            f"sequences of {texts.tokens.shape[1]} tokens do not fit in n_ctx={config.n_ctx}; cut the texts into shorter ones"
        )
    for part in texts.tokens.split(4096):
        check_tokens(part.long(), config)


@dataclass(frozen=True)
class Models:
    """The models to be read, by step (None: outside a run), with the hash that names each; all of one architecture."""

    subject: GPT2 | Run
    hashes: dict[int | None, str]
    config: GPT2Config
    computed_in: str
    device: str

    @classmethod
    def of(cls, subject: GPT2 | Run, steps: Iterable[int] | None, texts: Texts, recording: Recording) -> "Models":
        if isinstance(subject, GPT2):
            refuse_edited(subject, "recorded in a store")
            if steps is not None:
                raise StoreError(f"steps={list(steps)} are for a run; this is one model")
            dtype = str(subject.wpe.weight.dtype).removeprefix("torch.")
            return cls(subject, {None: model_sha256(subject)}, subject.config, f"{dtype} on {subject.device.type}", "")
        chosen = sorted(subject.steps if steps is None else set(steps))
        if not chosen:
            raise StoreError(f"no step of {subject.name} is asked for; it has {len(subject.steps)}")
        _check_tokenizer(subject, texts)
        hashes = {step: subject.checkpoint_hash(step) for step in chosen}
        configs = {step: subject.config_at(step) for step in chosen}
        if other := [step for step in chosen if configs[step] != configs[chosen[-1]]]:
            raise StoreError(
                f"step {other[0]} of {subject.name} is a model of another shape than step {chosen[-1]}'s; one store holds one "
                "architecture"
            )
        for step in chosen:
            subject.check_tokenizer(step)
        device = torch.device(recording.device).type
        return cls(subject, hashes, configs[chosen[-1]], f"float32 on {device}", recording.device)

    @property
    def steps(self) -> list[int | None]:
        return list(self.hashes)

    def load(self, step: int | None) -> GPT2:
        if isinstance(self.subject, GPT2):
            model = self.subject
        else:
            model = self.subject.model(step).to(self.device)
            if self.subject.checkpoint_hash(step) != self.hashes[step]:
                raise StoreError(f"step {step} of {self.subject.name} was replaced while it was to be stored; begin again")
        if model.training and model.config.dropout > 0:
            raise StoreError(f"the model is in training mode with dropout {model.config.dropout}; call model.eval() first")
        return model


def _check_tokenizer(run: Run, texts: Texts) -> None:
    if texts.tokenizer and texts.tokenizer.sha256 != (ours := run.tokenizer().sha256):
        raise StoreError(
            f"the texts are in tokens of another tokenizer ({texts.tokenizer.sha256[:16]}...) than {run.name}'s "
            f"({ours[:16]}...); encode them with run.tokenizer()"
        )


def model_sha256(model: GPT2) -> str:
    """One hash for a model outside a run: of its config and its weights."""
    config = json.dumps(model.config.to_dict(), sort_keys=True)
    return hashlib.sha256(f"{config} {weights_sha256(model.state_dict(), model.config)}".encode()).hexdigest()
