"""A run's checkpoints to the Hugging Face Hub: a branch for each step, with the files that transformers loads."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interp_gpt2.errors import RunError
from interp_gpt2.runs.checkpoint import verify_checkpoint
from interp_gpt2.runs.hub import MAIN, first_line, is_name
from interp_gpt2.runs.manifest import CONFIG, NATIVE_WEIGHTS, TOKENIZER_FILES, FileEntry
from interp_gpt2.runs.run import Run

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Upload:
    """The files of one step, verified, and the branch that they go to."""

    step: int
    branch: str
    directory: Path
    files: dict[str, FileEntry]

    @property
    def n_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())

    @property
    def for_transformers(self) -> bool:
        """False for a model that Hugging Face's GPT-2 cannot compute, and `Run.from_hub` can."""
        return NATIVE_WEIGHTS not in self.files


@dataclass(frozen=True)
class Pushed:
    """What became of an upload: new, or already there with the same bytes."""

    upload: Upload
    written: bool


def uploads(run: Run, steps: Sequence[int] | None = None, also_main: bool = False) -> list[Upload]:
    """What pushing would write, after every byte of it has been checked; nothing is asked of the Hub.

    Branches are called step0, step1000, ...; `also_main` puts the last of them on the main branch too. Model and tokenizer
    alone: what training resumes from stays here. Raises RunError for a step that is not there, CheckpointError.
    """
    chosen = list(run.steps if steps is None else sorted(set(steps)))
    if not chosen:
        raise RunError(f"{run.name} has no checkpoints to push")
    found = []
    for step in chosen:
        directory = run.checkpoint(step)
        manifest = verify_checkpoint(directory)
        files = {name: entry for name, entry in manifest.files.items() if name in (CONFIG, manifest.weights, *TOKENIZER_FILES)}
        found.append(Upload(step, f"step{step}", directory, files))
    last = found[-1]
    return [*found, Upload(last.step, MAIN, last.directory, last.files)] if also_main else found


def push(planned: Sequence[Upload], repo: str, private: bool = False, api: "HfApi | None" = None) -> Iterator[Pushed]:
    """Write the uploads, one commit each, telling of each when it is there; the repository is made if need be.

    What is there already with the same bytes is left alone, so that a push that was cut short goes on. Raises RunError
    naming the step where the Hub refuses or cannot be reached; the branches before it are whole.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    if not is_name(repo):
        raise RunError(f"{repo!r} is no name for a repository on the Hugging Face Hub, such as someone/my-run")
    api = HfApi() if api is None else api
    at = "before the first step"
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        refs = api.list_repo_refs(repo)
        branches = {ref.name for ref in refs.branches}
        for upload in planned:
            at = f"at step {upload.step}"
            if upload.branch not in branches:
                api.create_branch(repo, branch=upload.branch)
                branches.add(upload.branch)
            yield Pushed(upload, _write(api, repo, upload))
    except (HTTPError, OSError) as error:
        raise RunError(f"pushing to {repo} stopped {at}: {first_line(error)}; the same push goes on from there") from error


def _write(api: "HfApi", repo: str, upload: Upload) -> bool:
    """Commit the files that are not there yet, all at once; False if they all are."""
    from huggingface_hub import CommitOperationAdd

    there = {found.path: found for found in api.get_paths_info(repo, list(upload.files), revision=upload.branch)}
    missing = [name for name in upload.files if name not in there or not _same(there[name], upload, name)]
    if missing:
        operations = [CommitOperationAdd(name, str(upload.directory / name)) for name in missing]
        api.create_commit(repo, operations, commit_message=f"Step {upload.step}", revision=upload.branch)
    return bool(missing)


def _same(remote: object, upload: Upload, name: str) -> bool:
    """Large files are told by their SHA-256, small ones by git's hash of them."""
    if (lfs := getattr(remote, "lfs", None)) is not None:
        return lfs.sha256 == upload.files[name].sha256
    data = (upload.directory / name).read_bytes()
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
