"""Any step of a run again, bit for bit: training repeats itself from the nearest checkpoint that it could go on from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from interp_gpt2.convert.huggingface import model_of_state
from interp_gpt2.errors import CheckpointError, RunError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import weights_sha256
from interp_gpt2.runs.manifest import read_manifest
from interp_gpt2.runs.run import Run
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.machine import Machine, cpu_threads
from interp_gpt2.training.optimizer import make_optimizer
from interp_gpt2.training.record import differences
from interp_gpt2.training.saving import restored
from interp_gpt2.training.speed import Meter
from interp_gpt2.training.update import Updates


@dataclass(frozen=True)
class Stretch:
    """Updates from number `first` on were made towards `n_steps`, on what `fingerprint` says."""

    first: int
    n_steps: int
    fingerprint: Mapping[str, Any]


def recompute(run: Run, step: int, anyway: bool = False) -> GPT2:
    """The model at any step of `run`, also where no checkpoint was kept: in eval mode, on the CPU. Nothing is written.

    Takes as many updates as lie between the step and the nearest checkpoint before it that holds the optimizer's state
    (checkpoints.anchors says how many of them a run keeps), else as from the initialisation. What is computed is held
    against the last stored checkpoint that is passed or reached, if there is one.

    Raises RunError for a step the run does not have, on other versions, another device, number of threads or processes than
    the run was trained on, and where a stored checkpoint is not met to the bit; `anyway` computes what it can.
    DataError if the data has changed.
    """
    settings = run.settings
    config = TrainConfig.from_dict(settings["config"])
    if type(step) is not int or not 0 <= step <= config.n_steps:
        raise RunError(f"{run.path} has no step {step!r}; its steps are 0 to {config.n_steps}")
    machine = Machine.for_config(config)
    gpus = [machine.device] if machine.device.type == "cuda" else []
    with cpu_threads(machine.threads), torch.random.fork_rng(gpus):
        model = GPT2(config.model, seed=config.seed, device=machine.device).train()
        updates = Updates(model, make_optimizer(model, config), config, run.source(), machine, Meter(config, machine))
        start = _restore_before(run, step, updates)
        latest_first = _stretches(settings)[::-1]
        plan = [next(stretch for stretch in latest_first if stretch.first <= at) for at in range(start, step)]
        stored = _last_stored(run, start, step)
        if not anyway:
            _check_fingerprints(run, plan, machine)
        for at in range(start, step + 1):
            if at in stored and not anyway and weights_sha256(model.state_dict(), config.model) != stored[at]:
                raise RunError(
                    f"computed again, step {at} of {run.path} is not the checkpoint stored there: this machine or this code "
                    "does not repeat the run to the bit; anyway=True computes it all the same"
                )
            if at < step:
                _repeat(updates, at, plan[at - start], config)
    return model_of_state(config.model, {name: value.cpu() for name, value in model.state_dict().items()})


def _restore_before(run: Run, step: int, updates: Updates) -> int:
    """Put the state of the nearest earlier resumable checkpoint that is whole into `updates`. Returns its step, else 0."""
    for earlier in reversed([s for s in run.steps if s < step]):
        try:
            if read_manifest(run.checkpoint(earlier)).can_resume:
                restored(run, earlier, updates.model, updates.optimizer, updates.guard)
                return earlier
        except CheckpointError:
            continue  # damaged, or a run that is training drops it just now: one before it leads to the same weights
    config = updates.config  # a state that did not fit may have left its weights
    updates.model.load_state_dict(GPT2(config.model, seed=config.seed, device=updates.machine.device).state_dict())
    return 0


def _stretches(settings: Mapping[str, Any]) -> list[Stretch]:
    """What the run was trained on, in the order of the steps: whoever resumed it made the later updates anew."""
    resumed, n_steps = settings.get("resumed", []), settings["config"]["n_steps"]
    lengths = [*(entry.get("n_steps_before", n_steps) for entry in resumed), n_steps]
    found = [Stretch(0, lengths[0], settings["fingerprint"])]
    for entry, length in zip(resumed, lengths[1:], strict=True):
        found = [stretch for stretch in found if stretch.first < entry["step"]]
        found.append(Stretch(entry["step"], length, entry["fingerprint"]))
    return found


def _check_fingerprints(run: Run, plan: list[Stretch], machine: Machine) -> None:
    for stretch in {stretch.first: stretch for stretch in plan}.values():
        here = replace(machine, micro_batch=stretch.fingerprint.get("micro_batch")).fingerprint()
        if changes := differences(stretch.fingerprint, here):
            listed = ", ".join(f"{name} was {was!r} and is {is_!r}" for name, was, is_ in changes)
            raise RunError(
                f"{run.path} was not trained on what would compute it again here, from step {stretch.first} on: {listed}; "
                "anyway=True computes it all the same, near but not to the bit"
            )


def _repeat(updates: Updates, step: int, stretch: Stretch, config: TrainConfig) -> None:
    updates.config = replace(config, n_steps=stretch.n_steps)  # the learning rate goes by it
    updates.machine = replace(updates.machine, micro_batch=stretch.fingerprint.get("micro_batch"))
    updates(step)


def _last_stored(run: Run, start: int, step: int) -> dict[int, str]:
    """The last of these steps with a checkpoint, and the SHA-256 of its weights; empty if there is none."""
    for at in reversed([s for s in run.steps if start <= s <= step]):
        try:
            manifest = read_manifest(run.checkpoint(at))
        except CheckpointError:
            continue  # it vouches for nothing
        return {at: manifest.files[manifest.weights].sha256}
    return {}
