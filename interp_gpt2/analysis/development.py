"""How a number grows over training, and whether it grew in a phase change.

A score that is a logistic in step, better than a line and than a power law, and that rose by enough, changed phase:
it was flat, rose at some step, and was flat again. Everything else is growth. Olsson et al. 2022, "In-context Learning
and Induction Heads", for the phenomenon; Schwarz 1978, "Estimating the Dimension of a Model", for the criterion.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from interp_gpt2.errors import AnalysisError

if TYPE_CHECKING:
    import pandas

MIN_CHECKPOINTS = 8  # a logistic has four parameters; below twice as many points, criteria that count them mean little
MIN_MARGIN = 10.0  # "very strong" evidence: Kass and Raftery 1995, "Bayes Factors"
MIN_RISE = 0.2

# Attention scores of the same model on other tokens differ by more than this; residuals below it are no evidence, and
# a perfect fit would otherwise have a criterion of minus infinity.
_NOISE = 1e-3
_LN_9 = math.log(9)  # a logistic passes 10 % and 90 % this many scales before and after its midpoint
_LN_99 = math.log(99)

Curve = Float[np.ndarray, "checkpoint"]


@dataclass(frozen=True)
class PhaseChange:
    """When and how fast a score changed phase. `low` and `high` are the levels before and after, above the baseline.

    `step` is the logistic's midpoint and `width` the steps it takes from 10 % to 90 % of the way. Neither is known
    more finely than `resolution`, the distance between the checkpoints around the midpoint: a width below it says only
    that the change was over between two checkpoints.
    """

    step: float
    width: float
    rise: float  # of the fitted curve, from the first checkpoint to the last
    low: float
    high: float
    resolution: float


@dataclass(frozen=True)
class Growth:
    """Three curves fitted to values less baseline, and what follows. BIC = n ln(RSS / n) + parameters x ln n.

    `phase_change` is None unless `margin`, the better rival's BIC less the logistic's, is at least 10 and `rise`, of the
    fitted logistic over the observed steps, at least 0.2; `verdict` says so in words, with the numbers.
    """

    n: int
    bic_logistic: float
    bic_line: float
    bic_power_law: float
    rise: float
    phase_change: PhaseChange | None

    @property
    def margin(self) -> float:
        return min(self.bic_line, self.bic_power_law) - self.bic_logistic

    @property
    def verdict(self) -> str:
        rival = "a line" if self.bic_line < self.bic_power_law else "a power law"
        evidence = f"BIC {abs(self.margin):.0f} {'better' if self.margin > 0 else 'worse'} than {rival}, {MIN_MARGIN:.0f} needed"
        numbers = f"logistic: {evidence}; rise {self.rise:.2f}, {MIN_RISE} needed; {self.n} checkpoints"
        if self.phase_change is None:
            return f"no phase change ({numbers})"
        return f"phase change at step {self.phase_change.step:.0f}, width {self.phase_change.width:.0f} ({numbers})"


def phase_change(steps: Sequence[float], values: Sequence[float], baseline: float | Sequence[float] = 0.0) -> PhaseChange | None:
    """The phase change of `values` less `baseline` over `steps`; None if there was none. See `growth` for the criterion."""
    return growth(steps, values, baseline).phase_change


def growth(steps: Sequence[float], values: Sequence[float], baseline: float | Sequence[float] = 0.0) -> Growth:
    """Least-squares fits of three curves to values less baseline (a head score's uniform head), with Gaussian residuals.

    - logistic: low + (high - low) / (1 + exp(-(step - midpoint) / scale)), midpoint between the first and last step,
      10 % not before the first (nothing was learned before training, so a curve that only levels off is no logistic),
      and 1-99 % at least as wide as the gap between checkpoints around the midpoint
    - line: a + b step
    - power law: a + b (1 + step)^c with |c| <= 10 (a logarithm at c = 0): growth without a time of its own

    Two limits. Residuals are taken as independent: a curve that wanders smoothly, as a running average does, gives more
    evidence than it should. And the rivals are these two only: a curve that levels off exponentially from the start can
    pass for an early, wide logistic; a width of about twice the step tells it.

    Raises AnalysisError for fewer than 8 checkpoints, steps that do not increase, or values
    that are not finite.
    """
    step, excess = checked_curve(steps, values, baseline)
    midpoint, scale, logistic = fit_logistic(step, excess)
    line, power_law = _fit_to(step, excess), _fit_power_law(step, excess)
    rise = float(logistic.fitted[-1] - logistic.fitted[0])
    fits = {
        "bic_logistic": _bic(logistic.rss, len(step), n_parameters=4),
        "bic_line": _bic(line.rss, len(step), n_parameters=2),
        "bic_power_law": _bic(power_law.rss, len(step), n_parameters=3),
    }
    found = Growth(n=len(step), rise=rise, phase_change=None, **fits)
    if found.margin < MIN_MARGIN or rise < MIN_RISE:
        return found
    high = logistic.intercept + logistic.slope
    change = PhaseChange(midpoint, 2 * _LN_9 * scale, rise, logistic.intercept, high, float(_gap_at(step, midpoint)))
    return Growth(n=len(step), rise=rise, phase_change=change, **fits)


def checked_curve(steps: Sequence[float], values: Sequence[float], baseline: float | Sequence[float]) -> tuple[Curve, Curve]:
    step, value = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if step.ndim != 1 or step.shape != value.shape:
        raise AnalysisError(f"{step.shape} steps and {value.shape} values; pass one value for each checkpoint")
    if len(step) < MIN_CHECKPOINTS:
        raise AnalysisError(f"{len(step)} checkpoints cannot show a phase change; at least {MIN_CHECKPOINTS} are needed")
    if not (np.diff(step) > 0).all() or step[0] < 0:
        raise AnalysisError("steps must increase from 0 or more; sort the checkpoints, and pass one run at a time")
    excess = value - np.asarray(baseline, dtype=float)
    if excess.shape != step.shape or not np.isfinite(excess).all():
        raise AnalysisError("values and baseline must be finite numbers, the baseline one number or one for each checkpoint")
    return step, excess


def _bic(rss: float, n: int, n_parameters: int) -> float:
    return n * math.log(max(rss / n, _NOISE**2)) + n_parameters * math.log(n)


# ---------------------------------------------------------------------------------------------------------------------
# Fits. Each curve is intercept + slope x shape(step): given the shape, the other two are a linear regression, so that
# only the shape's one or two numbers are searched, from every place they could lie.


@dataclass(frozen=True)
class Fit:
    intercept: float
    slope: float
    rss: float
    fitted: Curve


def _fit_to(shape: Curve, values: Curve) -> Fit:
    slope, rss = regress(shape, values)
    intercept = float(values.mean() - slope * shape.mean())
    return Fit(intercept, float(slope), float(rss), intercept + slope * shape)


def regress(shape: Float[np.ndarray, "*search checkpoint"], values: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and residual sums of squares of the values on each shape."""
    x, y = shape - shape.mean(-1, keepdims=True), values - values.mean()
    size = (x * x).sum(-1)
    slope = np.divide(x @ y, size, out=np.zeros_like(size), where=size > 0)
    return slope, np.square(y - slope[..., None] * x).sum(-1)


def fit_logistic(step: Curve, values: Curve) -> tuple[float, float, Fit]:
    """Midpoint, scale and fit. A grid over both, then Nelder-Mead from its three best cells."""
    from scipy.optimize import minimize

    grid = logistic_grid(step)
    _, rss = regress(logistic_curve(step, grid[:, :1], np.exp(grid[:, 1:])), values)

    def loss(at: np.ndarray) -> float:
        return float(regress(logistic_curve(step, at[0], math.exp(at[1])), values)[1])

    bounds = [(step[0], step[-1]), (grid[:, 1].min(), grid[:, 1].max())]
    fits = [minimize(loss, start, method="Nelder-Mead", bounds=bounds) for start in grid[np.argsort(rss)[:3]]]
    midpoint, log_scale = min(fits, key=lambda fit: fit.fun).x
    scale = float(_allowed(step, midpoint, math.exp(log_scale)))
    return float(midpoint), scale, _fit_to(logistic_curve(step, midpoint, scale), values)


def logistic_grid(step: Curve) -> Float[np.ndarray, "cell 2"]:
    """Midpoints and logarithms of scales to begin a search from: five midpoints in every gap, thirty widths."""
    within = np.linspace(0, 1, 5)[:, None]
    midpoints = np.unique((step[:-1] + within * np.diff(step)).ravel())
    midpoints = midpoints[:: math.ceil(len(midpoints) / 500)]
    widest = (step[-1] - step[0]) / (2 * _LN_9)
    log_scales = np.linspace(math.log(np.diff(step).min() / (2 * _LN_99)), math.log(widest), 30)
    return np.stack(np.meshgrid(midpoints, log_scales, indexing="ij"), -1).reshape(-1, 2)


def logistic_curve(step: Curve, midpoint: float | np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    """From 0 to 1, as wide as `_allowed`."""
    # Unlike exp, tanh cannot overflow.
    return 0.5 * (1 + np.tanh((step - midpoint) / (2 * _allowed(step, midpoint, scale))))


def _allowed(step: Curve, midpoint: float | np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    """The scale, held between the finest that checkpoints can show and the widest that still begins with training."""
    finest = _gap_at(step, midpoint) / (2 * _LN_99)
    return np.maximum(np.minimum(scale, (midpoint - step[0]) / _LN_9), finest)


def _gap_at(step: Curve, midpoint: float | np.ndarray) -> np.ndarray:
    after = np.clip(np.searchsorted(step, midpoint), 1, len(step) - 1)
    return step[after] - step[after - 1]


def _fit_power_law(step: Curve, values: Curve) -> Fit:
    from scipy.optimize import minimize_scalar

    def shape(exponent: float | np.ndarray) -> np.ndarray:
        # (x^c - 1) / c is a power law that becomes ln x at c = 0.
        log_x = np.log1p(step) - math.log1p(step[-1])
        exponent = np.where(np.abs(exponent) < 1e-6, 1e-6, exponent)
        return np.expm1(exponent * log_x) / exponent

    exponents = np.linspace(-10, 10, 401)
    _, rss = regress(shape(exponents[:, None]), values)
    best = int(rss.argmin())
    around = exponents[max(best - 1, 0)], exponents[min(best + 1, len(exponents) - 1)]
    polished = minimize_scalar(lambda c: float(regress(shape(c), values)[1]), bounds=around, method="bounded")
    return _fit_to(shape(min((exponents[best], rss[best]), (polished.x, polished.fun), key=lambda c: c[1])[0]), values)


# ---------------------------------------------------------------------------------------------------------------------
# From a sweep's table to a curve.


@dataclass(frozen=True)
class HeadCurve:
    """A head score over training: at each step the highest head's value, that head's label, and the uniform head's value."""

    metric: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    heads: tuple[str, ...]
    uniform: tuple[float, ...]

    @property
    def growth(self) -> Growth:
        """`growth` of the values less the uniform head's."""
        return growth(self.steps, self.values, self.uniform)


def best_head_curve(table: "pandas.DataFrame", metric: str = "induction") -> HeadCurve:
    """The maximum over heads of a score at each step of a sweep of `HeadScores` over one run.

    Raises AnalysisError if the table holds several runs, or lacks the metric or its uniform head.
    """
    if "run" in table and table["run"].nunique() > 1:
        raise AnalysisError(f"the table holds {table['run'].nunique()} runs; select one, as in table[table['run'] == name]")
    heads, uniform = (table[table["metric"] == name] for name in (metric, f"{metric}_uniform"))
    if heads.empty or set(heads["step"]) != set(uniform["step"]):
        raise AnalysisError(f"the table lacks {metric!r} or {metric}_uniform at some step; sweep HeadScores with that metric")
    best = heads.loc[heads.groupby("step")["value"].idxmax()].sort_values("step")
    by_step = uniform.set_index("step")["value"]
    steps = tuple(int(step) for step in best["step"])
    return HeadCurve(
        metric, steps, tuple(map(float, best["value"])), tuple(best["label"]), tuple(float(by_step[step]) for step in steps)
    )
