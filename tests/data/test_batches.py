"""The batch at a step depends on the seed and the step alone, and processes share it without overlap."""

import numpy as np
import pytest
import torch

from interp_gpt2.data.batches import HELD_OUT, rng_at, share_of, within_documents
from interp_gpt2.errors import DataError


def test_the_same_seed_and_step_give_the_same_numbers_in_any_order():
    forwards = [rng_at(7, step).random(5) for step in range(4)]
    backwards = [rng_at(7, step).random(5) for step in reversed(range(4))]
    np.testing.assert_array_equal(forwards, backwards[::-1])


def test_seeds_steps_and_streams_share_no_number():
    draws = [rng_at(seed, step, stream).integers(2**63, size=100) for seed in (0, 1) for step in (0, 1) for stream in (0, 1)]
    assert len(np.unique(draws)) == 800
    assert rng_at(0, 3, HELD_OUT).random() != rng_at(1, 3).random()


def test_the_shares_of_all_processes_are_the_global_batch():
    batch = np.arange(24, dtype=np.uint16).reshape(8, 3)
    shares = [share_of(batch, rank, world=4) for rank in range(4)]
    assert torch.equal(torch.cat(shares), torch.from_numpy(batch.astype(np.int64)))
    assert shares[0].dtype == torch.int64


@pytest.mark.parametrize(("rank", "world"), [(0, 3), (0, 0), (4, 4), (-1, 4), (0, 16)])
def test_an_impossible_share_is_refused(rank, world):
    with pytest.raises(DataError):
        share_of(np.zeros((8, 3)), rank, world)


@pytest.mark.parametrize(("seed", "step"), [(-1, 0), (0, -1), (2**64, 0)])
def test_a_seed_or_step_that_is_not_a_count_is_refused(seed, step):
    with pytest.raises(DataError, match=f"seed={seed} and step={step}"):
        rng_at(seed, step)


def test_no_token_is_predicted_across_the_border_of_a_document():
    documents = torch.tensor([[1, 1, 1, 2, 2, 3], [1, 2, 2, 2, 2, 2]])
    expected = [[True, True, False, True, False], [False, True, True, True, True]]
    assert within_documents(documents).tolist() == expected
