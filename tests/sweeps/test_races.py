"""Sweeps of a run that changes meanwhile, and rows of an analysis that changes between them: nothing under a wrong name."""

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import pandas
import pytest

from interp_gpt2.analysis.rows import Analysis, Row
from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.errors import AnalysisError, CheckpointError, RunError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import save_checkpoint
from interp_gpt2.runs.durable import remove_directory
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import attempt_sweep, results, sweep
from tests.sweeps.conftest import CONFIG, Norm, add, first_weight

Make = Callable[..., Run]
BEGUN: dict[int, threading.Event] = {}  # reads
MEANWHILE: list[Callable[[], None]] = []


class Watched(Run):
    """A run whose reads are seen."""

    def model(self, step: int | None = None) -> GPT2:
        BEGUN[step].set()
        return super().model(step)


@dataclass(frozen=True, eq=False)
class Waits(Analysis):
    """Is not done with a checkpoint before the next is being read."""

    steps: tuple[int, ...]
    name: str = "waits"

    def __call__(self, model: GPT2) -> list[Row]:
        at = [first_weight(step) for step in self.steps].index(float(model.wte.weight[0, 0]))
        if at + 1 < len(self.steps) and not BEGUN[self.steps[at + 1]].wait(20):
            raise AnalysisError("nobody reads the next checkpoint")
        return [{"metric": "x", "value": 1.0}]


@dataclass(frozen=True, eq=False)
class First(Analysis):
    """The first weight; something happens while it is computed for the first time."""

    name: str = "first"

    def __call__(self, model: GPT2) -> list[Row]:
        while MEANWHILE:
            MEANWHILE.pop()()
        return [{"metric": "first", "value": float(model.wte.weight[0, 0])}]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert not MEANWHILE


def test_the_next_checkpoint_is_read_while_this_one_computes(make_run: Make) -> None:
    steps = (0, 1, 2, 4)
    BEGUN.update({step: threading.Event() for step in steps})
    run = Watched(make_run([*steps]).path)
    assert attempt_sweep(run, Waits(steps), workers=1).error is None


def replace_ours(run: Run, step: int) -> None:
    shutil.rmtree(run.checkpoint(step))
    save_checkpoint(run.path, step, GPT2(CONFIG, seed=99).state_dict(), CONFIG, 100 * step)


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_a_checkpoint_that_is_replaced_meanwhile_is_not_kept_under_the_hash_of_the_one_before(
    make_run: Make, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "cache"))
    if kind == "ours":
        run = make_run([0, 1, 2])
        MEANWHILE.append(lambda: replace_ours(run, 2))
    else:
        for step in (0, 1, 2):
            to_huggingface(GPT2(CONFIG, seed=step)).save_pretrained(tmp_path / f"step{step}")
        run = Run.from_directories([tmp_path / f"step{step}" for step in (0, 1, 2)])
        MEANWHILE.append(lambda: to_huggingface(GPT2(CONFIG, seed=99)).save_pretrained(tmp_path / "step2"))
    swept = attempt_sweep(run, First(), workers=1)
    assert set(swept.frame.step) == {0, 1}
    assert isinstance(swept.error, CheckpointError)
    assert f"step 2 of {run.name} was replaced while it was swept; sweep it again" in str(swept.error)
    assert list(sweep(run, First(), workers=1).value) == [first_weight(0), first_weight(1), first_weight(99)]


def test_a_run_that_grows_and_loses_a_checkpoint_meanwhile(make_run: Make) -> None:
    run = make_run([0, 1, 2, 4])
    MEANWHILE.append(lambda: (add(run, 8), remove_directory(run.checkpoint(4))))
    swept = attempt_sweep(run, First(), workers=1)
    assert set(swept.frame.step) == {0, 1, 2}
    assert "3 finished and are kept: step 4: " in str(swept.error)
    assert "has no checkpoint at step 4; the nearest: 2 and 8" in str(swept.error)
    assert list(sweep(run, First(), workers=1).step) == [0, 1, 2, 8]


def test_a_checkpoint_that_goes_before_it_is_looked_at_does_not_stop_the_others(make_run: Make) -> None:
    listed = [[0, 1, 5]]

    class Late(Run):
        @property
        def steps(self) -> list[int]:
            return listed.pop() if listed else super().steps

    swept = attempt_sweep(Late(make_run([0, 1]).path), First(), workers=1)
    assert set(swept.frame.step) == {0, 1}
    assert [one.step for one in swept.failures] == [5]


def test_two_sweeps_of_a_run_at_once_end_in_the_same_table(make_run: Make) -> None:
    run = make_run([*range(20)])
    with ThreadPoolExecutor(2) as both:
        tables = list(both.map(lambda _: sweep(run, [Norm(), First()], workers=1), range(2)))
    pandas.testing.assert_frame_equal(*tables)
    assert len(list((run.path / "sweeps").rglob("*.json"))) == 40
    assert not list((run.path / "sweeps").rglob("*.tmp"))


def test_a_run_without_a_readable_checkpoint_is_told_so_before_data_is_looked_for(markov_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "chains"
    shutil.copytree(markov_run.path, path, ignore=shutil.ignore_patterns("sweeps", "step-*"))
    with pytest.raises(RunError, match="chains has no checkpoints to sweep"):
        sweep(Run(path), "induction_heads")
    shutil.copytree(markov_run.checkpoint(9), path / "step-00000009")
    (path / "step-00000009" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        sweep(Run(path), "induction_heads")


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_workers_of_an_executor_may_have_another_working_directory(
    make_run: Make, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    make_run([0, 1])
    to_huggingface(GPT2(CONFIG, seed=0)).save_pretrained("step0")
    run = Run("tiny") if kind == "ours" else Run.from_directories(["step0"])
    executor = ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=os.chdir, initargs=("/",))
    with executor:
        frame = sweep(run, First(), executor=executor)
    assert list(frame.value) == [first_weight(step) for step in run.steps]
    assert sweep(run, First(), workers=1).equals(frame)


# An analysis that is edited between two sweeps -----------------------------------------------------------------------

TYPED = """
from dataclasses import dataclass
from interp_gpt2.analysis.rows import Analysis
SCALE = 2
def helper(x):
    return x in {"a", "b", "c", "d"}
@dataclass(frozen=True, eq=False)
class Typed(Analysis):
    n: int = 1
    name: str = "typed"
    def __call__(self, model):
        return [{"metric": "x", "value": SCALE * 1.0 + helper("a")}]
"""


def typed(text: str) -> Analysis:
    """As at a prompt or in a notebook: a class without a file."""
    module = ModuleType("typed_at_a_prompt")
    sys.modules[module.__name__] = module
    exec(compile(text, "<cell>", "exec"), vars(module))
    return module.Typed()


def test_an_analysis_typed_at_a_prompt_is_another_after_it_is_typed_anew() -> None:
    first = typed(TYPED).fingerprint
    assert typed("\n\n" + TYPED).fingerprint == first
    for old, new in (("* 1.0", "* 1.5"), ("SCALE = 2", "SCALE = 3"), ('"c", "d"', '"c", "e"'), ("n: int = 1", "n: int = 2")):
        assert typed(TYPED.replace(old, new)).fingerprint != first
    assert typed(TYPED + "\nother = 5\n").fingerprint == first


def test_an_edit_to_a_module_beside_somebodys_analysis_makes_its_rows_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_analysis.py").write_text("from my_helper import f\nimport my_other\n")
    for name in ("my_helper", "my_other", "my_third"):
        (tmp_path / f"{name}.py").write_text("f = 1\n")
    __import__("my_analysis")

    def edited(name: str) -> bool:
        before = results.code_hash("my_analysis")
        with (tmp_path / f"{name}.py").open("a") as file:
            file.write("g = 2\n")
        results.code_hash.cache_clear()
        return results.code_hash("my_analysis") != before

    assert [edited(name) for name in ("my_helper", "my_other", "my_third")] == [True, True, False]
