"""Run: a directory of checkpoints, and what was seen on the way.

    run.json                          everything needed to repeat it: "config" (the training config, with its seed),
                                      "data" (the source's fingerprint), versions and whatever else the trainer notes
    tokenizer.json, tokenizer_config.json
    metrics.jsonl                     one line per logged step
    step-00000000/, step-00000001/, step-00000002/, ...

Reading only; what a trainer does to a run is in writing.py. Models at steps that others trained have the same face: see
foreign.py.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_gpt2.config import ActFn, GPT2Config
from interp_gpt2.convert.huggingface import model_of_state
from interp_gpt2.errors import CheckpointError, DataError, RunError
from interp_gpt2.runs.checkpoint import load_config, load_weights, verify_checkpoint
from interp_gpt2.runs.manifest import TOKENIZER_FILES, Manifest, read_manifest, step_name, step_of_name
from interp_gpt2.runs.metrics import read_metrics
from interp_gpt2.runs.strict_json import parse

if TYPE_CHECKING:
    from interp_gpt2.data.source import Source
    from interp_gpt2.model import GPT2
    from interp_gpt2.tokenizers import Tokenizer

SETTINGS = "run.json"
RUN_FORMAT = "interp_gpt2 run 1"


@dataclass(frozen=True)
class VerifiedStep:
    """The newest step whose checkpoint is whole, and for each newer one that is not, in one line, why."""

    step: int
    skipped: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Run:
    """A training run on disk: `run.steps`, `run.model(step)`, `run.metrics()`.

    Nothing is kept in memory: each call looks at the directory, which may still be growing. Raises RunError for a
    directory that is not a run.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path).expanduser())
        if not (self.path / SETTINGS).is_file():
            raise RunError(_not_a_run(self.path))

    @staticmethod
    def from_hub(
        repo: str,
        steps: Iterable[int] | None = None,
        revision: str | None = None,
        cache_dir: Path | str | None = None,
        tokenizer: "Tokenizer | None" = None,
    ) -> "Run":
        """A repository on the Hugging Face Hub whose branches, tags or folders are steps: see foreign.hub_run."""
        from interp_gpt2.runs.foreign import hub_run

        return hub_run(repo, steps, revision, cache_dir, tokenizer)

    @staticmethod
    def from_nanogpt(
        path: Path | str, d_vocab: int | None = None, act_fn: ActFn = "gelu", tokenizer: "Tokenizer | None" = None
    ) -> "Run":
        """An output folder of nanoGPT, with one checkpoint or several: see foreign.nanogpt_run."""
        from interp_gpt2.runs.foreign import nanogpt_run

        return nanogpt_run(path, d_vocab, act_fn, tokenizer)

    @staticmethod
    def from_directories(
        paths: Iterable[Path | str],
        steps: Sequence[int] | None = None,
        name: str | None = None,
        tokenizer: "Tokenizer | None" = None,
    ) -> "Run":
        """Directories of models, one for each step: see foreign.directories_run."""
        from interp_gpt2.runs.foreign import directories_run

        return directories_run(paths, steps, name, tokenizer)

    @property
    def results(self) -> Path:
        """The folder where sweeps keep their results unless told otherwise."""
        return self.path / "sweeps"

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        """run.json. Raises RunError if it is damaged."""
        path = self.path / SETTINGS
        try:
            settings = parse(path.read_bytes(), path)
        except CheckpointError as error:
            raise RunError(str(error)) from error
        if settings.get("format") != RUN_FORMAT:
            raise RunError(f"{path} has format {settings.get('format')!r}, not {RUN_FORMAT!r}")
        return settings

    @property
    def seed(self) -> int:
        """The seed that the weights, the batches and everything else drawn came from."""
        return self._trained_with("seed")

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        found = (step_of_name(path.name) for path in self.path.iterdir() if path.is_dir())
        return sorted(step for step in found if step is not None)

    def checkpoint(self, step: int | None = None) -> Path:
        """The directory of the checkpoint at a step (None: the last). Raises RunError naming the nearest steps there are."""
        return self.path / step_name(self._known(step))

    def model(self, step: int | None = None) -> "GPT2":
        """The model at a step (None: the last), verified, in eval mode on the CPU.

        Raises CheckpointError naming the file if the checkpoint is not what was written: never another step's model.
        """
        return model_of_state(*load_weights(self.checkpoint(step)))

    def recompute(self, step: int, anyway: bool = False) -> "GPT2":
        """The model at any step, stored or not, bit for bit: see training.recompute. `anyway` on another machine too."""
        from interp_gpt2.training.recompute import recompute

        return recompute(self, step, anyway)

    @property
    def config(self) -> GPT2Config:
        """The model's shape, from the last checkpoint."""
        return self.config_at()

    def config_at(self, step: int | None = None) -> GPT2Config:
        """The shape of the model at a step (None: the last), from its config.json alone. Raises CheckpointError."""
        return load_config(self.checkpoint(step))

    def tokenizer_sha256_at(self, step: int) -> str | None:
        """SHA-256 of the tokenizer's file beside the model at a step, to tell tokenizers apart; None where there is none."""
        entry = self._manifest(step).files.get(TOKENIZER_FILES[0])
        return None if entry is None else entry.sha256

    @property
    def tokenizer_sha256(self) -> str | None:
        """SHA-256 of the file that `tokenizer` reads, to be compared with that of a step. None where there is none."""
        path = self.path / TOKENIZER_FILES[0]
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None

    def tokenizer(self) -> "Tokenizer":
        from interp_gpt2.tokenizers import load_tokenizer

        return load_tokenizer(self.path)

    def check_tokenizer(self, step: int) -> None:
        """Raises RunError for a step with another tokenizer than the run's: the run's data and prompts are not in its tokens."""
        ours, its = self.tokenizer_sha256, self.tokenizer_sha256_at(step)
        if ours is not None and its is not None and ours != its:
            raise RunError(
                f"step {step} of {self.name} has another tokenizer ({its[:12]}...) than the run ({ours[:12]}...): the same "
                f"tokens mean something else to it; copy {self.checkpoint(step)} out of the run to look at it by itself"
            )

    def source(self) -> "Source":
        """The data it was trained on, checked by hash. Raises DataError if it is not the same any more."""
        from interp_gpt2.data.source import Sampling, load_source

        config = self.settings["config"]
        sampling = Sampling(config.get("order", "random"), config.get("documents", "across"))  # older runs do not say
        source = load_source(self._trained_with("data"), self._trained_with("tokenizer"), sampling=sampling)
        recorded, found = self.settings.get("data"), source.fingerprint()
        for name, value in recorded.items() if isinstance(recorded, dict) else ():
            if name.endswith("sha256") and found.get(name) != value:
                version = str(recorded.get("python")).split()[0]
                why = f" (CPython's documentation differs by version: it was {version})" * (source.name == "python-docs")
                raise DataError(
                    f"{source.name} is not what {self.name} was trained on: {name} is {str(found.get(name))[:12]}..., was "
                    f"{str(value)[:12]}...{why}"
                )
        return source

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl, as written."""
        return read_metrics(self.path)

    def tokens_seen(self, step: int) -> int:
        """Tokens trained on before this checkpoint."""
        tokens_seen = self._manifest(step).tokens_seen
        if tokens_seen is None:
            raise CheckpointError(f"{self.checkpoint(step)} does not say how many tokens it has seen")
        return tokens_seen

    def checkpoint_hash(self, step: int) -> str:
        """SHA-256 of the model at a step: of its config and weights, as the manifest has them."""
        return self._manifest(step).model_sha256

    def checkpoint_stamp(self, step: int) -> str:
        """Another string once the model at a step is replaced, told without reading it: for who has its hash already."""
        return self.checkpoint_hash(step)

    def newest_verified_step(self, resumable: bool = False) -> VerifiedStep:
        """The last step whose checkpoint is whole to the byte, scanning from the newest; what is skipped is said.

        `resumable`: the last that training can go on from; those that hold weights only are passed over.
        Raises RunError if there is none.
        """
        skipped = []
        for step in reversed(self.steps):
            try:
                manifest = read_manifest(self.checkpoint(step))
                if not resumable or manifest.can_resume:
                    verify_checkpoint(self.checkpoint(step))
                    return VerifiedStep(step, tuple(skipped))
            except CheckpointError as error:
                skipped.append((step, str(error)))
        what = "training can resume from" if resumable else "is whole"
        refused = "".join(f"; {reason}" for _, reason in skipped[:3])
        raise RunError(f"{self.path} has no checkpoint that {what}, among {len(self.steps)}{refused}")

    def verify(self, step: int) -> None:
        """Read every byte of a checkpoint. Raises CheckpointError naming the file that is not as it was written."""
        verify_checkpoint(self.checkpoint(step))

    def without(self, steps: Iterable[int]) -> "Run":
        """The same run, as if it had no checkpoints at these steps."""
        return RunWithout(self.path, frozenset(steps))

    def _known(self, step: int | None) -> int:
        """The step, or the last one for None. Raises RunError naming the nearest steps there are."""
        steps = self.steps
        if not steps:
            raise RunError(f"{self.path} has no checkpoints yet")
        step = steps[-1] if step is None else step
        if step not in steps:
            below = [s for s in steps if s < step][-1:]
            above = [s for s in steps if s > step][:1]
            nearest = " and ".join(str(s) for s in below + above)
            raise RunError(f"{self.path} has no checkpoint at step {step!r}; the nearest: {nearest} ({len(steps)} in all)")
        return step

    def _manifest(self, step: int) -> Manifest:
        return read_manifest(self.checkpoint(step))

    def _trained_with(self, field: str) -> Any:
        config = self.settings.get("config")
        if not isinstance(config, dict) or field not in config:
            raise RunError(f'{self.path / SETTINGS} has no {field!r} under "config"')
        return config[field]


@dataclass(frozen=True)
class RunWithout(Run):
    """A run of which some checkpoints are left out: see Run.without."""

    left_out: frozenset[int]

    @property
    def steps(self) -> list[int]:
        return [step for step in super().steps if step not in self.left_out]

    def without(self, steps: Iterable[int]) -> Run:
        return RunWithout(self.path, self.left_out.union(steps))


def _not_a_run(path: Path) -> str:
    if not path.exists():
        return f"there is no run at {path}"
    if step_of_name(path.resolve().name) is not None:
        return f"{path} is one checkpoint; its run is {path.parent}"
    if not path.is_dir():
        return f"{path} is a file; a run is a directory with {SETTINGS}"
    runs = sorted(child.name for child in path.iterdir() if (child / SETTINGS).is_file())
    inside = f"; it holds the runs {', '.join(runs[:5])}{', ...' if len(runs) > 5 else ''}" if runs else ""
    return f"{path} is not a run: it has no {SETTINGS}{inside}"
