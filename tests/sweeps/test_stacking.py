"""Stacked checkpoints: the same values, and only where they have been seen to win."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from interp_gpt2.analysis.loss import LossByPosition
from interp_gpt2.analysis.rows import Row, StackableAnalysis
from interp_gpt2.config import GPT2Config
from interp_gpt2.model import GPT2
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import attempt_sweep, stacking, sweep
from interp_gpt2.sweeps.stacking import SIZES, Judge, measure_stacked
from tests.sweeps.conftest import Norm, first_weight, truncate

TOKENS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
STEPS = [*range(16)]
Make = Callable[..., Run]


@dataclass(frozen=True, eq=False)
class Fussy(StackableAnalysis):
    """The norm of W_E; refuses the model whose first weight is `of`, and, where `wrong`, errs in stacks."""

    of: float | None = None
    wrong: bool = False
    name: str = "fussy"

    def measure(self, model: GPT2) -> Tensor:
        weights = model.wte.weight
        stacked = torch._C._functorch.is_batchedtensor(weights)
        if self.of is not None and not stacked and float(weights[0, 0]) == self.of:
            raise ArithmeticError("not this one")
        if self.of is not None and stacked:
            raise ArithmeticError("one of these")
        return weights.norm() + (1 if stacked and self.wrong else 0)

    def rows_of(self, measured: Tensor, config: GPT2Config) -> list[Row]:
        return [{"metric": "norm", "value": measured}]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stacks are asked for and win, whatever they take; their sizes."""
    sizes: list[int] = []
    real = stacking.measure_stacked

    def counted(analysis: StackableAnalysis, models: list[GPT2]) -> list[Tensor]:
        sizes.append(len(models))
        return real(analysis, models)

    monkeypatch.setattr(stacking, "FEWEST", 2)
    monkeypatch.setattr(stacking, "SLOWEST", 1e9)
    monkeypatch.setattr(stacking, "SIZES", (3, 6))
    clock = SimpleNamespace(perf_counter=iter(range(10**9)).__next__)  # whatever is done takes a second
    monkeypatch.setattr(stacking, "time", clock)
    monkeypatch.setattr(stacking, "measure_stacked", counted)
    return sizes


def test_a_stack_measures_what_each_model_measures(any_model: GPT2, make_gpt2: Callable[..., GPT2]) -> None:
    models = [make_gpt2(any_model.config, seed) for seed in range(3)]
    analysis = LossByPosition(torch.randint(50, (2, 13), generator=torch.Generator().manual_seed(1)))
    for model, measured in zip(models, measure_stacked(analysis, models), strict=True):
        torch.testing.assert_close(measured, analysis.measure(model), atol=1e-4, rtol=0)


def test_a_stacked_sweep_is_the_serial_one_within_1e_4(make_run: Make, tmp_path, always: list[int]) -> None:
    run = make_run(STEPS)
    analyses = [LossByPosition(TOKENS), Norm()]
    serial = sweep(run, analyses, workers=1, store=tmp_path / "serial")
    assert always == []
    stacked = sweep(run, analyses, workers=1, store=tmp_path / "stacked", stack=True)
    assert always == [3, 6]  # after two alone; the rest of a group goes one by one
    assert stacked.drop(columns=["value", "low", "high"]).equals(serial.drop(columns=["value", "low", "high"]))
    assert (stacked.value - serial.value).abs().max() < 1e-4


def test_in_a_stack_too_what_fails_is_named_and_the_others_are_kept(make_run: Make, always: list[int]) -> None:
    run = make_run(STEPS)
    truncate(run, 4)
    swept = attempt_sweep(run, Fussy(of=first_weight(7)), workers=1, stack=True)
    assert set(swept.frame.step) == set(STEPS) - {4, 7}
    assert [(one.step, one.analysis) for one in swept.failures] == [(4, None), (7, "fussy")]
    assert always == [3]  # and none after the one that failed


def test_a_stack_that_contradicts_its_first_model_is_thrown_away(make_run: Make, always: list[int]) -> None:
    run = make_run(STEPS)
    frame = sweep(run, Fussy(wrong=True), workers=1, stack=True)
    assert list(frame.value) == list(sweep(run, Fussy(), workers=1).value)
    assert always == [3]


def test_stacks_grow_while_they_win_and_end_when_they_do_not() -> None:
    small, large = SIZES
    judge = Judge()
    assert judge.next(100) == 1
    judge.saw(1, 1.0)  # warming up
    assert judge.next(100) == 1
    judge.saw(1, 0.001)
    assert judge.next(100) == small
    assert judge.next(small - 1) == 1
    judge.saw(small, 0.001 * small * 1.05)  # not yet faster, and near enough to look at a larger one
    assert judge.next(100) == large
    judge.saw(large, 0.001 * large * 0.5)
    assert judge.next(100) == large
    judge.saw(large, 0.001 * large)
    assert [judge.next(100), judge.over] == [1, True]


@pytest.mark.parametrize(("alone", "stack"), [(0.003, None), (0.001, 1.2)])
def test_where_stacks_lose_one_small_one_is_all_that_is_tried(alone: float, stack: float | None) -> None:
    judge = Judge()
    judge.saw(1, alone)
    judge.saw(1, alone)
    if stack is not None:
        judge.saw(SIZES[0], alone * stack * SIZES[0])
    assert judge.next(100) == 1
    judge.saw(1, alone / 100)
    assert judge.next(100) == 1
