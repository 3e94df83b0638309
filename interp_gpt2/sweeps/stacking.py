"""Several small checkpoints evaluated at once, as one model with an axis more, where that is measured to be faster.

torch.func stacks the parameters and maps the analysis over them. What it saves is the cost of calling each operation, which
is all there is to a model of a few thousand parameters on a few tokens; on larger ones it is slower, for the products no
longer have the kernels that were made for them. So an analysis must say that it can be stacked, the first checkpoints are
timed one by one, and stacks grow only while they win: a sweep pays at most one small stack for the question.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from interp_gpt2.analysis.rows import StackableAnalysis
from interp_gpt2.model import GPT2
from interp_gpt2.sweeps.results import plain_row
from interp_gpt2.sweeps.tasks import Failure, Task, analyse, failure

FEWEST = 64  # checkpoints, for the question to cost little beside the sweep
SLOWEST = 2e-3  # seconds for one model alone, beyond which its products outweigh the calls
SIZES = (8, 32)  # stacks: the first to find out, the others from then on
AHEAD = 2  # checkpoints that are read while a group is computed
TOLERANCE = 1e-4  # within which a stack must agree with its first model alone


def worth_asking(tasks: Sequence[Task]) -> bool:
    """Are there enough checkpoints, and analyses that can be stacked?"""
    return len(tasks) >= FEWEST and any(isinstance(analysis, StackableAnalysis) for analysis, _ in tasks[0].wanted)


class _Measured(nn.Module):
    """An analysis as a module of no inputs, whose parameters are its model's."""

    def __init__(self, analysis: StackableAnalysis, model: GPT2) -> None:
        super().__init__()
        self.analysis, self.model = analysis, model

    def forward(self) -> Tensor:
        return self.analysis.measure(self.model)


@torch.no_grad()
def measure_stacked(analysis: StackableAnalysis, models: Sequence[GPT2]) -> list[Tensor]:
    """`analysis.measure` of each model, in one pass over all of them."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    parameters, _ = stack_module_state(list(models))
    base = _Measured(analysis, models[0])
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no such axis, and would run once for each model
        measured = torch.vmap(lambda own: functional_call(base, {f"model.{name}": w for name, w in own.items()}, ()))(parameters)
    return list(measured)


@dataclass
class Judge:
    """How many models of an analysis to take at once, from how long they have been seen to take."""

    alone: float | None = None  # seconds a model; of the second, for the first warms up
    seen: int = 0
    size: int = 1
    over: bool = False

    def next(self, n_left: int) -> int:
        return self.size if self.size <= n_left else 1

    def saw(self, n: int, seconds: float) -> None:
        """Learn from `n` models at once: grow while a stack wins, and go back to one at a time for good when it does not."""
        if self.over:
            return
        self.seen += n
        if n == 1:
            self.alone = seconds if self.seen > 1 else None
            if self.alone is not None:
                self.over = self.alone > SLOWEST
                self.size = 1 if self.over else max(self.size, SIZES[0])
        elif seconds / n < self.alone * (1.1 if n == SIZES[0] else 0.95):
            self.size = SIZES[1]
        else:
            self.stop()

    def stop(self) -> None:
        self.size, self.over = 1, True


def run_stacked(tasks: Sequence[Task]) -> list[Failure]:
    """`run_tasks`, with analyses that can be stacked evaluated on several checkpoints at once while that is faster."""
    failures: list[Failure] = []
    judges = [Judge() if isinstance(analysis, StackableAnalysis) else None for analysis, _ in tasks[0].wanted]
    reads: dict[int, Future] = {}
    begin, n = 0, 2
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as computer:
        while begin < len(tasks):
            for number in range(begin, min(begin + n + AHEAD, len(tasks))):
                if number not in reads:
                    reads[number] = reader.submit(tasks[number].model)
            group = {task: reads.pop(begin + number) for number, task in enumerate(tasks[begin : begin + n])}
            failures += [failure(task.step, None, error) for task, read in group.items() if (error := read.exception())]
            models = {task: read.result() for task, read in group.items() if read.exception() is None}
            group.clear()
            for i, judge in enumerate(judges):
                failures += _alone(i, models, computer) if judge is None else _stacked(i, models, judge, computer)
                if any(failed.stops_all for failed in failures):
                    return failures
            begin += n
            n = max(judge.size for judge in judges if judge is not None)
    return failures


def _alone(i: int, models: Mapping[Task, GPT2], computer: Executor) -> list[Failure]:
    failures: list[Failure] = []
    for task, model in models.items():
        if not any(failed.stops_all for failed in failures):
            failures += analyse(replace(task, wanted=task.wanted[i : i + 1]), model, computer)
    return failures


def _stacked(i: int, models: Mapping[Task, GPT2], judge: Judge, computer: Executor) -> list[Failure]:
    left, failures = [task for task in models if task.wanted[i][1].read() is None], []
    while left:
        now = left[: judge.next(len(left))]
        kept = computer.submit(_keep, i, {task: models[task] for task in now})
        error = kept.exception()
        if error is not None and len(now) > 1:
            judge.stop()  # one by one it will show which model it is
            continue
        left = left[len(now) :]
        if error is None:
            judge.saw(len(now), kept.result())
        else:
            failures.append(failure(now[0].step, now[0].wanted[i][0].name, error))
            if failures[-1].stops_all:
                break
    return failures


@torch.no_grad()
def _keep(i: int, models: Mapping[Task, GPT2]) -> float:
    """Measure and write; the seconds that measuring took. Raises AssertionError for a stack that its first model contradicts."""
    tasks, analysis = list(models), next(iter(models)).wanted[i][0]
    first = models[tasks[0]]
    began = time.perf_counter()
    measured = [analysis.measure(first)] if len(models) == 1 else measure_stacked(analysis, list(models.values()))
    seconds = time.perf_counter() - began
    if len(models) > 1:
        torch.testing.assert_close(measured[0], analysis.measure(first), atol=TOLERANCE, rtol=0)
    for task, values in zip(tasks, measured, strict=True):
        own, result = task.wanted[i]
        result.write([plain_row(row, own) for row in own.rows_of(values, first.config)])
    return seconds
