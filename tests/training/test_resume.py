"""A run that was stopped and resumed is the run that was not, bit for bit."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError, RunError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.manifest import OPTIMIZER, read_manifest
from interp_gpt2.runs.run import Run
from interp_gpt2.training import saving
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.events import Event, Logged, Notice, Saved, silent
from interp_gpt2.training.loop import train
from interp_gpt2.training.optimizer import make_optimizer, optimizer_tensors, restore_optimizer
from interp_gpt2.training.signals import Interrupted, stop_requests
from interp_gpt2.training.speed import MEASURED

CONFIG = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=1, n_heads=2, d_model=16, n_ctx=8),
    n_steps=20,
    batch_size=4,
    lr=1e-2,
    warmup_steps=3,
    log_every=1,
    eval_every=10,
    threads=1,
    checkpoints=Checkpoints(resume_every=6, anchors=0),
)
WITH_DROPOUT = replace(CONFIG, model=replace(CONFIG.model, dropout=0.1))
EVERYTHING = replace(WITH_DROPOUT, micro_batch=3, optimizer="muon", schedule="wsd", min_lr=0.0, guard_z=1.5, guard_window=4)
IN_BF16 = replace(WITH_DROPOUT, precision="bf16", device="cpu")


def interrupting(step, signum=signal.SIGINT):
    """Progress that presses Ctrl-C while `step` is being finished."""

    def progress(event: Event) -> None:
        if isinstance(event, Logged) and event.step == step:
            signal.raise_signal(signum)

    return progress


def end_of(run: Run) -> tuple[dict[str, str], list[dict]]:
    """Hashes of the last weights and optimizer state, and every row of metrics without its speed; floats to the bit."""
    entries = read_manifest(run.checkpoint(20)).files
    hashes = {name: entries[name].sha256 for name in ("model.safetensors", OPTIMIZER)}
    rows = [{name: repr(value) for name, value in row.items() if name not in MEASURED} for row in run.metrics()]
    return hashes, rows


@pytest.mark.parametrize(
    "config", [CONFIG, WITH_DROPOUT, EVERYTHING, IN_BF16], ids=["no dropout", "dropout 0.1", "everything on", "bf16"]
)
def test_resuming_at_any_step_repeats_the_uninterrupted_run_bit_for_bit(tmp_path, config):
    uninterrupted = train(config, tmp_path / "whole")
    resume = False
    for step in (1, 7, 13, 19):
        with pytest.raises(Interrupted) as stopped:
            train(config, tmp_path / "parts", resume=resume, progress=interrupting(step))
        assert (stopped.value.step, stopped.value.exit_code) == (step, 130)
        assert stopped.value.path == tmp_path / "parts" / f"step-{step:08d}"
        resume = True
    resumed = train(config, tmp_path / "parts", resume=True)
    assert end_of(resumed) == end_of(uninterrupted)
    assert set(uninterrupted.steps) <= set(resumed.steps)
    for step in uninterrupted.steps:
        assert resumed.checkpoint_hash(step) == uninterrupted.checkpoint_hash(step)


IN_ANOTHER_PROCESS = """
import json, sys, time
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.events import Logged
from interp_gpt2.training.loop import train
from interp_gpt2.training.signals import Interrupted

def progress(event):
    if isinstance(event, Logged) and event.step == 5 and sys.argv[3] == "wait":
        print("ready", flush=True)
        time.sleep(1)

try:
    train(TrainConfig.from_dict(json.loads(sys.argv[1])), sys.argv[2], resume=sys.argv[3] != "wait", progress=progress)
except Interrupted as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(stopped.exit_code)
"""


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_from_outside_stops_with_a_checkpoint_from_which_another_process_goes_on_exactly(tmp_path, signum, exit_code):
    run_dir = str(tmp_path / "parts")
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, json.dumps(WITH_DROPOUT.to_dict()), run_dir]
    with subprocess.Popen([*command, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "at step 5" in said) == (exit_code, True), said
    assert Run(Path(run_dir)).newest_verified_step(resumable=True).step == 5
    if signum == signal.SIGINT:
        subprocess.run([*command, "resume"], check=True, timeout=60)
        assert end_of(Run(Path(run_dir))) == end_of(train(WITH_DROPOUT, tmp_path / "whole"))


def test_without_the_optimizers_state_a_resumed_run_differs(tmp_path, monkeypatch):
    uninterrupted = train(CONFIG, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(CONFIG, tmp_path / "parts", progress=interrupting(7))
    monkeypatch.setattr(saving, "restore_optimizer", lambda model, optimizer, tensors: None)
    resumed = train(CONFIG, tmp_path / "parts", resume=True)
    assert end_of(resumed)[0] != end_of(uninterrupted)[0]


def test_with_dropout_that_forgets_the_step_a_resumed_run_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    uninterrupted = train(WITH_DROPOUT, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(WITH_DROPOUT, tmp_path / "parts", progress=interrupting(7))
    torch.rand(1)
    assert end_of(train(WITH_DROPOUT, tmp_path / "parts", resume=True))[0] != end_of(uninterrupted)[0]


def noting(notices):
    """Progress that keeps the notices."""
    return lambda event: notices.append(event) if isinstance(event, Notice) else None


def killed(run_dir, step, config=CONFIG):
    """A run whose process vanished after `step`, without a word."""

    def progress(event: Event) -> None:
        if isinstance(event, Logged) and event.step == step:
            raise MemoryError

    with pytest.raises(MemoryError):
        train(config, run_dir, progress=progress)
    return Run(run_dir)


def test_a_killed_run_goes_on_from_its_last_resumable_checkpoint_and_logs_each_step_once(tmp_path):
    uninterrupted = train(CONFIG, tmp_path / "whole")
    run = killed(tmp_path / "parts", 17)
    assert (run.steps[-1], run.metrics()[-1]["step"]) == (16, 17)
    notices = []
    train(CONFIG, run.path, resume=True, progress=noting(notices))
    assert end_of(run) == end_of(uninterrupted)
    assert notices == [Notice("resuming at step 12; 1 later checkpoints are made again")]


@pytest.mark.parametrize(("step", "steps"), [(0, []), (1, [0]), (5, [0, 1, 2, 4])])
def test_a_run_killed_early_starts_again_from_its_initialisation(tmp_path, step, steps):
    run = killed(tmp_path / "parts", step)
    assert run.steps == steps
    assert end_of(train(CONFIG, run.path, resume=True)) == end_of(train(CONFIG, tmp_path / "whole"))


def test_a_damaged_checkpoint_is_skipped_by_name_for_the_newest_that_is_whole(tmp_path):
    uninterrupted = train(CONFIG, tmp_path / "whole")
    run = killed(tmp_path / "parts", 17)
    optimizer = run.checkpoint(12) / OPTIMIZER
    content = bytearray(optimizer.read_bytes())
    content[-1] ^= 1
    optimizer.write_bytes(content)
    notices = []
    train(CONFIG, run.path, resume=True, progress=noting(notices))
    assert "step 12 cannot be resumed from" in notices[0].text
    assert OPTIMIZER in notices[0].text
    assert "resuming at step 6" in notices[1].text
    assert end_of(run) == end_of(uninterrupted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 1e-3}, "with lr=0.01, which --resume cannot change to 0.001"),
        ({"seed": 1}, "with seed=0"),
        ({"model": replace(CONFIG.model, n_layers=2)}, "with model.n_layers=1"),
        ({"checkpoints": Checkpoints(resume_every=7)}, "with checkpoints.resume_every=6"),
        ({"n_steps": 10}, "n_steps=20 so far, which --resume may raise but not lower to 10"),
    ],
)
def test_a_config_that_differs_is_refused_by_field_and_changes_nothing(tmp_path, change, said):
    with pytest.raises(Interrupted):
        train(CONFIG, tmp_path / "run", progress=interrupting(7))
    run = Run(tmp_path / "run")
    before = run.settings, run.steps, run.metrics()
    with pytest.raises(RunError) as refusal:
        train(replace(CONFIG, **change), run.path, resume=True)
    assert said in str(refusal.value)
    assert (run.settings, run.steps, run.metrics()) == before


def test_text_that_has_changed_since_the_run_began_is_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("to be or not to be\n" * 50)
    config = replace(CONFIG, data=str(text))
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", progress=interrupting(3))
    text.write_text("to be or not to be?\n" * 50)
    with pytest.raises(RunError, match="the data has changed since the run began: "):
        train(config, tmp_path / "run", resume=True)


def test_a_run_may_grow_and_a_constant_rate_makes_it_the_longer_run(tmp_path):
    config = replace(CONFIG, schedule="constant")
    longer = train(config, tmp_path / "longer")
    run = train(replace(config, n_steps=11), tmp_path / "run")
    train(config, run.path, resume=True)
    assert end_of(run)[0] == end_of(longer)[0]
    assert run.settings["config"]["n_steps"] == 20


def test_what_makes_a_resumed_run_another_one_is_said(tmp_path):
    train(replace(CONFIG, n_steps=9), tmp_path / "run")
    notices = []
    more_threads = replace(CONFIG, threads=2)
    train(more_threads, tmp_path / "run", resume=True, progress=noting(notices))
    assert notices == [
        Notice("not bit for bit what the uninterrupted run would be: threads 1, now 2"),
        Notice("n_steps was 9: the learning rate goes on along the cosine of 20 steps"),
    ]
    (resumed,) = Run(tmp_path / "run").settings["resumed"]
    assert (resumed["step"], resumed["fingerprint"]["threads"]) == (9, 2)


def test_resuming_a_finished_run_does_nothing_and_resuming_none_is_an_error(tmp_path):
    run = train(CONFIG, tmp_path / "run")
    before, events = end_of(run), []
    train(CONFIG, run.path, resume=True, progress=events.append)
    assert end_of(run) == before
    assert not [event for event in events if isinstance(event, (Logged, Saved))]
    with pytest.raises(RunError, match="there is no run at"):
        train(CONFIG, tmp_path / "nothing", resume=True)


def test_a_second_ctrl_c_is_immediate_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signum is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_optimizers_state_that_does_not_fit_is_refused_by_name():
    model = GPT2(replace(CONFIG.model, d_vocab=64))
    optimizer = make_optimizer(model, CONFIG)
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    tensors = optimizer_tensors(model, optimizer)
    assert len(tensors) == 3 * len(list(model.parameters()))
    lacking = {name: tensor for name, tensor in tensors.items() if name != "wte.weight.exp_avg"}
    with pytest.raises(CheckpointError, match=r"wte.weight.exp_avg is missing"):
        restore_optimizer(model, optimizer, lacking)
    with pytest.raises(CheckpointError, match=r"wte.weight.exp_avg is \(2, 3\), not \(64, 16\)"):
        restore_optimizer(model, optimizer, {**tensors, "wte.weight.exp_avg": torch.zeros(2, 3)})


def test_progress_is_optional():
    assert silent(Notice("nobody listens")) is None
