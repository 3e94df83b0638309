import numpy as np
import pandas
import pytest

from interp_gpt2.analysis.development import best_head_curve, growth, phase_change
from interp_gpt2.errors import AnalysisError

POWERS = [0, *(2**i for i in range(12))]
DENSE = np.array(sorted({*POWERS, *range(0, 2601, 50)}))  # powers of two and every 50 steps


def logistic(steps, midpoint, width, low=0.1, high=0.7):
    """`width` from 10 % to 90 %."""
    return low + (high - low) / (1 + np.exp(-(np.asarray(steps) - midpoint) * 2 * np.log(9) / width))


def noise(size, seed=0, sd=0.01):
    return np.random.default_rng(seed).normal(0, sd, size)


@pytest.mark.parametrize(("midpoint", "width"), [(1500, 150), (1500, 600), (300, 100), (40, 20), (2000, 60)])
def test_a_planted_phase_change_is_found_where_it_is(midpoint, width):
    found = phase_change(DENSE, logistic(DENSE, midpoint, width) + noise(len(DENSE)), baseline=0.1)
    assert found.step == pytest.approx(midpoint, rel=0.02)
    assert found.width == pytest.approx(width, rel=0.15)
    assert (found.low, found.high) == (pytest.approx(0.0, abs=0.01), pytest.approx(0.6, abs=0.01))
    assert found.rise == pytest.approx(0.6, abs=0.02)


def test_without_noise_the_planted_numbers_come_back():
    found = phase_change(DENSE, logistic(DENSE, 1234, 300))
    assert found.step == pytest.approx(1234, abs=0.01)
    assert found.width == pytest.approx(300, abs=0.1)


def test_a_step_between_two_checkpoints_is_put_in_the_middle_and_no_finer():
    found = phase_change(DENSE, np.where(DENSE > 1510, 0.6, 0.1))
    assert found.resolution == 50
    assert found.step == pytest.approx(1525, abs=1)
    assert found.width < found.resolution
    sparse = phase_change(POWERS, np.where(np.array(POWERS) > 300, 0.6, 0.1))
    assert sparse.resolution == 256
    assert sparse.step == pytest.approx(384, abs=3)


def test_an_early_change_and_a_long_plateau_is_a_phase_change():
    steps = np.arange(0, 20001, 100)
    found = phase_change(steps, logistic(steps, 900, 400) + noise(len(steps)))
    assert found.step == pytest.approx(900, rel=0.05)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(0.6 * DENSE / 2600, id="a line"),
        pytest.param(0.6 * (DENSE / 2600) ** 0.3, id="a power law that slows"),
        pytest.param(0.6 * (DENSE / 2600) ** 3, id="a power law that speeds up"),
        pytest.param(0.08 * np.log1p(DENSE), id="a logarithm"),
        pytest.param(0.6 * (1 - np.exp(-DENSE / 1500)), id="slow levelling off"),
        pytest.param(logistic(DENSE, 1500, 150, low=0.1, high=0.25), id="a change too small"),
        pytest.param(logistic(DENSE, 1500, 150, low=0.7, high=0.1), id="a fall"),
        pytest.param(np.full(len(DENSE), 0.3), id="nothing"),
    ],
)
def test_other_growth_is_no_phase_change(values):
    assert phase_change(DENSE, values) is None
    assert phase_change(DENSE, values + noise(len(DENSE))) is None


@pytest.mark.parametrize("steps", [DENSE, np.array(POWERS)], ids=["dense", "powers of two"])
def test_a_hundred_draws_of_noise_give_no_phase_change(steps):
    assert not any(phase_change(steps, noise(len(steps), seed, sd=0.1)) for seed in range(50))


def test_the_baseline_is_subtracted_first():
    values = logistic(DENSE, 1500, 150)
    assert phase_change(DENSE, values, baseline=values) is None
    drifting = np.linspace(0, 0.3, len(DENSE))
    assert growth(DENSE, values + drifting, baseline=drifting).bic_logistic == growth(DENSE, values).bic_logistic


def test_the_verdict_gives_the_numbers_behind_it():
    found = growth(DENSE, logistic(DENSE, 1500, 150))
    assert found.margin > 100
    assert found.verdict.startswith("phase change at step 1500, width 150 (logistic: BIC")
    line = growth(DENSE, 0.6 * DENSE / 2600)
    assert line.margin < 0
    assert line.verdict.startswith("no phase change (logistic: BIC")
    assert "worse than a line" in line.verdict
    small = growth(DENSE, logistic(DENSE, 1500, 150, high=0.2))
    assert small.margin > 10
    assert "rise 0.10, 0.2 needed" in small.verdict


def test_perfect_fits_have_finite_criteria():
    flat = growth(DENSE, np.full(len(DENSE), 0.3))
    assert np.isfinite([flat.bic_logistic, flat.bic_line, flat.bic_power_law]).all()
    # All three fit perfectly, so that only the count of parameters is left: 2 ln n between line and logistic.
    assert flat.margin == pytest.approx(-2 * np.log(flat.n))


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(AnalysisError, match="at least 8"):
        phase_change(range(7), np.zeros(7))
    with pytest.raises(AnalysisError, match="increase"):
        phase_change([0, 1, 1, *range(2, 10)], np.zeros(11))
    with pytest.raises(AnalysisError, match="finite"):
        phase_change(range(8), [0] * 7 + [float("nan")])
    with pytest.raises(AnalysisError, match="one value for each"):
        phase_change(range(8), np.zeros(9))


def table(metrics=("induction", "induction_uniform")) -> pandas.DataFrame:
    rows = []
    for step, high in [(10, 0.5), (0, 0.1), (5, 0.2)]:
        for head, value in enumerate([0.05, high]):
            rows.append({"run": "a", "step": step, "metric": "induction", "layer": 1, "head": head, "label": f"L1H{head}",
                         "value": value})  # fmt: skip
        rows.append({"run": "a", "step": step, "metric": "induction_uniform", "value": 0.02})
    rows = pandas.DataFrame(rows)
    return rows[rows["metric"].isin(metrics)]


def test_the_best_heads_curve_is_the_maximum_over_heads_at_each_step():
    curve = best_head_curve(table())
    assert curve.steps == (0, 5, 10)
    assert curve.values == (0.1, 0.2, 0.5)
    assert curve.heads == ("L1H1", "L1H1", "L1H1")
    assert curve.uniform == (0.02, 0.02, 0.02)


def test_a_table_without_its_yardstick_or_of_two_runs_is_refused():
    with pytest.raises(AnalysisError, match="induction_uniform"):
        best_head_curve(table(metrics=("induction",)))
    with pytest.raises(AnalysisError, match="lacks 'entropy'"):
        best_head_curve(table(), "entropy")
    two = pandas.concat([table(), table().assign(run="b")])
    with pytest.raises(AnalysisError, match="2 runs"):
        best_head_curve(two)
