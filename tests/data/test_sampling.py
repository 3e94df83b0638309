"""Windows are chosen by seed and step alone: anew, each once an epoch, or where documents begin."""

from itertools import pairwise

import numpy as np
import pytest

from interp_gpt2.data.batches import rng_at
from interp_gpt2.data.sampling import RANDOM, Offsets, Sampling, aligned_starts
from interp_gpt2.errors import DataError


def offsets_of(*lengths: int) -> Offsets:
    return Offsets(np.cumsum([0, *lengths]))


def random_documents(seed: int) -> Offsets:
    return offsets_of(*np.random.default_rng(seed).integers(1, 60, size=40).tolist())


def test_random_windows_are_drawn_as_they_always_were():
    starts = RANDOM.starts(offsets_of(300, 700), step=5, batch_size=8, n_ctx=16, seed=3)
    np.testing.assert_array_equal(starts, rng_at(3, 5).integers(1000 - 16, size=8))


def test_an_epoch_takes_every_window_once_and_the_next_in_another_order():
    sampling, offsets = Sampling("epochs"), offsets_of(1000)
    n_windows, n_ctx, batch_size = 124, 8, 10  # (1000 - 1) // 8 windows: no multiple of the batch
    drawn = np.concatenate([sampling.starts(offsets, step, batch_size, n_ctx, seed=1) for step in range(25)])
    first, second = drawn[:n_windows], drawn[n_windows : 2 * n_windows]
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n_windows) * n_ctx)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.sort(first))
    other_seed = np.concatenate([sampling.starts(offsets, step, batch_size, n_ctx, seed=2) for step in range(13)])
    assert not np.array_equal(other_seed[:n_windows], first)


def test_one_batch_may_hold_several_epochs_of_a_short_text():
    starts = Sampling("epochs").starts(offsets_of(25), step=0, batch_size=9, n_ctx=8, seed=0)
    assert sorted(starts.tolist()) == [0, 0, 0, 8, 8, 8, 16, 16, 16]


@pytest.mark.parametrize("seed", range(5))
def test_aligned_windows_begin_with_documents_or_go_on_in_a_longer_one_and_miss_no_token(seed):
    offsets, n_ctx = random_documents(seed), 24
    starts = aligned_starts(offsets, n_ctx)
    begins = set(offsets.starts.tolist())
    assert starts[0] == 0
    for before, start in pairwise(starts.tolist()):
        continued = start == before + n_ctx
        assert start in begins or continued
        # No later document begins among what the window before still predicted, unless this one goes on where that one ended.
        assert continued or not begins & set(range(start + 1, before + n_ctx + 1))
        assert before < start <= before + n_ctx
    predicted = {place for start in starts for place in range(start + 1, start + n_ctx + 1)}
    assert set(range(1, int(starts[-1]) + n_ctx + 1)) <= predicted
    assert offsets.n_tokens - (int(starts[-1]) + n_ctx + 1) < n_ctx


def test_documents_longer_than_a_window_are_cut_into_windows_that_predict_each_token_once():
    assert aligned_starts(offsets_of(100, 100), n_ctx=30).tolist() == [0, 30, 60, 90, 100, 130, 160]


def test_aligned_sampling_draws_from_the_aligned_windows():
    offsets = random_documents(0)
    aligned = aligned_starts(offsets, 24)
    drawn = Sampling("random", "aligned").starts(offsets, 0, 500, 24, seed=0)
    assert set(drawn) == set(aligned)
    epoch = Sampling("epochs", "masked").starts(offsets, 0, len(aligned), 24, seed=0)
    np.testing.assert_array_equal(np.sort(epoch), aligned)


def test_what_means_nothing_is_refused():
    with pytest.raises(DataError, match="order='shuffled' is not one of random, epochs"):
        Sampling("shuffled")
    with pytest.raises(DataError, match="documents='packed' is not one of across, aligned, masked"):
        Sampling(documents="packed")
    with pytest.raises(DataError, match="no window of n_ctx=30 begins with a document"):
        aligned_starts(offsets_of(10, 20), 30)
