"""Learning rates and checkpoint steps, worked out by hand."""

import itertools
import json

import pytest

from interp_gpt2.errors import ConfigError
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.schedule import anchor_steps, checkpoint_steps, learning_rate, resume_steps


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
        (Checkpoints(per_doubling=0, pythia=True), 3000, {0, *(2**i for i in range(10)), 1000, 2000, 3000}),
        (Checkpoints(per_doubling=0, pythia=True), 300, {0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300}),
        (Checkpoints(per_doubling=0, pythia=True, at=(3,)), 4, {0, 1, 2, 3, 4}),
        (Checkpoints(per_doubling=0, piecewise=((3, 7), (5, 20))), 25, {0, 3, 6, 10, 15, 20, 25}),
        (Checkpoints(per_doubling=0, piecewise=((3, 7), (5, 20))), 12, {0, 3, 6, 10, 12}),
    ],
)
def test_checkpoints_are_the_union_of_their_schedules(checkpoints, n_steps, steps):
    assert checkpoint_steps(checkpoints, n_steps) == steps


def test_the_published_schedules_have_as_many_checkpoints_as_were_published():
    pythia = checkpoint_steps(Checkpoints(per_doubling=0, pythia=True), 143_000)
    assert len(pythia) == 154  # Biderman et al. 2023
    crfm = Checkpoints(per_doubling=0, piecewise=((10, 100), (50, 2000), (100, 20_000), (1000, 400_000)))
    steps = sorted(checkpoint_steps(crfm, 400_000))
    assert len(steps) == 1 + 10 + 38 + 180 + 380
    assert steps[:12] == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 150]
    assert {later - earlier for earlier, later in itertools.pairwise(steps) if earlier >= 20_000} == {1000}


@pytest.mark.parametrize(
    ("anchors", "n_steps", "steps"), [(4, 20, {0, 5, 10, 15}), (3, 10, {0, 3, 6}), (10, 4, {0, 1, 2, 3}), (0, 9, set())]
)
def test_anchors_are_evenly_spaced_from_the_first_step(anchors, n_steps, steps):
    assert anchor_steps(Checkpoints(anchors=anchors), n_steps) == steps


def test_training_can_resume_from_every_so_many_steps_the_anchors_and_the_last():
    assert resume_steps(Checkpoints(resume_every=6, anchors=4), 20) == {0, 6, 12, 18, 5, 10, 15, 20}


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (((10, 100), (50, 100)), r"goes up to step 100 and then only to 100; each piece ends after the last"),
        (((0, 100),), r"holds \(0, 100\); a piece is \[every, up to\]"),
        (((10, 100, 3),), "a piece is"),
        ((10, 100), "holds 10; a piece is"),
        ((("10", 100),), "a piece is"),
        (((True, 100),), "a piece is"),
    ],
)
def test_pieces_that_contradict_each_other_are_refused(pieces, said):
    with pytest.raises(ConfigError, match=said):
        Checkpoints(piecewise=pieces)


def test_a_schedule_comes_back_from_a_file_as_it_was_and_an_unknown_one_is_told_its_nearest():
    config = TrainConfig(checkpoints=Checkpoints(pythia=True, piecewise=((10, 100), (50, 2000)), anchors=3))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="pythia"):
        TrainConfig.from_dict({"checkpoints": {"phythia": True}})
    with pytest.raises(ConfigError, match=r"checkpoints\.anchors=-1 is negative"):
        Checkpoints(anchors=-1)
