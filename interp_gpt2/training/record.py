"""run.json: everything needed to train a run again, and what a resumed one must share with it."""

import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from interp_gpt2.data.source import Source
from interp_gpt2.errors import RunError
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.machine import Machine

# What may differ when a run goes on. Device, threads, micro-batch and processes are in the fingerprint: a resumed run says if
# they changed.
FREE_ON_RESUME = ("n_steps", "device", "threads", "micro_batch", "parallel", "tracking")
VERSIONS_OF_DATA = ("python", "numpy", "notes")  # told with the data, but the same tokens are the same tokens


def run_settings(config: TrainConfig, source: Source, machine: Machine) -> dict[str, Any]:
    """What run.json holds: the resolved config, the data's hashes and counts, versions, device, and the code's commit."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.to_dict(),
        "n_params": config.model.n_params,
        "tokenizer": {"kind": source.tokenizer.kind, "d_vocab": source.tokenizer.d_vocab, "sha256": source.tokenizer.sha256},
        "data": source.fingerprint(),
        "fingerprint": machine.fingerprint(),
        "code": git_commit(),
    }


def check_resumable(settings: Mapping[str, Any], config: TrainConfig, source: Source) -> None:
    """Raises RunError, naming the field, if `config` or its data is not what the run was trained with so far.

    `n_steps` may grow; what FREE_ON_RESUME names may differ.
    """
    before, now = TrainConfig.from_dict(settings["config"]).to_dict(), config.to_dict()  # fields added since: their defaults
    if now["n_steps"] < before["n_steps"]:
        raise RunError(f"n_steps={before['n_steps']} so far, which --resume may raise but not lower to {now['n_steps']}")
    for name, was, is_ in differences(before, now):
        if name not in FREE_ON_RESUME and name != "model.d_vocab":  # which follows from the data, told below
            raise RunError(
                f"the run was trained with {name}={was!r}, which --resume cannot change to {is_!r}; give a new run another name"
            )
    for name, was, is_ in differences(settings["data"], source.fingerprint()):
        if name not in VERSIONS_OF_DATA:
            raise RunError(f"the data has changed since the run began: {name} was {was!r} and is {is_!r}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Fields, dotted, that differ between two nested objects, with both values."""
    found = []
    for name in {**before, **now}:
        was, is_ = before.get(name), now.get(name)
        if isinstance(was, Mapping) and isinstance(is_, Mapping):
            found += differences(was, is_, f"{prefix}{name}.")
        elif was != is_:
            found.append((prefix + name, was, is_))
    return found


def git_commit() -> dict[str, Any] | None:
    """The commit of this code and whether its files differ from it; None where it does not lie in a git working tree."""
    package = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an environment may lie in somebody else's working tree
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
