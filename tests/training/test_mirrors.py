"""Mirrors get what is logged, and cannot stop training."""

import sys
import threading
import types
from dataclasses import replace

import pytest

from interp_gpt2.config import GPT2Config
from interp_gpt2.runs.run import Run
from interp_gpt2.training import mirrors
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.events import Finished, Notice
from interp_gpt2.training.loop import train

CONFIG = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=1, n_heads=2, d_model=16, n_ctx=8),
    n_steps=6,
    batch_size=4,
    log_every=2,
    threads=1,
    device="cpu",
)


class FakeWandB(types.ModuleType):
    """Keeps what it is told; `breaks` is the call that fails."""

    def __init__(self, breaks: str = "") -> None:
        super().__init__("wandb")
        self.breaks, self.rows, self.settings, self.finished = breaks, [], {}, False
        self.threads: set[str] = set()

    def _called(self, name: str) -> None:
        self.threads.add(threading.current_thread().name)
        if self.breaks == name:
            raise ConnectionError(f"{name} has no network\nsecond line")

    def init(self, **settings):
        self._called("init")
        self.settings = settings
        return self

    def log(self, values, step):
        self._called("log")
        self.rows.append((step, values))

    def finish(self):
        self._called("finish")
        self.finished = True


def trained(tmp_path, monkeypatch, wandb, **changes) -> tuple[Run, list]:
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    events = []
    return train(replace(CONFIG, tracking="wandb", **changes), tmp_path / "run", progress=events.append), events


def test_a_mirror_gets_every_row_and_the_config_and_is_closed(tmp_path, monkeypatch):
    wandb = FakeWandB()
    run, events = trained(tmp_path, monkeypatch, wandb)
    assert wandb.rows == [(row["step"], {k: v for k, v in row.items() if k != "step"}) for row in run.metrics()]
    assert wandb.settings["config"] == run.settings["config"]
    assert wandb.settings["name"] == "run"
    assert wandb.finished
    assert all(name.startswith("wandb") for name in wandb.threads)
    assert not [event for event in events if isinstance(event, Notice)]


def test_a_run_that_goes_on_is_the_same_run_there(tmp_path, monkeypatch):
    first, second = FakeWandB(), FakeWandB()
    run, _ = trained(tmp_path, monkeypatch, first)
    monkeypatch.setitem(sys.modules, "wandb", second)
    train(replace(CONFIG, tracking="wandb", n_steps=8), run.path, resume=True)
    assert first.settings["id"] == second.settings["id"]
    assert [step for step, _ in second.rows] == [8]


@pytest.mark.parametrize("breaks", ["init", "log", "finish"])
def test_a_mirror_that_fails_is_noticed_once_and_training_goes_on(tmp_path, monkeypatch, breaks):
    run, events = trained(tmp_path, monkeypatch, FakeWandB(breaks))
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert notice.text == (
        f"wandb shows no more of this run (ConnectionError: {breaks} has no network); metrics.jsonl has every row"
    )
    assert any(isinstance(event, Finished) for event in events)
    plain = train(CONFIG, tmp_path / "plain")
    assert run.checkpoint_hash(6) == plain.checkpoint_hash(6)
    assert len(run.metrics()) == len(plain.metrics())


def test_a_mirror_that_does_not_end_is_noticed_and_holds_up_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(mirrors, "CLOSING_SECONDS", 0.2)
    wandb, never = FakeWandB(), threading.Event()
    wandb.finish = never.wait
    _, events = trained(tmp_path, monkeypatch, wandb)
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert "TimeoutError: not done after 0 s" in notice.text
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "wandb")
    assert thread.daemon  # Python's own end does not wait for it
    never.set()
    thread.join(10)


def test_a_package_that_is_not_installed_is_noticed_too(tmp_path, monkeypatch):
    _, events = trained(tmp_path, monkeypatch, None)
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert "ModuleNotFoundError" in notice.text


def test_tensorboards_files_hold_the_rows(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the tensorboard package")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(replace(CONFIG, tracking="tensorboard"), tmp_path / "run")
    shown = EventAccumulator(str(run.path / "tensorboard"))
    shown.Reload()
    logged = {row["step"]: row["loss"] for row in run.metrics() if "loss" in row}
    assert {event.step: event.value for event in shown.Scalars("loss")} == pytest.approx(logged)
