"""Stopped again and again, gone on with in a new process each time, a run is the run that was not: 200 steps, bit for bit."""

import multiprocessing
import signal
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.runs.manifest import OPTIMIZER, read_manifest
from interp_gpt2.runs.run import Run
from interp_gpt2.training import saving
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.events import Event, Logged
from interp_gpt2.training.loop import train
from interp_gpt2.training.signals import Interrupted

pytestmark = pytest.mark.slow

STOPS = (1, 37, 100, 199)
CONFIG = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=1, n_heads=2, d_model=16, n_ctx=8),
    n_steps=200,
    batch_size=8,
    lr=1e-2,
    warmup_steps=20,
    log_every=1,
    eval_every=50,
    threads=1,
    checkpoints=Checkpoints(per_doubling=1, resume_every=1000, anchors=0),
)
CONFIGS = {
    f"dropout {dropout}, accumulation {parts}": replace(
        CONFIG, model=replace(CONFIG.model, dropout=dropout), micro_batch=None if parts == 1 else 8 // parts
    )
    for dropout in (0.0, 0.1)
    for parts in (1, 4)
}


@pytest.fixture(scope="module")
def fresh() -> ForkServerContext:
    """Processes that start from imports alone: what a run knows there, it has from its directory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["interp_gpt2.training.loop", "torch._dynamo"])
    return context


def train_until(config: TrainConfig, run_dir: Path, stop: int | None, resume: bool, without: str = "") -> None:
    """Train until `stop`, where Ctrl-C is pressed. `without` names what is not restored, for the controls."""
    torch.manual_seed(stop or 0)  # a process of its own has random numbers of its own
    if without == "optimizer":
        saving.restore_optimizer = lambda model, optimizer, tensors: None
    if without == "random numbers":
        torch.manual_seed = lambda seed: None

    def progress(event: Event) -> None:
        if isinstance(event, Logged) and event.step == stop:
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(Interrupted) if stop is not None else nullcontext():
        train(config, run_dir, resume=resume, progress=progress)


def in_new_processes(fresh: ForkServerContext, config: TrainConfig, run_dir: Path, stops: tuple, without: str = "") -> Run:
    for number, stop in enumerate((*stops, None)):
        process = fresh.Process(target=train_until, args=(config, run_dir, stop, number > 0, without))
        process.start()
        process.join(120)
        assert process.exitcode == 0
    return Run(run_dir)


def losses(run: Run) -> list[tuple[int, str, str]]:
    """By step, the loss and the validation loss where there is one, to the bit."""
    return [(row["step"], *(float(row.get(key, -1.0)).hex() for key in ("loss", "val_loss"))) for row in run.metrics()]


def end_hashes(run: Run) -> tuple[str, str]:
    files = read_manifest(run.checkpoint(200)).files
    return files["model.safetensors"].sha256, files[OPTIMIZER].sha256


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_loss_the_weights_and_the_optimizer_are_those_of_the_uninterrupted_run(tmp_path, fresh, config):
    whole = train(config, tmp_path / "whole")
    parts = in_new_processes(fresh, config, tmp_path / "parts", STOPS)
    assert [step for step, *_ in losses(parts)] == list(range(201))
    assert losses(parts) == losses(whole)
    assert end_hashes(parts) == end_hashes(whole)
    assert [entry["step"] for entry in parts.settings["resumed"]] == list(STOPS)
    assert all(parts.checkpoint_hash(step) == whole.checkpoint_hash(step) for step in whole.steps)


@pytest.mark.parametrize("without", ["optimizer", "random numbers"])
def test_with_one_of_the_two_left_out_it_is_another_run(tmp_path, fresh, without):
    config = CONFIGS["dropout 0.1, accumulation 1"]
    whole = in_new_processes(fresh, config, tmp_path / "whole", (), without if without == "random numbers" else "")
    parts = in_new_processes(fresh, config, tmp_path / "parts", (100,), without)
    before, after = losses(whole)[1:101], losses(whole)[101:]
    assert losses(parts)[1:101] == before or without == "random numbers"
    assert losses(parts)[102:] != after[1:]
    assert end_hashes(parts)[0] != end_hashes(whole)[0]
