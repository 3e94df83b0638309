"""Spikes are told by what came before, on the device, and the same after a resume."""

import json
import signal
from dataclasses import replace

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.data.source import RepeatedSource
from interp_gpt2.errors import CheckpointError
from interp_gpt2.runs.run import Run
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.events import Notice
from interp_gpt2.training.guard import Guard
from interp_gpt2.training.loop import train
from interp_gpt2.training.signals import Interrupted
from interp_gpt2.training.speed import MEASURED
from interp_gpt2.training.update import Updates

CONFIG = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=1, n_heads=2, d_model=16, n_ctx=8),
    n_steps=24,
    batch_size=8,
    lr=3e-2,
    warmup_steps=0,
    schedule="constant",
    log_every=10,
    eval_every=100,
    threads=1,
    device="cpu",
    guard_z=6.0,
    guard_window=12,
    checkpoints=Checkpoints(per_doubling=0, at=(15, 16), resume_every=100, anchors=0),
)
SPIKE = 15  # the update that is given a batch of one token over and over


@pytest.fixture(autouse=True)
def _a_batch_that_stands_out(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "cache"))
    plain = RepeatedSource.batch

    def batch(self, step, *args):
        tokens = plain(self, step, *args)
        return torch.full_like(tokens, 3) if step == SPIKE else tokens

    monkeypatch.setattr(RepeatedSource, "batch", batch)


def judged(guard: Guard, losses: list[float], norms: list[float] | None = None) -> list[int]:
    norms = norms or [1.0] * len(losses)
    return [int(guard.judge(torch.tensor([loss, norm]))) for loss, norm in zip(losses, norms, strict=True)]


def wave(n: int) -> list[float]:
    return [2.0 + 0.1 * (i % 3) for i in range(n)]


def test_a_planted_spike_is_found_and_nothing_else():
    losses = wave(40)
    losses[25] = 3.0
    assert [i for i, spike in enumerate(judged(Guard(6, 16, torch.device("cpu")), losses)) if spike] == [25]
    norms = [0.5 + 0.01 * (i % 5) for i in range(40)]
    norms[30] = 5.0
    assert [i for i, spike in enumerate(judged(Guard(6, 16, torch.device("cpu")), wave(40), norms)) if spike] == [30]


def test_the_limit_is_mean_plus_z_deviations_of_the_window_by_hand():
    for loss, spike in ((2.9999, 0), (3.0001, 1)):
        guard = Guard(2, 3, torch.device("cpu"))
        judged(guard, [9.0, 0.0, 1.0, 2.0])  # the ring keeps 0, 1, 2: mean 1, deviation 1
        assert judged(guard, [loss]) == [spike]


def test_a_fall_is_no_spike_and_without_a_full_window_nothing_is():
    assert not any(judged(Guard(3, 8, torch.device("cpu")), [*wave(12), 0.1]))
    assert not any(judged(Guard(3, 8, torch.device("cpu")), [1.0, 1.1, 100.0]))


def test_a_level_that_stays_is_soon_none_any_more():
    spikes = judged(Guard(4, 8, torch.device("cpu")), [*wave(16), *(3 + value for value in wave(32))])
    assert spikes[16] == 1
    assert not any(spikes[20:])


def test_its_state_survives_json_to_the_bit_and_decides_the_same():
    draw = torch.Generator().manual_seed(0)
    losses = torch.rand(60, generator=draw).tolist()
    whole = Guard(1.5, 16, torch.device("cpu"))
    first, second = judged(whole, losses[:37]), judged(whole, losses[37:])
    part = Guard(1.5, 16, torch.device("cpu"))
    assert judged(part, losses[:37]) == first
    resumed = Guard(1.5, 16, torch.device("cpu"))
    resumed.restore(json.loads(json.dumps(part.state())))
    assert judged(resumed, losses[37:]) == second
    assert any(second)
    assert torch.equal(resumed.last, whole.last)


def test_a_state_of_another_window_is_refused():
    with pytest.raises(CheckpointError, match="guard_window"):
        Guard(3, 8, torch.device("cpu")).restore(Guard(3, 9, torch.device("cpu")).state())


def rows(run: Run) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in run.metrics()]


def test_a_skipped_update_leaves_the_weights_and_is_logged(tmp_path):
    events = []
    run = train(CONFIG, tmp_path / "skips", progress=events.append)
    assert run.checkpoint_hash(SPIKE) == run.checkpoint_hash(SPIKE + 1)
    assert [row["skipped"] for row in run.metrics() if "skipped" in row] == [[SPIKE + 1]]
    (notice,) = (event.text for event in events if isinstance(event, Notice))
    assert notice.startswith(f"update {SPIKE + 1} stands out and was left out: loss ")


def test_a_noted_update_is_made_and_without_a_guard_nothing_is_said(tmp_path):
    noted = train(replace(CONFIG, guard_action="note"), tmp_path / "notes")
    assert [row["spikes"] for row in noted.metrics() if "spikes" in row] == [[SPIKE + 1]]
    plain = train(replace(CONFIG, guard_z=0.0), tmp_path / "plain")
    assert noted.checkpoint_hash(24) == plain.checkpoint_hash(24)
    assert not [row for row in plain.metrics() if {"spikes", "skipped"} & row.keys()]


@pytest.mark.parametrize("stop_at", [4, 12, 16, 17, 20])
def test_a_run_that_goes_on_skips_and_logs_the_same_updates(tmp_path, monkeypatch, stop_at):
    config = replace(CONFIG, checkpoints=replace(CONFIG.checkpoints, at=()))  # so that the spike waits for a row until 20
    whole = train(config, tmp_path / "whole")
    update = Updates.__call__

    def stopping(self, step):
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)
        return update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Updates, "__call__", stopping)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "parts")
    parts = train(config, tmp_path / "parts", resume=True)
    assert parts.checkpoint_hash(24) == whole.checkpoint_hash(24)
    assert rows(parts) == rows(whole)
    assert [row.get("skipped") for row in rows(whole)] == [None, None, [SPIKE + 1], None]
