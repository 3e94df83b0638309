"""Phase changes in any metric: found, dated with an interval, told from wandering, and compared across seeds.

`development.growth` asks whether a curve is a logistic rather than a line or a power law, with noise that is independent from
checkpoint to checkpoint. Metrics of a training run are not like that: they wander, and a curve that wanders often looks like
a step. So a change is believed only if a logistic also fits better than it would fit random walks as rough as the curve
itself (`p_walk`); and its date is as uncertain as refits to resampled residuals say.

How often chance alone passes (analyses/phase_changes.py --false-alarms 1000), in brackets by BIC alone:

    white noise:  0 of 1,000 at 12 checkpoints (0), 0 of 1,000 at 65 (0)
    random walk:  7 of 1,000 at 12 checkpoints (149), 8 of 1,000 at 65 (421)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from interp_gpt2.analysis.development import (
    MIN_CHECKPOINTS,
    MIN_RISE,
    Growth,
    PhaseChange,
    checked_curve,
    fit_logistic,
    growth,
    logistic_curve,
    logistic_grid,
    regress,
)
from interp_gpt2.errors import AnalysisError

if TYPE_CHECKING:
    import pandas

WALKS = 399  # random walks that a curve is held against
MOST_BY_CHANCE = 0.01  # share of them that may look as much like a step
RISE_OVER_NOISE = 5.0  # of the fitted curve, in standard deviations of what it leaves over

Curve = Float[np.ndarray, "checkpoint"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Detection:
    """What was found in one curve. `growth` is of the curve turned upright and divided by `unit`.

    `change`, in the metric's own unit, is None unless every criterion holds; `reason` says which do not. `falling`: the metric
    fell. `p_walk`: share of random walks, as rough as this curve, that a logistic fits as well as it (1 where it was not
    needed). `step_interval` and `width_interval`: 95 %, percentile bootstrap over blocks of residuals, no narrower than the
    distance between checkpoints there. `found_again`: share of the resampled curves whose midpoint lies in the run and whose
    rise is enough.
    """

    growth: Growth
    unit: float
    falling: bool
    change: PhaseChange | None
    reason: str
    p_walk: float
    step_interval: Interval | None = None
    width_interval: Interval | None = None
    found_again: float | None = None

    @property
    def verdict(self) -> str:
        """In one line, with the numbers."""
        if self.change is None or self.step_interval is None or self.width_interval is None:
            return f"no phase change: {self.reason}"
        (low, high), (narrow, wide) = self.step_interval, self.width_interval
        return (
            f"phase change at step {self.change.step:.0f} (95 %: {low:.0f} to {high:.0f}), width {self.change.width:.0f} "
            f"({narrow:.0f} to {wide:.0f}), {'fall' if self.falling else 'rise'} {abs(self.change.rise):.3g}; {self.reason}"
        )


def detect(
    steps: Sequence[float],
    values: Sequence[float],
    baseline: float | Sequence[float] = 0.0,
    least_rise: float | None = None,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> Detection:
    """Whether a metric of any unit changed phase, rising or falling, and when.

    All of these must hold: a logistic is better than a line and a power law by a BIC of 10 (`growth`); it rises or falls by
    `least_rise`, in the metric's unit, or without one by a fifth of the curve's range; by five standard deviations of its
    residuals; and at most 1 % of random walks look as much like a step. `steps` and `values` as in `growth`.

    Raises AnalysisError as `growth` does, or for a `least_rise` that is not above 0.
    """
    if least_rise is not None and not least_rise > 0:
        raise AnalysisError(f"least_rise={least_rise} must be above 0: it is the smallest change that counts")
    step, excess = checked_curve(steps, values, baseline)
    spread = float(np.ptp(excess))
    unit = least_rise / MIN_RISE if least_rise is not None else spread or 1.0
    midpoint, scale, fit = fit_logistic(step, excess)
    falling = fit.slope < 0
    upright = (-excess if falling else excess) / unit
    found = growth(step, upright)
    if found.phase_change is None:
        return Detection(found, unit, falling, None, found.verdict.removeprefix("no phase change "), 1.0)
    change, draw = found.phase_change, np.random.default_rng(seed)
    noise = math.sqrt(fit.rss / max(1, len(step) - 4)) / unit
    if change.rise < RISE_OVER_NOISE * noise:
        why = f"it moves by {change.rise / noise:.1f} standard deviations of its noise, {RISE_OVER_NOISE:.0f} needed"
        return Detection(found, unit, falling, None, why, 1.0)
    p_walk = walk_p_value(step, upright, draw)
    if p_walk > MOST_BY_CHANCE:
        why = f"{p_walk:.1%} of random walks as rough look as much like a step, at most {MOST_BY_CHANCE:.0%} may"
        return Detection(found, unit, falling, None, why, p_walk)
    why = f"BIC {found.margin:.0f} better than its rivals, {p_walk:.1%} of random walks look like it; {found.n} checkpoints"
    sign = -unit if falling else unit
    own_unit = replace(change, rise=change.rise * sign, low=change.low * sign, high=change.high * sign)
    detection = Detection(found, unit, falling, own_unit, why, p_walk)
    return _with_intervals(detection, step, (midpoint, scale), upright, (n_bootstrap, draw))


# ---------------------------------------------------------------------------------------------------------------------
# Walks


def walk_p_value(step: Curve, values: Curve, draw: np.random.Generator, n_walks: int = WALKS) -> float:
    """Share of random walks, with this curve among them, that a logistic fits as well in comparison with their roughness.

    The statistic is ln(roughness / residual variance of the best logistic on a grid), where roughness is the variance of
    increments by the clock that suits the curve best: even from checkpoint to checkpoint, by steps, or by ln(1 + step).
    Walks are normal, by that clock.
    """
    clocks = [np.diff(step) ** 0, np.diff(step), np.diff(np.log1p(step))]
    clocks = [clock / clock.mean() for clock in clocks]
    increments = np.diff(values)
    likelihood = [-len(clock) * math.log(_roughness(increments, clock) or 1e-300) - np.log(clock).sum() for clock in clocks]
    clock = clocks[int(np.argmax(likelihood))]
    grid = logistic_grid(step)
    shapes = logistic_curve(step, grid[:, :1], np.exp(grid[:, 1:]))
    walks = np.concatenate([np.zeros((n_walks, 1)), (draw.normal(size=(n_walks, len(clock))) * np.sqrt(clock)).cumsum(1)], 1)
    curves = np.concatenate([values[None], walks])
    rough = np.square(np.diff(curves, axis=1)) @ (1 / clock) / len(clock)
    statistic = np.log(rough / np.maximum(_best_rss(shapes, curves), 1e-12 * rough))
    return float((statistic >= statistic[0]).mean())


def _roughness(increments: Curve, clock: Curve) -> float:
    return float(np.mean(np.square(increments) / clock))


def _best_rss(shapes: Float[np.ndarray, "cell checkpoint"], curves: Float[np.ndarray, "curve checkpoint"]) -> np.ndarray:
    """The least residual variance of each curve over all shapes, whether it rises or falls."""
    x, size, y = _centred(shapes, curves)
    return (np.square(y).sum(1) - np.square(y @ (x / size[:, None]).T).max(1)).clip(min=0) / curves.shape[1]


def _best_shape(
    shapes: Float[np.ndarray, "cell checkpoint"], curves: Float[np.ndarray, "curve checkpoint"]
) -> tuple[np.ndarray, np.ndarray]:
    """For each curve the shape that fits best with a slope above 0, and that slope."""
    x, size, y = _centred(shapes, curves)
    along = y @ (x / size[:, None]).T
    best = along.argmax(1)
    return best, along[np.arange(len(curves)), best] / size[best]


def _centred(shapes: np.ndarray, curves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = shapes - shapes.mean(1, keepdims=True)
    size = np.sqrt(np.square(x).sum(1))
    return x, np.where(size > 0, size, np.inf), curves - curves.mean(1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------------------
# Intervals


def _with_intervals(
    found: Detection, step: Curve, start: tuple[float, float], values: Curve, resampling: tuple[int, np.random.Generator]
) -> Detection:
    """Refits to the fitted curve plus residuals drawn in blocks, n^(1/3) checkpoints long: neighbours are alike.

    Refits are on a grid over the whole run, and a finer one around the fit.
    """
    n_bootstrap, draw = resampling
    change, n = found.growth.phase_change, len(step)
    shape = logistic_curve(step, *start)
    slope, _ = regress(shape, values)
    fitted = values.mean() + slope * (shape - shape.mean())
    residuals = (values - fitted) * math.sqrt(n / max(1, n - 4))  # four parameters took their share
    length = max(1, round(n ** (1 / 3)))
    first = draw.integers(0, n - length + 1, size=(n_bootstrap, -(-n // length)))
    curves = fitted + residuals[(first[..., None] + np.arange(length)).reshape(n_bootstrap, -1)[:, :n]]
    grid = np.concatenate([logistic_grid(step), _grid_around(step, start, max(change.width, change.resolution))])
    shapes = logistic_curve(step, grid[:, :1], np.exp(grid[:, 1:]))
    best, slopes = _best_shape(shapes, curves)
    midpoints, widths = grid[best, 0], 2 * math.log(9) * np.exp(grid[best, 1])
    again = slopes * (shapes[best, -1] - shapes[best, 0]) >= MIN_RISE
    low, high = np.quantile(midpoints, [0.025, 0.975]) if n_bootstrap else (change.step, change.step)
    narrow, wide = np.quantile(widths, [0.025, 0.975]) if n_bootstrap else (change.width, change.width)
    half = change.resolution / 2
    return replace(
        found,
        step_interval=(float(max(step[0], min(low, change.step - half))), float(min(step[-1], max(high, change.step + half)))),
        width_interval=(float(min(narrow, change.width)), float(max(wide, change.width, change.resolution))),
        found_again=float(again.mean()) if n_bootstrap else None,
    )


def _grid_around(step: Curve, start: tuple[float, float], reach: float) -> Float[np.ndarray, "cell 2"]:
    midpoints = np.clip(start[0] + reach * np.linspace(-1, 1, 81), step[0], step[-1])
    log_scales = math.log(start[1]) + math.log(4) * np.linspace(-1, 1, 41)
    return np.stack(np.meshgrid(midpoints, log_scales, indexing="ij"), -1).reshape(-1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Across metrics and seeds


def curves_of(table: "pandas.DataFrame") -> dict[tuple[str, str], tuple[tuple[int, ...], tuple[float, ...]]]:
    """Every curve of a sweep of one run: (metric, label) to steps and values; yardsticks ("..._uniform") too.

    Rows that differ by position are curves of their own ("position 5"). Curves of fewer than 8 checkpoints, or with
    missing values, are left out. Raises AnalysisError if the table holds several runs.
    """
    if "run" in table and table["run"].nunique() > 1:
        raise AnalysisError(f"the table holds {table['run'].nunique()} runs; select one, as in table[table['run'] == name]")
    keyed = table.assign(label=table["label"].fillna(""), position=table["position"].astype("Float64").fillna(-1))
    found = {}
    for (metric, label, position), rows in keyed.groupby(["metric", "label", "position"], sort=False):
        rows = rows.sort_values("step")
        values = rows["value"].to_numpy(dtype=float, na_value=math.nan)
        if len(rows) >= MIN_CHECKPOINTS and np.isfinite(values).all() and rows["step"].is_unique:
            name = " ".join(part for part in (label, f"position {position:.0f}" if position >= 0 else "") if part)
            found[metric, name] = (tuple(int(step) for step in rows["step"]), tuple(float(value) for value in values))
    return found


@dataclass(frozen=True)
class AcrossSeeds:
    """One metric's detections by seed or run: in how many it changed phase, and whether at the same step."""

    detections: Mapping[str, Detection]

    @property
    def steps(self) -> dict[str, float]:
        """The step of the change in each that has one."""
        return {name: found.change.step for name, found in self.detections.items() if found.change is not None}

    @property
    def spread(self) -> float:
        """Standard deviation of the steps; NaN of fewer than two."""
        return float(np.std(list(self.steps.values()), ddof=1)) if len(self.steps) > 1 else math.nan

    @property
    def agree(self) -> bool:
        """All changed phase, in the same direction, and there is a step that lies in every interval."""
        found = list(self.detections.values())
        if not found or any(one.step_interval is None for one in found) or len({one.falling for one in found}) > 1:
            return False
        return max(one.step_interval[0] for one in found) <= min(one.step_interval[1] for one in found)

    @property
    def verdict(self) -> str:
        """In one line."""
        n, steps = len(self.detections), list(self.steps.values())
        if not steps:
            return f"no phase change in any of {n}"
        told = f"phase change in {len(steps)} of {n}, at step {np.mean(steps):.0f}"
        if len(steps) > 1:
            told += f" +- {self.spread:.0f} (from {min(steps):.0f} to {max(steps):.0f})"
        if len(steps) == n > 1:
            told += "; their intervals have a step in common" if self.agree else "; their intervals have no step in common"
        return told


def across_seeds(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], baseline: float = 0.0, least_rise: float | None = None
) -> AcrossSeeds:
    """`detect` in the same metric of several runs, each with its own steps and values."""
    return AcrossSeeds({name: detect(*curve, baseline, least_rise) for name, curve in curves.items()})
