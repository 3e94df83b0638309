"""`interp-gpt2 push`: a run's checkpoints to the Hugging Face Hub."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from interp_gpt2.cli.parse import UsageError, option

EXAMPLES = (
    "interp-gpt2 push demo-text --repo someone/demo-text --dry-run",
    "interp-gpt2 push demo-text --repo someone/demo-text --private",
)


@dataclass(frozen=True)
class Push:
    """Write a run to the Hugging Face Hub, a branch for each step: step0, step1000, ...

    Each holds the model and its tokenizer as transformers loads them (revision="step1000"), and Run.from_hub reads them
    all. What is already there with the same bytes is left alone. Needs a token that may write (hf auth login).
    """

    source: Annotated[tyro.conf.Positional[str], option("RUN")]
    """A run, or one of its checkpoints."""
    repo: Annotated[str, option("NAME")]
    """The repository, such as someone/my-run; it is made if it is not there."""
    steps: Annotated[str | None, option("STEPS")] = None
    """Some steps, separated by commas; all of them unless given."""
    main: bool = False
    """Put the last of these steps on the main branch too, which is loaded where no revision is named."""
    private: bool = False
    """If the repository is made, make it private."""
    dry_run: bool = False
    """Check every file, say what would be written, and ask nothing of the Hub."""

    def run(self) -> None:
        from interp_gpt2.cli.where import find_run
        from interp_gpt2.runs.hub import is_name
        from interp_gpt2.runs.push import push, uploads

        if not is_name(self.repo):
            raise UsageError(f"--repo takes a name such as someone/my-run, not {self.repo!r}")
        run, implied = find_run(self.source)
        steps = chosen_steps(self.steps) if self.steps is not None else None if implied is None else [implied]
        planned = uploads(run, steps, self.main)
        size = f"{sum(upload.n_bytes for upload in planned) / 1e6:,.1f} MB"
        if self.dry_run:
            for upload in planned:
                print(f"{upload.branch}: {', '.join(sorted(upload.files))} ({upload.n_bytes / 1e6:,.1f} MB)")
            print(f"would write {len(planned)} branches, {size}, to {self.repo}")
        else:
            for pushed in push(planned, self.repo, self.private):
                print(f"{pushed.upload.branch}: {'written' if pushed.written else 'already there'}", flush=True)
            print(f"{run.name} is at https://huggingface.co/{self.repo}, {len(planned)} branches, {size}")
        if not planned[-1].for_transformers:
            print("its shape is none that transformers has: Run.from_hub loads it, GPT2LMHeadModel does not")


def chosen_steps(text: str) -> list[int]:
    """Steps separated by commas."""
    words = [word.strip() for word in text.split(",")]
    if wrong := [word for word in words if not (word.isascii() and word.isdigit())]:
        raise UsageError(f"--steps takes whole numbers separated by commas, not {wrong[0]!r}")
    return [int(word) for word in words]
