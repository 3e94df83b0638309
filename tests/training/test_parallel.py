"""Several runs at once: each by itself, none hurt by another's failure, all stopped together."""

import signal
from dataclasses import replace

import pytest

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import DataError
from interp_gpt2.runs.run import Run
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.events import Finished, Logged
from interp_gpt2.training.loop import train
from interp_gpt2.training.parallel import Job, run_all
from interp_gpt2.training.signals import Interrupted

TINY = TrainConfig(
    data="repeated-random", model=GPT2Config(n_layers=1, n_heads=2, d_model=16, n_ctx=8), n_steps=10, batch_size=4, threads=1
)


def test_a_failing_run_is_named_and_the_others_are_what_they_would_have_been_alone(tmp_path):
    heard = []
    jobs = [
        Job("bad", replace(TINY, data=str(tmp_path / "no such text")), tmp_path / "bad"),
        Job("good", TINY, tmp_path / "good"),
    ]
    with pytest.raises(DataError, match="bad: there is no file or folder"):
        run_all(jobs, 2, lambda name, event: heard.append((name, event)))
    assert {name for name, _ in heard} == {"good"}
    assert isinstance(heard[-1][1], Finished)
    assert Run(tmp_path / "good").checkpoint_hash(10) == train(TINY, tmp_path / "alone").checkpoint_hash(10)


def test_a_signal_stops_every_run_with_a_checkpoint_to_resume_from(tmp_path):
    endless = replace(TINY, n_steps=10**6, log_every=1)
    running = set()

    def progress(name, event):
        if isinstance(event, Logged):
            if len(running) < 2 and len(running | {name}) == 2:
                signal.raise_signal(signal.SIGTERM)
            running.add(name)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        run_all([Job(name, endless, tmp_path / name) for name in ("a", "b", "never begun")], 2, progress)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    for name in ("a", "b"):
        run = Run(tmp_path / name)
        assert run.newest_verified_step(resumable=True).step == run.steps[-1] == run.metrics()[-1]["step"]
    assert not (tmp_path / "never begun").exists()
