"""Runs that were not trained here: models at steps, from the Hub, from nanoGPT, from any directories.

They read as any `Run` does. What only the trainer knew (its settings, seed, data, metrics) is refused by name.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from interp_gpt2.config import ActFn, GPT2Config
from interp_gpt2.convert.nanogpt import nanogpt_header
from interp_gpt2.errors import CheckpointError, ConversionError, DataError, RunError
from interp_gpt2.files import user_cache_dir
from interp_gpt2.runs.hub import list_steps, repository, step_in_name
from interp_gpt2.runs.manifest import CONFIG, MANIFEST, read_manifest
from interp_gpt2.runs.places import Directory, NanoGPTFile, OnHub, Place
from interp_gpt2.runs.run import Run, VerifiedStep

if TYPE_CHECKING:
    from interp_gpt2.data.source import Source
    from interp_gpt2.model import GPT2
    from interp_gpt2.tokenizers import Tokenizer


@dataclass(frozen=True)
class ForeignRun(Run):
    """Models at steps. `path` is where they lie; `note` says, in messages, what the list of steps rests on."""

    title: str
    places: tuple[tuple[int, Place], ...]
    given_tokenizer: "Tokenizer | None" = field(default=None, compare=False, repr=False)
    note: str = ""

    def __post_init__(self) -> None:
        if not self.places:
            raise RunError(f"{self.title} has no checkpoints")

    def __repr__(self) -> str:
        steps = self.steps
        return f"ForeignRun({self.title!r}, {len(steps)} steps from {steps[0]} to {steps[-1]})"

    @property
    def results(self) -> Path:
        """In the user's cache: the models' own folder may be read-only, or the Hub's."""
        plain = re.sub(r"[^\w.-]+", "-", self.title).strip("-.")[-60:]
        return user_cache_dir() / "sweeps" / f"{plain}-{hashlib.sha256(str(self.path).encode()).hexdigest()[:8]}"

    @property
    def name(self) -> str:
        return self.title

    @property
    def settings(self) -> dict[str, Any]:
        self._refuse("settings")

    @property
    def seed(self) -> int:
        self._refuse("seed")

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.places]

    def checkpoint(self, step: int | None = None) -> Path:
        return self._place(step).directory()

    def model(self, step: int | None = None) -> "GPT2":
        return self._place(step).model()

    def recompute(self, step: int, anyway: bool = False) -> "GPT2":
        self._refuse("settings, from which a step could be trained again")

    def config_at(self, step: int | None = None) -> GPT2Config:
        return self._place(step).config()

    def tokenizer_sha256_at(self, step: int) -> str | None:
        return self._place(step).tokenizer_sha256()

    @property
    def tokenizer_sha256(self) -> str | None:
        """Of the last step's file; None also for a tokenizer that was given: it is for all steps."""
        return self._place(None).tokenizer_sha256() if self.given_tokenizer is None else None

    def tokenizer(self) -> "Tokenizer":
        """The one that was given, or else that of the last step."""
        return self._place(None).tokenizer() if self.given_tokenizer is None else self.given_tokenizer

    def source(self) -> "Source":
        raise DataError(f"{self.name} was not trained here: what text it was trained on is not known")

    def metrics(self) -> list[dict[str, Any]]:
        self._refuse("metrics")

    def tokens_seen(self, step: int) -> int:
        """Known only where one of our manifests says it. Raises RunError elsewhere."""
        place = self._place(step)
        if not isinstance(place, Directory) or not (place.path / MANIFEST).is_file():
            self._refuse("tokens seen at a step")
        tokens = read_manifest(place.path).tokens_seen
        return self._refuse("tokens seen at a step") if tokens is None else tokens

    def checkpoint_hash(self, step: int) -> str:
        """A hash that names the model at a step: of its files, or on the Hub of the commit, which names them."""
        return self._place(step).sha256()

    def checkpoint_stamp(self, step: int) -> str:
        return self._place(step).stamp()

    def newest_verified_step(self, resumable: bool = False) -> VerifiedStep:
        self._refuse("manifests, which would tell whole checkpoints from damaged ones, nor a state to resume from")

    def verify(self, step: int) -> None:
        """Nothing vouches for the weights, which may not be here yet: the config alone is read."""
        self.config_at(step)

    def without(self, steps: Iterable[int]) -> "ForeignRun":
        left_out = set(steps)
        return replace(self, places=tuple((step, place) for step, place in self.places if step not in left_out))

    def _place(self, step: int | None) -> Place:
        return dict(self.places)[self._known(step)]

    def _known(self, step: int | None) -> int:
        try:
            return super()._known(step)
        except RunError as error:
            raise RunError(f"{str(error).replace(str(self.path), self.title, 1)}{self.note}") from None

    def _refuse(self, what: str) -> NoReturn:
        raise RunError(f"{self.name} was not trained here: it has no {what}")


def hub_run(
    repo: str,
    steps: Iterable[int] | None = None,
    revision: str | None = None,
    cache_dir: Path | str | None = None,
    tokenizer: "Tokenizer | None" = None,
) -> ForeignRun:
    """The models of a repository on the Hugging Face Hub whose branches, tags or folders are steps.

    Such as "stanford-crfm/alias-gpt2-small-x21", with `checkpoint-1000`, `step1000` and the like. Nothing is downloaded
    until a model is asked for, and then only that model's config and weights. `steps`: these alone, without asking the Hub
    where the local cache has them all. `revision`: the branch whose folders are steps (main unless given).
    Raises RunError: no such repository, no steps in it, or no network and none in the cache.
    """
    cache = None if cache_dir is None else Path(cache_dir).expanduser().absolute()
    listing = list_steps(repo, steps, revision, cache)
    places = tuple((step, OnHub(at)) for step, at in listing.steps.items())
    return ForeignRun(repository(repo, cache), repo, places, tokenizer, listing.note)


def nanogpt_run(
    path: Path | str, d_vocab: int | None = None, act_fn: ActFn = "gelu", tokenizer: "Tokenizer | None" = None
) -> ForeignRun:
    """The checkpoints in an output folder of nanoGPT: ckpt.pt, or several under other names, or one file.

    Steps are the `iter_num` that each file holds; `d_vocab` and `act_fn` are as in `load_nanogpt`. A damaged file stands at
    the number in its name, to be refused when it is read; a copy of another is passed over. Raises RunError for none, or two
    models of one step.
    """
    path = Path(path).expanduser().absolute()  # a sweep's workers may have another working directory
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise RunError(f"there is no nanoGPT checkpoint (ckpt.pt) at {path}")
    places: list[tuple[int, Place]] = []
    for file in files:
        step, place = _nanogpt_step(file), NanoGPTFile(file, d_vocab, act_fn)
        if not any(step == known and place.sha256() == its.sha256() for known, its in places):
            places.append((step, place))
    return ForeignRun(path, path.resolve().name, _distinct(places), tokenizer)


def directories_run(
    paths: Iterable[Path | str],
    steps: Sequence[int] | None = None,
    name: str | None = None,
    tokenizer: "Tokenizer | None" = None,
) -> ForeignRun:
    """Models in directories, one for each step: of Hugging Face's or our kind, or files and folders of nanoGPT's.

    `steps` are the paths' in order; None takes them from the names (checkpoint-1000, step1000, step-00001000). `name` is the
    folder that they share unless given. Raises RunError for a path that is not there, names no step, or doubles one.
    """
    found = [Path(path).expanduser().absolute() for path in paths]
    if not found:
        raise RunError("there are no directories to make a run of")
    if steps is None:
        steps = [_step_of(path) for path in found]
    if len(steps) != len(found):
        raise RunError(f"{len(found)} directories cannot be at {len(steps)} steps; give one step for each")
    if wrong := [step for step in steps if type(step) is not int or step < 0]:
        raise RunError(f"{wrong[0]!r} is no step; steps are whole numbers of at least 0")
    places = [(step, _place_of(path)) for step, path in zip(steps, found, strict=True)]
    parents = {path.resolve().parent for path in found}
    parent = parents.pop() if len(parents) == 1 else Path.cwd()
    return ForeignRun(parent, name or parent.name, _distinct(places), tokenizer)


def step_directories(folder: Path) -> list[Path]:
    """Folders of models in `folder` that are named after steps, for `directories_run`."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if step_in_name(path.name) is not None and (path / CONFIG).is_file()]


def _step_of(path: Path) -> int:
    step = step_in_name(path.name.removesuffix(".pt"))
    if step is None:
        raise RunError(f"{path} names no step, as checkpoint-1000 and step1000 do; pass steps=")
    return step


def _place_of(path: Path) -> Place:
    if path.is_file():
        return NanoGPTFile(path)
    if not path.is_dir():
        raise RunError(f"there is no directory {path}")
    files = [] if (path / CONFIG).exists() else sorted(path.glob("*.pt"))
    return NanoGPTFile(files[0]) if len(files) == 1 else Directory(path)


def _nanogpt_step(path: Path) -> int:
    numbers = re.findall(r"\d+", path.stem)
    try:
        return nanogpt_header(path).step
    except (CheckpointError, ConversionError):
        if not numbers:
            raise
        return int(numbers[-1])


def _distinct(places: Sequence[tuple[int, Place]]) -> tuple[tuple[int, Place], ...]:
    by_step: dict[int, Place] = {}
    for step, place in places:
        if step in by_step:
            raise RunError(
                f"step {step} is there twice: {by_step[step].path} and {place.path} are two models; "
                "Run.from_directories takes the paths of those you mean"
            )
        by_step[step] = place
    return tuple(sorted(by_step.items()))
