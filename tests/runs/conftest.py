"""A cache laid out as the Hub's, and a Hub that is not there."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import save_weights


class HubCache:
    """The folder that huggingface_hub keeps: blobs by hash, a snapshot of links for each commit, a file for each ref."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, repo: str, revision: str, files: Mapping[str, bytes], commit: str | None = None) -> str:
        """Add these files of a commit, and point `revision` to it."""
        folder = self.root / f"models--{repo.replace('/', '--')}"
        commit = commit or commit_of(files)
        for name, content in files.items():
            blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
            link = folder / "snapshots" / commit / name
            blob.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            if not link.is_symlink():
                link.symlink_to(blob)
        ref = folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
        return commit


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    """An empty cache, and a Hub whose every function fails the test."""
    import huggingface_hub
    from huggingface_hub import constants

    cache = HubCache(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "results"))

    class Silent:
        def __getattr__(self, name: str) -> Any:
            pytest.fail(f"asked the Hub: {name}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Silent)
    return cache


class FakeApi:
    """A Hub in memory: branches of files."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, bytes]] = {}
        self.tags: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.fail_at: str | None = None

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
        self.asked.append("create_repo")
        self.branches.setdefault("main", {})

    def create_branch(self, repo: str, branch: str) -> None:
        self.branches[branch] = dict(self.branches["main"])

    def model_info(self, repo: str, timeout: float) -> None:
        self.asked.append("model_info")

    def list_repo_refs(self, repo: str) -> Any:
        self.asked.append("list_repo_refs")
        branches = [SimpleNamespace(name=name, target_commit=commit_of(files)) for name, files in self.branches.items()]
        tags = [SimpleNamespace(name=name, target_commit=commit_of(files)) for name, files in self.tags.items()]
        return SimpleNamespace(branches=branches, tags=tags)

    def list_repo_files(self, repo: str, revision: str) -> list[str]:
        return next(list(files) for files in self.branches.values() if commit_of(files) == revision)

    def get_paths_info(self, repo: str, paths: list[str], revision: str) -> list[Any]:
        found = []
        for path in paths:
            data = self.branches[revision].get(path)
            if data is not None:
                lfs = SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if path.endswith(".safetensors") else None
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                found.append(SimpleNamespace(path=path, lfs=lfs, blob_id=blob))
        return found

    def create_commit(self, repo: str, operations: list[Any], commit_message: str, revision: str) -> None:
        if revision == self.fail_at:
            raise ConnectionError("the line is dead\nand more")
        self.asked.append(f"commit {revision}")
        for operation in operations:
            self.branches[revision][operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()


def commit_of(files: Mapping[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@pytest.fixture
def fake_api(monkeypatch: pytest.MonkeyPatch, no_hub: HubCache) -> FakeApi:
    """What HfApi() gives."""
    import huggingface_hub

    api = FakeApi()

    class Theirs:  # a class, for transformers has it in its annotations
        def __new__(cls) -> FakeApi:
            return api

    monkeypatch.setattr(huggingface_hub, "HfApi", Theirs)
    return api


@pytest.fixture
def model_files(tmp_path: Path) -> Callable[[GPT2], dict[str, bytes]]:
    """The files of a model as they lie on the Hub."""

    def files(model: GPT2, tokenizer: Any = None) -> dict[str, bytes]:
        folder = tmp_path / f"files-{len(list(tmp_path.iterdir()))}"
        save_weights(folder, model.state_dict(), model.config, tokenizer)
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}

    return files
