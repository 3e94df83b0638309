"""Models on the Hugging Face Hub, by way of its local cache: which steps a repository has, and one step's files on disk.

A repository of checkpoints has a branch or tag for each step, as Stanford's and Pythia's do (`checkpoint-1000`, `step1000`),
or a folder. What the cache has is never asked for on the network, and nothing is downloaded but the files of a step that
somebody loads: its config and its weights, no code.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from interp_gpt2.errors import CheckpointError, RunError
from interp_gpt2.runs.manifest import CONFIG, HF_WEIGHTS, NATIVE_WEIGHTS, TOKENIZER_FILES
from interp_gpt2.runs.strict_json import parse

INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
MAIN = "main"
ANSWER_WITHIN_S = 5.0
_WANTED = (CONFIG, HF_WEIGHTS, NATIVE_WEIGHTS, INDEX, "model-*.safetensors")
_TOKENIZER = (*TOKENIZER_FILES, "vocab.json", "merges.txt")
_STEP = re.compile(r"(?:global[-_]?)?(?:checkpoint|ckpt|step|iter)[-_]?(\d+)")
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def step_in_name(name: str) -> int | None:
    """The step that a branch, tag or folder is named after: `checkpoint-1000`, `step1000`, `step-00001000`, `iter_1000`."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def is_hub_name(name: str) -> bool:
    """Could this be a repository's name, and is it no path that begins with a directory which is there?"""
    parts = name.split("/")
    return is_name(name) and not (len(parts) == 2 and Path(parts[0]).is_dir())


def is_name(name: str) -> bool:
    """Could this be a repository's name?"""
    return _NAME.fullmatch(name) is not None and name.split("/")[0] not in (".", "..")


@dataclass(frozen=True)
class HubStep:
    """The files of a model at one revision of a repository, pinned to a commit, or in one folder of it."""

    repo: str
    revision: str
    commit: str
    folder: str = ""
    cache_dir: Path | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" + (f"/{self.folder}" if self.folder else "")

    def directory(self) -> Path:
        """Its local copy, downloaded if need be. Raises CheckpointError."""
        return self._local(_WANTED)

    def config_directory(self) -> Path:
        """The same with config.json alone."""
        return self._local((CONFIG,))

    def tokenizer_directory(self) -> Path:
        """The same with the tokenizer's files alone, those that there are."""
        return self._local(_TOKENIZER)

    @property
    def sha256(self) -> str:
        """A hash that names the files: of the repository, the commit, which is a hash of them itself, and the folder."""
        return hashlib.sha256(f"{self.repo}\n{self.commit}\n{self.folder}".encode()).hexdigest()

    @property
    def cached(self) -> Path | None:
        """Where its files are in the cache, if any are."""
        path = repository(self.repo, self.cache_dir) / "snapshots" / self.commit / self.folder
        return path if path.is_dir() else None

    def _local(self, wanted: tuple[str, ...]) -> Path:
        path = local_copy(self.repo, self.revision, self.cache_dir, self.folder, wanted)
        snapshot = path.parents[len(Path(self.folder).parts) - 1] if self.folder else path
        if snapshot.name != self.commit:
            raise CheckpointError(
                f"{self} has moved from commit {self.commit[:8]} to {snapshot.name[:8]} since the run was opened; open it again"
            )
        return path


def local_copy(
    repo: str, revision: str | None, cache_dir: Path | None = None, folder: str = "", wanted: tuple[str, ...] = _WANTED
) -> Path:
    """The directory of a model in the Hub's cache, downloaded if need be; of its files, those `wanted`.

    Where there are no safetensors, an old pytorch_model.bin is taken. Raises CheckpointError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError
    from huggingface_hub.errors import LocalEntryNotFoundError as NotInCache

    prefix = f"{folder}/" if folder else ""
    options = {"revision": revision, "cache_dir": cache_dir}

    def fetched(names: tuple[str, ...], **how: object) -> Path:
        return Path(snapshot_download(repo, **options, allow_patterns=[prefix + name for name in names], **how)) / folder

    lacks = "not"
    try:
        cached = fetched(wanted, local_files_only=True)
        if _complete(cached, wanted):
            return cached
        lacks = "not whole"
    except NotInCache:
        pass  # then it is downloaded
    except HFValidationError as error:
        raise CheckpointError(f"there is no directory {repo}, and no Hub name looks like this: {error}") from error
    try:
        found = fetched(wanted, etag_timeout=ANSWER_WITHIN_S)
        if wanted == _WANTED and not _has_weights(found):
            found = fetched((CONFIG, PICKLED), etag_timeout=ANSWER_WITHIN_S)
        return found
    except (HTTPError, OSError) as error:
        where = f"{repo}@{revision}" if revision else repo
        raise CheckpointError(
            f"{where} is {lacks} in the local cache, and the Hugging Face Hub cannot be asked for it or does not have it: "
            f"{first_line(error)}; without a network, give a directory with {CONFIG} and {HF_WEIGHTS}"
        ) from error


def _complete(directory: Path, wanted: tuple[str, ...]) -> bool:
    if wanted == _WANTED:
        return (directory / CONFIG).is_file() and _has_weights(directory)
    return any((directory / name).is_file() for name in wanted)


def _has_weights(directory: Path) -> bool:
    if any((directory / name).is_file() for name in (HF_WEIGHTS, NATIVE_WEIGHTS, PICKLED)):
        return True
    index = directory / INDEX
    if not index.is_file():
        return False
    shards = parse(index.read_bytes(), index).get("weight_map")
    return isinstance(shards, dict) and all((directory / str(name)).is_file() for name in shards.values())


@dataclass(frozen=True)
class Listing:
    """The steps of a repository, and a word on where they were read from, for messages."""

    steps: dict[int, HubStep]
    note: str


def list_steps(
    repo: str, steps: Iterable[int] | None = None, revision: str | None = None, cache_dir: Path | None = None
) -> Listing:
    """Steps from a repository's branches and tags, or from the folders of `revision` where those name none.

    Where the cache knows all of `steps` nobody is asked; where the Hub cannot be asked, the cached steps are all there
    are. Raises RunError if there are none, or if two names of one step are two models.
    """
    if not is_name(repo):
        raise RunError(f"{repo!r} is no name of a repository on the Hugging Face Hub, such as stanford-crfm/alias-gpt2-small-x21")
    wanted = None if steps is None else set(steps)
    cached = _cached(repo, revision, cache_dir)
    if wanted is not None and wanted <= cached.keys():
        return Listing({step: cached[step] for step in sorted(wanted)}, "")
    try:
        found, names = _on_hub(repo, revision, cache_dir)
        note = ""
    except OSError as error:
        if not cached:
            raise RunError(
                f"{repo} has no steps in the local cache ({repository(repo, cache_dir)}), and the Hugging Face Hub cannot be "
                f"asked for it or does not have it: {first_line(error)}"
            ) from error
        found, names = cached, []
        note = f"; the Hub could not be asked ({first_line(error)}), these are the steps in the local cache"
    if not found:
        raise RunError(
            f"{repo} has no branch, tag or folder that names a step, such as checkpoint-1000 or step1000; it has "
            f"{', '.join(names[:6]) or 'none'}. For a single model, use GPT2.from_pretrained({repo!r})"
        )
    if wanted is not None:
        if lacking := sorted(wanted - found.keys()):
            raise RunError(f"{repo} has no step {', '.join(map(str, lacking))}{note}; it has {_range(sorted(found))}")
        found = {step: found[step] for step in wanted}
    return Listing(dict(sorted(found.items())), note)


def _cached(repo: str, revision: str | None, cache_dir: Path | None) -> dict[int, HubStep]:
    root = repository(repo, cache_dir)
    refs = {path.relative_to(root / "refs").as_posix(): path.read_text().strip() for path in _files(root / "refs")}
    found = _steps_of_names(repo, {name: commit for name, commit in refs.items() if revision is None}, cache_dir)
    found = {step: at for step, at in found.items() if at.cached}
    if found:
        return found
    branch = MAIN if revision is None else revision
    commit = refs.get(branch)
    if commit is None:
        return {}
    root = root / "snapshots" / commit
    folders = [path.parent.relative_to(root).as_posix() for path in root.rglob(CONFIG)]
    return _steps_of_folders(HubStep(repo, branch, commit, cache_dir=cache_dir), folders)


def _on_hub(repo: str, revision: str | None, cache_dir: Path | None) -> tuple[dict[int, HubStep], list[str]]:
    """Steps, and the names of all branches and tags. Raises OSError if the Hub cannot be asked, or has no such repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        HfApi().model_info(repo, timeout=ANSWER_WITHIN_S)  # the next has no timeout, and waits minutes for a silent network
        answer = HfApi().list_repo_refs(repo)
        refs = {ref.name: ref.target_commit for ref in (*answer.tags, *answer.branches)}
        found = _steps_of_names(repo, refs if revision is None else {}, cache_dir)
        if found:
            return found, list(refs)
        branch = MAIN if revision is None else revision
        if branch not in refs:
            return {}, list(refs)
        files = HfApi().list_repo_files(repo, revision=refs[branch])
    except HTTPError as error:  # of which some are OSErrors and some are not
        raise OSError(first_line(error)) from error
    folders = [Path(name).parent.as_posix() for name in files if Path(name).name == CONFIG]
    return _steps_of_folders(HubStep(repo, branch, refs[branch], cache_dir=cache_dir), folders), list(refs)


def _steps_of_names(repo: str, refs: dict[str, str], cache_dir: Path | None) -> dict[int, HubStep]:
    found: dict[int, HubStep] = {}
    for name, commit in sorted(refs.items()):
        step = step_in_name(name)
        if step is None:
            continue
        if step in found and found[step].commit != commit:
            raise RunError(f"{repo} has two models of step {step}: {found[step].revision} and {name} are different commits")
        found.setdefault(step, HubStep(repo, name, commit, cache_dir=cache_dir))
    return found


def _steps_of_folders(whole: HubStep, folders: Iterable[str]) -> dict[int, HubStep]:
    found: dict[int, HubStep] = {}
    for folder in sorted(folders):
        step = step_in_name(Path(folder).name)
        if step is None:
            continue
        if step in found:
            raise RunError(f"{whole} has two folders of step {step}: {found[step].folder} and {folder}")
        found[step] = replace(whole, folder=folder)
    return found


def repository(repo: str, cache_dir: Path | None = None) -> Path:
    """Where the Hub's cache keeps a repository's files."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(cache_dir or HF_HUB_CACHE).expanduser() / f"models--{repo.replace('/', '--')}"


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []


def _range(steps: list[int]) -> str:
    return f"{steps[0]} to {steps[-1]}, {len(steps)} in all" if len(steps) > 8 else ", ".join(map(str, steps))


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
