"""Dask runs a sweep as any executor does, and when one of its workers is killed nothing is lost."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import attempt_sweep, sweep
from tests.sweeps.conftest import Norm, Slow, first_weight

distributed = pytest.importorskip("distributed", reason="needs dask[distributed]: the extra `distributed`")

pytestmark = pytest.mark.filterwarnings("default")  # Dask's own, on its way down
STEPS = [*range(10)]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_a_worker_killed_in_a_sweep_loses_nothing(client: Any, make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(STEPS)
    began, killed = tmp_path / "began", []
    began.mkdir()

    def kill_one() -> None:
        while len(found := sorted(began.iterdir())) < 4:
            time.sleep(0.02)
        killed.append(int(found[-1].name.split("-")[1]))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    frame = sweep(run, Slow(str(began), 0.3), executor=client.get_executor())
    killer.join()
    assert set(frame.step) == set(STEPS)
    assert list(frame.value) == [first_weight(step) for step in STEPS]
    pids = [int(path.name.split("-")[1]) for path in began.iterdir()]
    assert killed[0] in pids
    assert len(pids) <= len(STEPS) + 1  # what the dead worker had under way is begun again, and nothing else
    n_began = len(pids)
    sweep(run, Slow(str(began), 0.3), executor=client.get_executor())
    assert len(list(began.iterdir())) == n_began


def test_what_fails_on_a_cluster_is_named_as_it_is_here(client: Any, make_run: Callable[..., Run]) -> None:
    run = make_run([0, 1, 2])
    broken = Norm(of=first_weight(1), does="break")
    swept = attempt_sweep(run, broken, executor=client.get_executor())
    assert set(swept.frame.step) == {0, 2}
    assert "1 of 3 checkpoints failed, 2 finished and are kept: step 1: norm: ZeroDivisionError" in str(swept.error)
