"""Learning rates and checkpoint steps, worked out by hand."""

import pytest

from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.schedule import checkpoint_steps, learning_rate


def test_warm_up_rises_in_equal_steps_and_reaches_lr_with_its_last_update():
    config = TrainConfig(n_steps=100, warmup_steps=4, lr=0.8, min_lr=0.0)
    assert [learning_rate(config, step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_the_cosine_is_at_lr_after_the_warm_up_half_way_in_the_middle_and_at_min_lr_at_the_end():
    config = TrainConfig(n_steps=110, warmup_steps=10, lr=1.0, min_lr=0.2)
    assert learning_rate(config, 10) == pytest.approx(1.0)
    assert learning_rate(config, 60) == pytest.approx(0.6)
    assert learning_rate(config, 110) == pytest.approx(0.2)
    rates = [learning_rate(config, step) for step in range(10, 110)]
    assert rates == sorted(rates, reverse=True)


def test_a_constant_rate_is_constant_from_the_first_step_without_warm_up():
    config = TrainConfig(n_steps=10, warmup_steps=0, schedule="constant", lr=3e-3)
    assert {learning_rate(config, step) for step in range(10)} == {3e-3}


@pytest.mark.parametrize(("shape", "quarter", "half"), [("linear", 0.75, 0.5), ("1-sqrt", 0.5, 1 - 0.5**0.5)])
def test_wsd_warms_up_stays_and_falls_in_its_last_fifth(shape, quarter, half):
    config = TrainConfig(n_steps=100, warmup_steps=10, lr=1.2, min_lr=0.2, schedule="wsd", decay_shape=shape)
    assert learning_rate(config, 4) == pytest.approx(0.6)
    assert {learning_rate(config, step) for step in range(9, 81)} == {1.2}
    assert learning_rate(config, 85) == pytest.approx(0.2 + quarter)
    assert learning_rate(config, 90) == pytest.approx(0.2 + half)
    assert learning_rate(config, 100) == pytest.approx(0.2)


def test_wsd_before_its_decay_is_the_constant_rate_so_that_a_longer_run_shares_its_steps():
    short, long = (TrainConfig(n_steps=n, warmup_steps=10, schedule="wsd") for n in (100, 200))
    assert [learning_rate(short, step) for step in range(81)] == [learning_rate(long, step) for step in range(81)]
    assert learning_rate(TrainConfig(n_steps=100, schedule="wsd", decay_fraction=0.0, warmup_steps=0), 99) == 1e-3


@pytest.mark.parametrize(
    ("checkpoints", "n_steps", "steps"),
    [
        (Checkpoints(), 20, {0, 1, 2, 4, 8, 16, 20}),
        (Checkpoints(), 16, {0, 1, 2, 4, 8, 16}),
        (Checkpoints(per_doubling=2), 12, {0, 1, 2, 3, 4, 6, 8, 11, 12}),
        (Checkpoints(per_doubling=0), 9, {0, 9}),
        (Checkpoints(per_doubling=0, every=4), 9, {0, 4, 8, 9}),
        (Checkpoints(per_doubling=0, at=(3, 7, 12)), 9, {0, 3, 7, 9}),
        (Checkpoints(per_doubling=1, every=6, at=(7,)), 9, {0, 1, 2, 4, 6, 7, 8, 9}),
    ],
)
def test_checkpoints_are_the_union_of_log_spaced_regular_and_explicit_steps(checkpoints, n_steps, steps):
    assert checkpoint_steps(checkpoints, n_steps) == steps
