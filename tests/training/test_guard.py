"""Spikes are told by what came before, on the device, and the same after a resume."""

import json

import pytest
import torch

from interp_gpt2.errors import CheckpointError
from interp_gpt2.training.guard import Guard


def judged(guard: Guard, losses: list[float], norms: list[float] | None = None) -> list[int]:
    norms = norms or [1.0] * len(losses)
    return [int(guard.judge(torch.tensor([loss, norm]))) for loss, norm in zip(losses, norms, strict=True)]


def wave(n: int) -> list[float]:
    return [2.0 + 0.1 * (i % 3) for i in range(n)]


def test_a_planted_spike_is_found_and_nothing_else():
    losses = wave(40)
    losses[25] = 3.0
    assert [i for i, spike in enumerate(judged(Guard(6, 16, torch.device("cpu")), losses)) if spike] == [25]
    norms = [0.5 + 0.01 * (i % 5) for i in range(40)]
    norms[30] = 5.0
    assert [i for i, spike in enumerate(judged(Guard(6, 16, torch.device("cpu")), wave(40), norms)) if spike] == [30]


def test_the_limit_is_mean_plus_z_deviations_of_the_window_by_hand():
    for loss, spike in ((2.9999, 0), (3.0001, 1)):
        guard = Guard(2, 3, torch.device("cpu"))
        judged(guard, [9.0, 0.0, 1.0, 2.0])  # the ring keeps 0, 1, 2: mean 1, deviation 1
        assert judged(guard, [loss]) == [spike]


def test_a_fall_is_no_spike_and_without_a_full_window_nothing_is():
    assert not any(judged(Guard(3, 8, torch.device("cpu")), [*wave(12), 0.1]))
    assert not any(judged(Guard(3, 8, torch.device("cpu")), [1.0, 1.1, 100.0]))


def test_a_level_that_stays_is_soon_none_any_more():
    spikes = judged(Guard(4, 8, torch.device("cpu")), [*wave(16), *(3 + value for value in wave(32))])
    assert spikes[16] == 1
    assert not any(spikes[20:])


def test_its_state_survives_json_to_the_bit_and_decides_the_same():
    draw = torch.Generator().manual_seed(0)
    losses = torch.rand(60, generator=draw).tolist()
    whole = Guard(1.5, 16, torch.device("cpu"))
    first, second = judged(whole, losses[:37]), judged(whole, losses[37:])
    part = Guard(1.5, 16, torch.device("cpu"))
    assert judged(part, losses[:37]) == first
    resumed = Guard(1.5, 16, torch.device("cpu"))
    resumed.restore(json.loads(json.dumps(part.state())))
    assert judged(resumed, losses[37:]) == second
    assert any(second)
    assert torch.equal(resumed.last, whole.last)


def test_a_state_of_another_window_is_refused():
    with pytest.raises(CheckpointError, match="guard_window"):
        Guard(3, 8, torch.device("cpu")).restore(Guard(3, 9, torch.device("cpu")).state())
