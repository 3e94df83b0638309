"""Sweeps that go wrong: what failed is named, what was finished is kept, and the same sweep goes on."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from interp_gpt2.errors import AnalysisError, CheckpointError, CheckpointWriteError, RunError
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import attempt_sweep, executors, sound_run, sweep
from tests.sweeps.conftest import CONFIG, LETTERS, Norm, Slow, add, first_weight, truncate

STEPS = [0, 1, 2, 4, 8]
Make = Callable[..., Run]


def stored(run: Run, name: str = "norm") -> set[int]:
    return {int(path.name.split("-")[1]) for path in (run.path / "sweeps").glob(f"{name}-*/step-*.json")}


def test_what_worked_is_in_the_table_beside_what_failed(make_run: Make) -> None:
    run = make_run(STEPS)
    truncate(run, 2)
    broken = Norm(of=first_weight(4), does="break", name="broken")
    swept = attempt_sweep(run, [broken, Norm()], workers=1)
    assert set(swept.frame.step[swept.frame.analysis == "norm"]) == {0, 1, 4, 8}
    assert set(swept.frame.step[swept.frame.analysis == "broken"]) == {0, 1, 8}
    assert [(one.step, one.analysis) for one in swept.failures] == [(2, None), (4, "broken")]
    with pytest.raises(CheckpointError, match=r"2 of 5 checkpoints failed, 3 finished and are kept: step 2: .*truncated.*"
                                              r"step 4: broken: ZeroDivisionError: division by zero"):  # fmt: skip
        swept.complete()
    assert "1 / 0" in swept.failures[1].error.__notes__[0]  # where it happened, also from another process
    clean = attempt_sweep(run, Norm(), steps=[0, 1], workers=1)
    assert clean.error is None
    assert clean.complete() is clean.frame


def test_a_checkpoint_without_a_manifest_does_not_stop_the_others(make_run: Make) -> None:
    run = make_run(STEPS)
    (run.checkpoint(8) / "manifest.json").unlink()
    swept = attempt_sweep(run, Norm(), workers=1)
    assert set(swept.frame.step) == {0, 1, 2, 4}
    assert "manifest.json is missing" in str(swept.error)


def test_one_checkpoint_and_none(make_run: Make) -> None:
    assert list(sweep(make_run([7], "one"), Norm()).step) == [7]
    with pytest.raises(RunError, match="none has no checkpoints to sweep"):
        sweep(make_run([], "none"), Norm())


def test_another_model_in_a_run_is_named_and_the_others_are_kept(make_run: Make) -> None:
    run = make_run([0, 1, 8])
    add(run, 2, replace(CONFIG, n_layers=3))
    add(run, 4, replace(CONFIG, dropout=0.5))  # trained otherwise, and the same function
    swept = attempt_sweep(run, Norm(), workers=1)
    assert set(swept.frame.step) == {0, 1, 4, 8}
    assert isinstance(swept.error, CheckpointError)
    assert "step 2: another model than at step 8 of tiny (n_layers=3, not 2)" in str(swept.error)
    assert list(sweep(run, Norm(), steps=[2], workers=1).step) == [2]  # by itself it may be swept
    again = attempt_sweep(run, Norm(), workers=1)  # and is no part of the run because its rows are there now
    assert again.frame.equals(swept.frame)
    assert str(again.error) == str(swept.error)


def test_a_sound_run_has_the_whole_checkpoints_of_one_model(make_run: Make) -> None:
    run = make_run([0, 1, 2, 8])
    truncate(run, 1)
    add(run, 4, replace(CONFIG, n_layers=3))
    sound, left_out = sound_run(run)
    assert (sound.steps, sound.name, sound.results) == ([0, 2, 8], run.name, run.results)
    assert [one.step for one in left_out] == [1, 4]
    assert "model.safetensors is truncated" in str(left_out[0])
    assert "another model than at step 8 of tiny (n_layers=3, not 2)" in str(left_out[1])
    assert attempt_sweep(sound, Norm(), workers=1).error is None
    with pytest.raises(RunError, match="no checkpoint at step 1; the nearest: 0 and 2"):
        sound.model(1)
    assert sound_run(sound)[0].without([8]).steps == [0, 2]
    truncate(run, 0)
    with pytest.raises(CheckpointError, match="truncated"):
        sound_run(run.without([2, 4, 8]))


def test_another_tokenizer_in_a_run_is_named_and_the_others_are_kept(make_run: Make) -> None:
    run = make_run([0, 8])
    add(run, 4, tokenizer=type(LETTERS)("kjihgfedcba"))
    swept = attempt_sweep(run, Norm(), workers=1)
    assert set(swept.frame.step) == {0, 8}
    assert "step 4: another tokenizer than at step 8 of tiny" in str(swept.error)


@pytest.mark.parametrize("workers", ["here", "threads"])
def test_a_disk_that_fills_ends_the_sweep_and_keeps_what_was_written(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    from interp_gpt2.sweeps import results

    run, real, written = make_run(STEPS), results.written_atomically, []

    def full_after_two(path: Path) -> Any:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return real(path)

    monkeypatch.setattr(results, "written_atomically", full_after_two)
    with ThreadPoolExecutor(1) as executor:
        swept = attempt_sweep(run, Norm(), workers=1) if workers == "here" else attempt_sweep(run, Norm(), executor=executor)
    assert isinstance(swept.error, CheckpointWriteError)
    told = str(swept.error)
    assert "1 of 5 checkpoints failed (2 were not tried), 2 finished and are kept: step 2: norm: " in told
    assert re.search(r"No space left on device \([\d,]+ bytes needed, [\d,]+ free\)", told)
    assert stored(run) == {0, 1}
    monkeypatch.undo()
    assert set(sweep(run, Norm(), workers=1).step) == set(STEPS)


class Dying(ThreadPoolExecutor):
    """A pool of threads that breaks, as one of processes does when one dies, before the third task it is given."""

    n_tasks = 0

    def submit(self, work: Any, *args: Any) -> Any:
        self.n_tasks += 1
        return super().submit(self.break_down) if self.n_tasks == 3 else super().submit(work, *args)

    def break_down(self) -> None:
        raise BrokenProcessPool("a process in the process pool was terminated abruptly")


def test_a_pool_that_loses_a_worker_is_made_anew_and_nothing_is_lost(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[int] = []

    @contextmanager
    def pool(workers: int, needs_script: bool) -> Iterator[ThreadPoolExecutor]:
        pools.append(workers)
        with Dying(1) if len(pools) < 3 else ThreadPoolExecutor(1) as executor:
            yield executor

    monkeypatch.setattr(executors, "_pool", pool)
    run = make_run(STEPS)
    refusing = Norm(of=first_weight(0), name="refusing")
    swept = attempt_sweep(run, [refusing, Norm()], workers=2)
    assert set(swept.frame.step[swept.frame.analysis == "norm"]) == set(STEPS)
    assert [(one.step, one.analysis) for one in swept.failures] == [(0, "refusing")]  # told once, and not tried again
    assert pools == [2, 2]


def test_a_checkpoint_that_kills_its_process_is_named_and_the_others_are_kept(
    make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "DEATHS", 0)  # one at a time from the start: fresh processes take seconds
    run = make_run([1, 2, 4])
    deadly = Norm(of=first_weight(2), does="die")
    swept = attempt_sweep(run, [Norm(of=first_weight(1), name="refusing"), deadly], workers=2)
    assert set(swept.frame.step[swept.frame.analysis == "norm"]) == {1, 4}
    assert [one.step for one in swept.failures] == [1, 2]
    assert "step 2: the process that computed it died" in str(swept.error)


def test_an_executor_that_breaks_says_how_to_go_on(make_run: Make) -> None:
    run = make_run(STEPS)
    deadly = Norm(of=first_weight(4), does="die")
    told = r"the executor broke .* 3 of 5 checkpoints were finished and are kept: the same sweep on a new executor goes on"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor, pytest.raises(AnalysisError, match=told):
        sweep(run, deadly, executor=executor)
    assert stored(run) == {0, 1, 2}


def test_workers_and_an_executor_are_not_both_taken(make_run: Make) -> None:
    with ThreadPoolExecutor(1) as executor, pytest.raises(AnalysisError, match="pass one of them"):
        sweep(make_run([0]), Norm(), workers=2, executor=executor)


SCRIPT = """
from interp_gpt2 import Run, sweep
from tests.sweeps.conftest import Slow
if __name__ == "__main__":
    sweep(Run({path!r}), Slow({began!r}, 0.2), workers=1)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_sweep_goes_on_where_it_was(make_run: Make, tmp_path: Path, sign: int) -> None:
    run = make_run([*range(12)])
    began, script = tmp_path / "began", tmp_path / "script.py"
    began.mkdir()
    script.write_text(SCRIPT.format(path=str(run.path), began=str(began)))
    root = Path(executors.__file__).parents[2]
    process = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL)
    while len(list(began.iterdir())) < 4:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(sign)
    assert process.wait(30) != 0
    kept = stored(run, "slow")
    assert 2 <= len(kept) < 12
    n_began = len(list(began.iterdir()))
    assert set(sweep(run, Slow(str(began), 0.2), steps=sorted(kept), workers=1).step) == kept
    assert len(list(began.iterdir())) == n_began  # nothing that was finished is computed again
