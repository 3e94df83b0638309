"""Tuned lenses in a run's directory, each with what it was trained on.

RUN/tuned-lens/step-00001000-3f2a91c07b1e/lens.safetensors    A (layer, d_model, d_model), b (layer, d_model)
                                          lens.json           of which checkpoint, data and settings; hash of the other
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from interp_gpt2.analysis.tuned_lens import STANDARD, LensTraining, TunedLens, fit_tuned_lens, lens_windows
from interp_gpt2.errors import AnalysisError
from interp_gpt2.files import written_atomically
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.strict_json import parse
from interp_gpt2.runs.tensor_files import header_of_file, tensor_chunks, tensors_of_file

FORMAT = "interp_gpt2 tuned lens 1"


def trained_lens(run: Run, step: int | None = None, training: LensTraining = STANDARD) -> TunedLens:
    """The tuned lens of a run's checkpoint (None: the last): the one that is kept, else trained on the run's data and kept.

    One is found again if checkpoint, data and settings are the same. Raises DataError if the data is gone and no lens is
    kept, AnalysisError for a kept one that is not as it was written.
    """
    step = run.steps[-1] if step is None and run.steps else step
    key = _key(run, step, training)
    folder = lens_folder(run, step, training)
    if (folder / "lens.json").is_file():
        return _load(folder, key)
    model, source = run.model(step), run.source()
    tokens = lens_windows(source, model.config.n_ctx, training)
    lens = fit_tuned_lens(model, tokens, training)
    _save(folder, lens, key | {"tokens": tokens.numel(), "sequences": len(tokens), "torch": str(torch.__version__)})
    return lens


def lens_folder(run: Run, step: int, training: LensTraining = STANDARD) -> Path:
    """Where the lens of these settings is kept."""
    digest = hashlib.sha256(json.dumps(_key(run, step, training), sort_keys=True).encode()).hexdigest()
    return Path(run.path) / "tuned-lens" / f"step-{step:08d}-{digest[:12]}"


def _key(run: Run, step: int | None, training: LensTraining) -> dict[str, Any]:
    """What a lens depends on."""
    data = run.settings.get("data")
    facts = data if isinstance(data, dict) else {}
    hashes = {name: value for name, value in facts.items() if name == "data" or name.endswith("sha256")}
    run.checkpoint(step)  # names the nearest steps if there is none such
    return {"format": FORMAT, "step": step, "checkpoint": run.checkpoint_hash(step), "data": hashes, "training": asdict(training)}


def _save(folder: Path, lens: TunedLens, about: dict[str, Any]) -> None:
    content = b"".join(bytes(chunk) for chunk in tensor_chunks({"A": lens.A, "b": lens.b}))
    with written_atomically(folder / "lens.safetensors") as file:
        file.write(content)
    # Written last: without it there is no lens.
    with written_atomically(folder / "lens.json") as file:
        file.write(json.dumps(about | {"sha256": hashlib.sha256(content).hexdigest()}, indent=1).encode() + b"\n")


def _load(folder: Path, key: dict[str, Any]) -> TunedLens:
    about = parse((folder / "lens.json").read_bytes(), folder / "lens.json")
    path = folder / "lens.safetensors"
    whole = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == about.get("sha256")
    if not whole or {name: about.get(name) for name in key} != key or header_of_file(path).keys() != {"A", "b"}:
        raise AnalysisError(f"the lens in {folder} is not as it was written; delete that folder and train it again")
    tensors = tensors_of_file(path)
    return TunedLens(tensors["A"], tensors["b"])
