"""What a training run is, in one frozen dataclass. Needs no torch, so that `--help` is quick."""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from interp_gpt2.config import GPT2Config, refuse_unknown_fields
from interp_gpt2.errors import ConfigError

Order = Literal["random", "epochs"]
Documents = Literal["across", "aligned", "masked"]
Schedule = Literal["cosine", "wsd", "constant"]
DecayShape = Literal["1-sqrt", "linear"]
Optimizer = Literal["adamw", "muon"]
Precision = Literal["auto", "fp32", "bf16"]
GuardAction = Literal["skip", "note"]
Tracking = Literal["none", "tensorboard", "wandb"]
Parallel = Literal["auto", "ddp", "fsdp"]


@dataclass(frozen=True)
class Checkpoints:
    """Which steps are kept: the union of these schedules, and always the first and the last step.

    Scheduled checkpoints hold weights only. Those made every `resume_every` steps can also be resumed from; of these the
    newest two stay so, and the rest keep their weights. At `anchors` evenly spaced steps they stay for good, so that any
    step between can be computed again (`Run.recompute`). The last step of a run can always be resumed from.
    Raises ConfigError for numbers that mean nothing.
    """

    per_doubling: int = 1  # log-spaced: 1 keeps 0, 1, 2, 4, 8, ...; 2 also keeps the steps half-way between; 0 none
    pythia: bool = False  # 0, 1, 2, 4, ..., 512, then every 1,000 (Biderman et al. 2023)
    piecewise: tuple[tuple[int, int], ...] = ()  # (every, up to): [[10, 100], [50, 2000]] is 10, ..., 100, 150, ..., 2000
    every: int = 0  # 0: none
    at: tuple[int, ...] = ()
    resume_every: int = 500
    anchors: int = 10  # 0: none

    def __post_init__(self) -> None:
        _freeze_lists(self)
        _check_types(self)
        for name in ("per_doubling", "every", "anchors"):
            if getattr(self, name) < 0:
                raise ConfigError(f"checkpoints.{name}={getattr(self, name)} is negative; 0 turns it off")
        if self.resume_every < 1:
            raise ConfigError(f"checkpoints.resume_every={self.resume_every} must be at least 1")
        for step in self.at:
            if type(step) is not int or step < 0:
                raise ConfigError(f"checkpoints.at holds {step!r}; steps are whole numbers from 0")
        self._check_pieces()

    def _check_pieces(self) -> None:
        before = 0
        for piece in self.piecewise:
            if not isinstance(piece, tuple) or len(piece) != 2 or any(type(n) is not int or n < 1 for n in piece):
                raise ConfigError(f"checkpoints.piecewise holds {piece!r}; a piece is [every, up to], two whole numbers from 1")
            if piece[1] <= before:
                raise ConfigError(
                    f"checkpoints.piecewise goes up to step {before} and then only to {piece[1]}; each piece ends after the last"
                )
            before = piece[1]


@dataclass(frozen=True)
class TrainConfig:
    """A training run: with the text it names, it determines every weight at every step.

    `data` is a corpus ("python-docs", "tiny-shakespeare"), a synthetic task ("markov", "repeated-random"), or a path of a
    text file or folder. `model.d_vocab` is ignored: it follows the tokenizer. Losses are in nats per token.
    Raises ConfigError for values that describe no run, naming the field.
    """

    data: str = "python-docs"
    tokenizer: str = "char"  # char, byte, gpt2, or a BPE trained on the text: bpe:4096 and the like
    order: Order = "random"  # of a text's windows: each drawn anew, or each once before any comes again
    documents: Documents = "across"  # "aligned": windows begin where a document does; "masked": and documents are kept apart
    resident: bool = False  # all tokens on the GPU, where batches are put together
    model: GPT2Config = field(default_factory=lambda: GPT2Config(n_layers=4, n_heads=4, d_model=128, n_ctx=128))

    n_steps: int = 1000
    batch_size: int = 16  # sequences of model.n_ctx tokens in one update, on all devices together
    micro_batch: int | str | None = None  # sequences at once; "auto": as many as fit, halving; None: the whole batch
    seed: int = 0  # of the weights, the batches and dropout

    lr: float = 1e-3
    min_lr: float = 1e-4  # where "cosine" and "wsd" end; "constant" does not use it
    warmup_steps: int = 100
    schedule: Schedule = "cosine"
    decay_fraction: float = 0.2  # of n_steps, the last ones, in which "wsd" falls to min_lr
    decay_shape: DecayShape = "1-sqrt"
    optimizer: Optimizer = "adamw"  # "muon" for the blocks' matrices, AdamW for the rest
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1  # of matrices and embeddings; biases and layer norms are not decayed, as in nanoGPT
    grad_clip: float = 1.0  # largest norm of the gradient; 0 does not clip; the norm is logged either way
    guard_z: float = 0.0  # an update whose loss or gradient norm lies so many sigma above the last ones'; 0: no guard
    guard_window: int = 128  # updates it is held against
    guard_action: GuardAction = "skip"  # leave the weights as they are, or only note it

    precision: Precision = "auto"
    compile: bool = False
    device: str = "auto"  # "auto" is a GPU when there is one
    threads: int | None = None  # CPU threads; None leaves torch's own choice
    parallel: Parallel = "auto"  # several processes: each with the whole model ("ddp"), or a share of it ("fsdp"; large ones)

    log_every: int = 10
    eval_every: int = 250  # the first and the last step are always evaluated
    online: tuple[str, ...] = ()  # analyses (analysis.registry) whose rows are logged while training
    online_every: int = 100
    sample_tokens: int = 0  # sampled at every scheduled checkpoint; 0: none
    sample_prompt: str = ""  # empty: the beginning of the held-out split
    tracking: Tracking = "none"  # mirrors metrics.jsonl, which stays the truth
    checkpoints: Checkpoints = field(default_factory=Checkpoints)

    def __post_init__(self) -> None:
        _freeze_lists(self)
        _check_types(self)
        self._check_ranges()

    def _check_ranges(self) -> None:
        for name in ("n_steps", "batch_size", "log_every", "eval_every", "online_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("seed", "min_lr", "warmup_steps", "weight_decay", "grad_clip", "guard_z", "sample_tokens"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be a number from 0")
        if self.seed >= 2**64:
            raise ConfigError(f"seed={self.seed} must be below 2^64")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr={self.lr} must be greater than 0")
        if self.min_lr > self.lr and self.schedule != "constant":
            raise ConfigError(f"min_lr={self.min_lr} is greater than lr={self.lr}; {self.schedule} falls from lr to min_lr")
        if len(self.betas) != 2 or not all(_fits(beta, float) and 0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas={self.betas} must be two numbers from 0 to below 1")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads={self.threads} must be at least 1; leave it out for torch's own choice")

        self._check_ranges_of_parts()

    def _check_ranges_of_parts(self) -> None:
        if not re.fullmatch(r"char|byte|gpt2|bpe:[1-9]\d*", self.tokenizer):
            raise ConfigError(f"tokenizer={self.tokenizer!r} is not char, byte, gpt2 or bpe:N with a number of tokens N")
        if self.micro_batch not in (None, "auto") and not (_fits(self.micro_batch, int) and self.micro_batch >= 1):
            raise ConfigError(f"micro_batch={self.micro_batch!r} must be a number of sequences from 1, or 'auto'")
        if not 0 <= self.decay_fraction <= 1:
            raise ConfigError(f"decay_fraction={self.decay_fraction} must be from 0 to 1, a share of n_steps")
        if self.guard_window < 2:
            raise ConfigError(f"guard_window={self.guard_window} must be at least 2 updates, to have a spread")
        for name in self.online:
            if not isinstance(name, str):
                raise ConfigError(f"online holds {name!r}; it lists the names of analyses")

    @property
    def tokens_per_step(self) -> int:
        """Positions in one update; with documents="masked" the first token of each document is not predicted."""
        return self.batch_size * self.model.n_ctx

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, ready for JSON: tuples become lists."""
        return _lists(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The config with these fields, as in a recipe file. Raises ConfigError for an unknown one, naming the nearest."""
        refuse_unknown_fields(cls, values)
        values = dict(values)
        if isinstance(values.get("model"), Mapping):
            values["model"] = GPT2Config.from_dict(dict(values["model"]))
        if isinstance(values.get("checkpoints"), Mapping):
            refuse_unknown_fields(Checkpoints, values["checkpoints"])
            values["checkpoints"] = Checkpoints(**values["checkpoints"])
        return cls(**values)


# ---------------------------------------------------------------------------------------------------------------------
# Recipes: configs as small TOML files.

RECIPES: dict[str, str] = {
    "demo-text": "a character model of CPython's documentation, 2 to 3 minutes on one core",
    "demo-induction": "in-context Markov chains, on which induction heads form, 1 to 2 minutes on one core",
    "demo-induction-ordinary-positions": "control: the same with GPT-2's own initial positions",
    "demo-induction-one-layer": "control: the same with one layer, too few for an induction head",
    "tiny-shakespeare-cpu": "nanoGPT's Shakespeare recipe for a laptop without a GPU",
    "tiny-shakespeare": "nanoGPT's Shakespeare recipe for a GPU, 10.7 million parameters",
    "tinystories": "a small model of short stories, 327 million tokens of them",
    "fineweb-edu-124m": "GPT-2 small on 10 billion tokens, for a GPU of 80 GB",
    "pythia-like": "Pythia-70m's shape and its 154 checkpoints",
    "text": "a small character model of any text: the default for your own",
}


def load_recipe(name: str) -> TrainConfig:
    """The recipe called `name` (RECIPES lists them), or the one in a TOML file at that path.

    Raises ConfigError if there is none, if it is not TOML, or if it describes no run.
    """
    if name in RECIPES:
        text = (files("interp_gpt2.training") / "recipes" / f"{name}.toml").read_text("utf-8")
    elif name.endswith(".toml") and Path(name).is_file():
        text = Path(name).read_text("utf-8")
    else:
        nearest = get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(RECIPES)}, or the path of a .toml file"
        raise ConfigError(f"there is no recipe {name!r}; {hint}")
    try:
        return TrainConfig.from_dict(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------


def _check_types(config: object) -> None:
    """Raises ConfigError for a field whose value is of another kind than its annotation: a TOML file may hold anything."""
    for f in fields(config):
        value = getattr(config, f.name)
        if get_origin(f.type) is Literal:
            if value not in get_args(f.type):
                raise ConfigError(f"{f.name}={value!r} is not one of {', '.join(get_args(f.type))}")
        elif not _fits(value, f.type):
            raise ConfigError(f"{f.name}={value!r} is not of type {getattr(f.type, '__name__', f.type)}")


def _fits(value: object, annotation: Any) -> bool:
    if isinstance(value, bool):
        return annotation is bool  # Python counts True as an int
    if annotation is float:
        return isinstance(value, (int, float))
    return isinstance(value, tuple if get_origin(annotation) is tuple else annotation)


def _freeze_lists(config: object) -> None:
    """TOML and JSON have lists where a frozen dataclass has tuples."""
    for f in fields(config):
        if isinstance(getattr(config, f.name), (list, tuple)):
            object.__setattr__(config, f.name, _tuples(getattr(config, f.name)))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lists(item) for name, item in value.items()}
    return list(map(_lists, value)) if isinstance(value, tuple) else value
