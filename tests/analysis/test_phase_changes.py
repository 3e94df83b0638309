"""A planted change is found with its date inside the interval, in any unit; noise, walks and the control stay silent."""

from pathlib import Path

import numpy as np
import pandas
import pytest

from interp_gpt2.analysis.attention_patterns import HeadScores
from interp_gpt2.analysis.development import best_head_curve
from interp_gpt2.analysis.phase_changes import AcrossSeeds, across_seeds, curves_of, detect, walk_p_value
from interp_gpt2.analysis.sequences import held_out
from interp_gpt2.errors import AnalysisError
from interp_gpt2.runs.run import Run
from interp_gpt2.sweeps import sweep

STUDY = Path(__file__).parents[1] / "data" / "study"
FEW = (0, 64, 300, 500, 600, 700, 750, 800, 900, 1100, 1500, 2000)
MANY = tuple(range(0, 2001, 50))


def logistic(steps, midpoint, width):
    """`width` from 10 % to 90 %."""
    return 1 / (1 + np.exp(-(np.asarray(steps) - midpoint) * 2 * np.log(9) / width))


def noise(n, seed=0):
    return np.random.default_rng(seed).normal(size=n)


def test_a_fall_in_nats_is_found_as_well_as_a_rise_in_attention():
    curve = logistic(MANY, 900, 200)
    rise = detect(MANY, 0.1 + 0.5 * curve + 0.01 * noise(len(MANY)), least_rise=0.2)
    fall = detect(MANY, 700 - 40 * curve + 0.8 * noise(len(MANY)))
    for found, size in ((rise, 0.5), (fall, -40)):
        assert found.change.step == pytest.approx(900, abs=25)
        assert found.change.rise == pytest.approx(size, rel=0.05)
        assert found.step_interval[0] < 900 < found.step_interval[1]
        assert found.width_interval[0] < 200 < found.width_interval[1]
        assert found.found_again > 0.9
    assert fall.falling
    assert "fall 40" in fall.verdict or "fall 39" in fall.verdict


def test_more_noise_makes_a_wider_interval():
    steps, widths = range(0, 2001, 20), []
    for size in (0.01, 0.1):
        low, high = detect(steps, logistic(steps, 900, 500) + size * noise(len(steps))).step_interval
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


def test_the_interval_holds_the_planted_step_in_most_draws():
    draws = [detect(MANY, logistic(MANY, 900, 300) + 0.05 * noise(len(MANY), seed), n_bootstrap=200) for seed in range(12)]
    held = [one.step_interval[0] < 900 < one.step_interval[1] for one in draws if one.change]
    assert len(held) == 12
    assert sum(held) >= 10


def test_no_interval_is_finer_than_the_checkpoints():
    found = detect(MANY, np.where(np.array(MANY) > 910, 1.0, 0.0))
    assert found.step_interval[1] - found.step_interval[0] >= 50
    assert found.width_interval[1] >= 50


@pytest.mark.parametrize("steps", [FEW, MANY], ids=["12 checkpoints", "41 checkpoints"])
def test_noise_and_walks_stay_silent(steps):
    """Of a hundred walks one may pass by the criterion itself; far fewer also pass the others."""
    draws = [noise(len(steps), seed) for seed in range(10)]
    found = [detect(steps, values, n_bootstrap=0) for draw in draws for values in (draw, draw.cumsum())]
    assert [one.verdict for one in found if one.change] == []


def test_a_walk_is_no_rarer_than_walks():
    p = [walk_p_value(np.array(FEW, float), noise(12, seed).cumsum(), np.random.default_rng(seed), 99) for seed in range(40)]
    assert 0.35 < np.mean(p) < 0.65
    step = walk_p_value(np.array(FEW, float), logistic(FEW, 750, 150), np.random.default_rng(0), 99)
    assert step == 0.01, "itself alone"


def test_what_fails_is_said():
    assert "BIC" in detect(MANY, np.linspace(0, 1, len(MANY))).reason
    small = detect(MANY, 0.1 * logistic(MANY, 900, 100), least_rise=0.2)
    assert small.change is None
    assert "0.2 needed" in small.verdict
    assert detect(MANY, np.full(len(MANY), 3.0)).change is None
    with pytest.raises(AnalysisError, match="above 0"):
        detect(MANY, np.zeros(len(MANY)), least_rise=0)


def test_seeds_agree_where_their_intervals_meet():
    curves = {str(seed): (MANY, logistic(MANY, 900, 300) + 0.03 * noise(len(MANY), seed)) for seed in range(3)}
    found = across_seeds(curves)
    assert found.agree
    assert found.spread < 50
    assert found.verdict.startswith("phase change in 3 of 3, at step ")
    later = AcrossSeeds(found.detections | {"late": detect(MANY, logistic(MANY, 1500, 100))})
    assert not later.agree
    assert "no step in common" in later.verdict
    flat = AcrossSeeds({"flat": detect(MANY, noise(len(MANY)), n_bootstrap=0)})
    assert flat.verdict == "no phase change in any of 1"
    assert "in 3 of 4" in AcrossSeeds(found.detections | flat.detections).verdict


@pytest.mark.parametrize(("name", "changes"), [("demo-induction", True), ("demo-induction-one-layer", False)])
def test_induction_changes_phase_in_the_demo_and_not_in_its_control(name, changes, tmp_path):
    run = Run(STUDY / name)
    scores = HeadScores(held_out(run.source(), run.config.n_ctx, 16).inputs, ("induction",))
    curve = best_head_curve(sweep(run, scores, workers=1, store=tmp_path))
    found = detect(curve.steps, curve.values, curve.uniform, least_rise=0.2)
    assert (found.change is not None) == changes
    if changes:
        assert 700 < found.step_interval[0] < found.step_interval[1] < 800


def test_curves_of_a_table_are_by_metric_label_and_position():
    rows = [
        {"run": "a", "step": step, "metric": metric, "label": label, "position": position, "value": step / 9}
        for step in range(9, -1, -1)
        for metric, label, position in (("loss", None, 3), ("loss", None, 4), ("k", "L0H1", None))
    ]
    table = pandas.DataFrame(rows).astype({"position": "Int64", "label": "string"})
    found = curves_of(table)
    assert set(found) == {("loss", "position 3"), ("loss", "position 4"), ("k", "L0H1")}
    assert found["k", "L0H1"][0] == tuple(range(10))
    short = curves_of(table[table["step"] < 7])
    assert short == {}
    with pytest.raises(AnalysisError, match="2 runs"):
        curves_of(pandas.concat([table, table.assign(run="b")]))


def test_the_interval_of_a_change_at_the_very_beginning_or_end_lies_within_the_run():
    steps = [0, 64, 300, 500, 600, 700, 750, 800, 900, 1100, 1500, 2000]
    early = detect(steps, [0, 0.2, *[1.0] * 10])
    late = detect(steps, [*[0.0] * 10, 0.9, 1.0])
    for found in (early, late):
        if found.step_interval is not None:
            low, high = found.step_interval
            assert 0 <= low <= high <= 2000
    assert early.step_interval is not None
