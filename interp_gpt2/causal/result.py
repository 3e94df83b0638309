"""What a patching sweep found: a number for every cell, with the two runs it lies between."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp_gpt2.errors import AnalysisError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class PatchingResult:
    """The metric of every cell of a sweep, on every pair.

    `values` (*axes, pair) in the metric's unit; `axes` name its axes without the last, `labels` what stands along each.
    `clean` and `corrupted` (pair,) are the two runs' own. `direction`: "denoising" puts clean pieces into the corrupted run,
    "noising" corrupted pieces into the clean one. `skipped` (*axes, pair): nothing differs there between the two runs, or the
    metric does not depend on it, so that the value is the base run's. Cells that an interrupt left undone are NaN, and
    `complete` is False. `bytes_used` is what the largest batch of interventions took, by estimate. A metric that is one
    number for all pairs has one column.
    """

    values: Float[Tensor, "*axes pair"]
    axes: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    clean: Float[Tensor, "pair"]
    corrupted: Float[Tensor, "pair"]
    skipped: Bool[Tensor, "*axes pair"]
    direction: str
    metric: str
    hook_point: str
    bytes_used: int
    complete: bool = True

    @property
    def n_pairs(self) -> int:
        return len(self.clean)

    @cached_property
    def mean(self) -> Float[Tensor, "*axes"]:
        """The metric of every cell, its mean over pairs."""
        return self.values.mean(-1)

    @cached_property
    def normalised(self) -> Float[Tensor, "*axes"]:
        """(mean - mean of corrupted) / (mean of clean - mean of corrupted): 0 as corrupted, 1 as clean, in both directions.

        Unbounded: a patch can do more than the whole other run, or the opposite. A ratio of means, which a pair on which
        clean and corrupted hardly differ cannot blow up.
        """
        return (self.mean - self.corrupted.mean()) / self._gap

    @cached_property
    def interval(self) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
        """95 % confidence interval of `normalised` over pairs drawn like these: low and high, NaN for a single pair."""
        return ratio_interval(self.values - self.corrupted, self.clean - self.corrupted)

    @property
    def _gap(self) -> Float[Tensor, ""]:
        return self.clean.mean() - self.corrupted.mean()

    @property
    def n_skipped(self) -> int:
        """Cells that had nothing to be computed on any pair."""
        return int(self.skipped.all(-1).sum())

    def at(self, axis: str, label: str | int) -> Self:
        """The part at one place along an axis, by its label or its index: `result.at("layer", 9).at("head", "H6")`.

        Raises AnalysisError for an axis or a place that is not there.
        """
        if axis not in self.axes:
            raise AnalysisError(f"there is no axis {axis!r}; the result's are {', '.join(self.axes) or 'none'}")
        labels, which = self.labels[axis], self.axes.index(axis)
        index = label if isinstance(label, int) else labels.index(label) if label in labels else len(labels)
        if not -len(labels) <= index < len(labels):
            raise AnalysisError(f"there is no {axis} {label!r}; there are {len(labels)}, {labels[0]!r} to {labels[-1]!r}")
        return replace(
            self,
            values=self.values.select(which, index),
            axes=tuple(name for name in self.axes if name != axis),
            labels={name: known for name, known in self.labels.items() if name != axis},
            skipped=self.skipped.select(which, index),
            hook_point=f"{self.hook_point}, {axis} {labels[index]}",
        )

    def top(self, n: int = 10) -> "pd.DataFrame":
        """The n cells that moved the metric furthest from the patched run, the furthest first."""
        base = 0.0 if self.direction == "denoising" else 1.0
        frame = self.to_frame()
        return frame.loc[(frame.normalised - base).abs().sort_values(ascending=False, kind="stable").index[:n]]

    def to_frame(self) -> "pd.DataFrame":
        """A row for each cell: its labels, value, normalised value with interval, the two baselines, pairs and skipped."""
        import itertools

        import pandas as pd

        low, high = self.interval
        places = list(itertools.product(*(self.labels[axis] for axis in self.axes)))
        frame = pd.DataFrame(places, columns=list(self.axes))
        if not self.axes:
            frame = pd.DataFrame(index=[0])
        columns = {
            "value": self.mean, "normalised": self.normalised, "low": low, "high": high,
            "skipped": self.skipped.all(-1),
        }  # fmt: skip
        for name, column in columns.items():
            frame[name] = column.flatten().tolist()
        return frame.assign(
            clean=self.clean.mean().item(), corrupted=self.corrupted.mean().item(), n_pairs=self.n_pairs,
            metric=self.metric, hook_point=self.hook_point, direction=self.direction,
        )  # fmt: skip

    def __repr__(self) -> str:
        shape = " x ".join(f"{size} {axis}" for axis, size in zip(self.axes, self.values.shape, strict=False)) or "one cell"
        undone = "" if self.complete else f", interrupted: {int(self.mean.isnan().sum())} cells not done"
        return (
            f"PatchingResult({self.hook_point}, {self.direction}: {shape}, {self.n_pairs} pairs, {self.metric} "
            f"{self.corrupted.mean():.4g} corrupted, {self.clean.mean():.4g} clean, {self.n_skipped} cells skipped{undone})"
        )


def ratio_interval(
    parts: Float[Tensor, "*axes pair"], wholes: Float[Tensor, "pair"]
) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
    """95 % confidence interval of mean(parts) / mean(wholes), over pairs drawn like these: NaN for a single pair.

    Student's t with the linearised standard error of a ratio of means (Cochran 1977, "Sampling Techniques", 6.4). Meant for
    ten pairs or more; with fewer it is too narrow unless they are close to normal.
    """
    n, ratio = len(wholes), parts.mean(-1) / wholes.mean()
    if n < 2:
        return ratio * torch.nan, ratio * torch.nan
    from scipy.stats import t

    residual = parts - ratio[..., None] * wholes
    half = float(t.ppf(0.975, n - 1)) * (residual.square().sum(-1) / (n - 1) / n).sqrt() / wholes.mean().abs()
    return ratio - half, ratio + half


def stacked(results: Mapping[str, PatchingResult], axis: str) -> PatchingResult:
    """Results with the same axes as one, their names along a new first axis. Raises AnalysisError if their axes differ."""
    found = list(results.values())
    first = found[0]
    if any(each.axes != first.axes or each.values.shape != first.values.shape for each in found):
        raise AnalysisError(f"results with different axes cannot be stacked: {[each.axes for each in found]}")
    return PatchingResult(
        torch.stack([each.values for each in found]),
        (axis, *first.axes),
        {axis: tuple(results), **first.labels},
        first.clean,
        first.corrupted,
        torch.stack([each.skipped for each in found]),
        first.direction,
        first.metric,
        ", ".join(each.hook_point for each in found),
        max(each.bytes_used for each in found),
        all(each.complete for each in found),
    )
