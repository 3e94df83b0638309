"""From what a user calls a run or a model to the thing itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interp_gpt2.errors import RunError

if TYPE_CHECKING:
    from interp_gpt2.model import GPT2
    from interp_gpt2.runs.run import Run
    from interp_gpt2.tokenizers import Tokenizer

RUNS = Path("checkpoints")
_RECORD = "run.json"


@dataclass(frozen=True)
class Opened:
    """A model with its tokenizer; `title` is how its origin is shown, `run` the run it came from, if any."""

    model: "GPT2"
    tokenizer: "Tokenizer"
    title: str
    run: "Run | None"
    step: int | None


def find_run(text: str) -> tuple["Run", int | None]:
    """The run called `text`, and the step if `text` is one of its checkpoints.

    `text` is a run's directory, a checkpoint's directory, or the name of a run under checkpoints/; or models that others
    trained: a folder of folders named after steps, nanoGPT's output folder, or a repository on the Hub, someone/name.
    """
    from interp_gpt2.runs.foreign import step_directories
    from interp_gpt2.runs.hub import is_hub_name
    from interp_gpt2.runs.manifest import step_of_name
    from interp_gpt2.runs.run import Run

    for path in (Path(text), RUNS / text):
        step = step_of_name(path.name)
        if (path / _RECORD).is_file():
            return Run(path), None
        if step is not None and path.is_dir() and (path.parent / _RECORD).is_file():
            return Run(path.parent), step
    if folders := step_directories(Path(text)):
        return Run.from_directories(folders), None
    if any(Path(text).glob("*.pt")):
        return Run.from_nanogpt(text), None
    if "/" in text and is_hub_name(text) and not Path(text).exists():
        try:
            return Run.from_hub(text), None
        except RunError as error:
            raise RunError(f"there is no directory {text}; as a name on the Hub: {error}") from error
    raise RunError(f"there is no run {text!r}: {_nearby()}")


def find_step(run: "Run", wanted: int | None, implied: int | None) -> int:
    """The step asked for, else the one that the path implies, else the last."""
    steps = run.steps
    step = wanted if wanted is not None else implied
    if not steps:
        raise RunError(f"{run.path} has no checkpoints yet")
    if step is not None and step not in steps:
        nearest = min(steps, key=lambda known: abs(known - step))
        raise RunError(f"{run.name} has no checkpoint at step {step}; the nearest is {nearest}, the last {steps[-1]}")
    return steps[-1] if step is None else step


def open_model(text: str, step: int | None = None) -> Opened:
    """The model and tokenizer of a run, a checkpoint, any directory that `GPT2.from_pretrained` reads, or a published size.

    A published size, such as "gpt2", comes from the local Hub cache or the Hub, unless a directory or a run has its name.
    """
    from interp_gpt2.config import SIZES
    from interp_gpt2.model import GPT2
    from interp_gpt2.tokenizers import load_tokenizer, tokenizer_named

    directory = Path(text)
    foreign = (directory / "config.json").is_file() and not (directory.parent / _RECORD).is_file()
    if foreign:
        if step is not None:
            raise RunError(f"{text} is one model, not a run; it has no step {step}")
        return Opened(GPT2.from_pretrained(text), load_tokenizer(directory), str(directory), None, None)
    if text in SIZES and not directory.is_dir() and not (RUNS / text).is_dir():
        if step is not None:
            raise RunError(f"{text} is one model, not a run; it has no step {step}")
        return Opened(GPT2.from_pretrained(text), tokenizer_named("gpt2"), text, None, None)
    run, implied = find_run(text)
    step = find_step(run, step, implied)
    run.check_tokenizer(step)
    return Opened(run.model(step), run.tokenizer(), f"{run.name}, step {step:,}", run, step)


def recomputed(text: str, step: int | None) -> Opened:
    """The model of a run at any step, trained again from the nearest checkpoint before it."""
    from interp_gpt2.cli.parse import UsageError

    run, implied = find_run(text)
    step = implied if step is None else step
    if step is None:
        raise UsageError("--recompute needs --step, the step to train again up to")
    return Opened(run.recompute(step), run.tokenizer(), f"{run.name}, step {step:,}, trained again", run, step)


def _nearby() -> str:
    if not RUNS.is_dir():
        return f"it is no directory with a {_RECORD}, and there is no {RUNS}/ here (`interp-gpt2 demo` makes two runs there)"
    names = sorted(path.parent.name for path in RUNS.glob(f"*/{_RECORD}"))
    return f"it is no directory with a {_RECORD}; under {RUNS}/ there are {', '.join(names) or 'none'}"
