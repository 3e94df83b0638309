"""Markov chains follow the transition rows they are drawn from, and no predictor beats the exact posterior on them."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from interp_gpt2.data.batches import rng_at
from interp_gpt2.data.synthetic import (
    N_HELD_OUT,
    N_STATES,
    bayes_bigram,
    held_out_chains,
    in_context_unigram,
    losses_of,
    markov_chains,
    mean_and_stderr,
    repeated_tokens,
)
from interp_gpt2.errors import DataError


@pytest.fixture(scope="module")
def chains() -> torch.Tensor:
    return held_out_chains(64)


def log_gamma_ratio(counts: list[int], alpha: float) -> float:
    """Log-probability of a sequence of categories under Dirichlet(alpha): the Dirichlet-multinomial, in closed form."""
    total = len(counts) * alpha
    return (
        math.lgamma(total)
        - math.lgamma(total + sum(counts))
        + sum(math.lgamma(alpha + count) - math.lgamma(alpha) for count in counts)
    )


def test_bayes_losses_are_the_exact_evidence_of_the_sequence(chains):
    # By the chain rule the losses of a sequence sum to its negative log evidence, which has a closed form per row.
    losses = losses_of(bayes_bigram(chains[:50]), chains[:50])
    for sequence, loss in zip(chains[:50].tolist(), losses, strict=True):
        transitions = Counter(pairwise(sequence))
        rows = [[transitions[i, j] for j in range(N_STATES)] for i in range(N_STATES)]
        evidence = sum(log_gamma_ratio(row, alpha=0.1) for row in rows)
        assert loss.sum().item() == pytest.approx(-evidence, abs=1e-9)


def test_bayes_predictions_are_those_of_a_loop_over_counts(chains):
    log_probs = bayes_bigram(chains[:5])
    for sequence, predictions in zip(chains[:5].tolist(), log_probs, strict=True):
        for pos, state in enumerate(sequence[:-1]):
            following = [sequence[q + 1] for q in range(pos) if sequence[q] == state]
            expected = [(following.count(j) + 0.1) / (len(following) + 1.6) for j in range(N_STATES)]
            torch.testing.assert_close(predictions[pos].exp(), torch.tensor(expected, dtype=torch.float64))


def test_unigram_predictions_count_the_states_so_far(chains):
    sequence = chains[0].tolist()
    for pos, prediction in enumerate(in_context_unigram(chains[:1])[0]):
        expected = [(sequence[: pos + 1].count(j) + 1) / (pos + 17) for j in range(N_STATES)]
        torch.testing.assert_close(prediction.exp(), torch.tensor(expected, dtype=torch.float64))


def test_predictions_are_distributions_and_cannot_see_the_future(chains):
    changed = chains[:20].clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % N_STATES
    for predict in (bayes_bigram, in_context_unigram):
        torch.testing.assert_close(predict(chains[:20]).exp().sum(-1), torch.ones(20, 64, dtype=torch.float64))
        assert torch.equal(predict(changed)[:, :40], predict(chains[:20])[:, :40])
        assert not torch.equal(predict(changed)[:, 40:], predict(chains[:20])[:, 40:])


def test_no_other_prior_beats_the_true_one(chains):
    exact = losses_of(bayes_bigram(chains), chains)
    for alpha in (0.05, 0.08, 0.125, 0.2, 1.0):
        mean, stderr = mean_and_stderr(losses_of(bayes_bigram(chains, alpha), chains) - exact)
        assert mean > 3 * stderr, alpha


def test_losses_on_the_second_half_are_where_they_were_measured(chains):
    # 1.79 and 2.57 nats with standard errors of 0.006 and 0.005, also measured on chains drawn one state at a time.
    bayes, bayes_stderr = mean_and_stderr(losses_of(bayes_bigram(chains), chains)[:, 32:])
    unigram, unigram_stderr = mean_and_stderr(losses_of(in_context_unigram(chains), chains)[:, 32:])
    assert 1.76 < bayes < 1.82
    assert 2.54 < unigram < 2.60
    assert 0.004 < bayes_stderr < 0.008
    assert 0.004 < unigram_stderr < 0.008


def test_chains_are_as_predictable_as_chains_drawn_one_state_at_a_time(chains):
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(600):
        rows, state = rng.dirichlet([0.1] * N_STATES, size=N_STATES), [rng.integers(N_STATES)]
        for _ in range(64):
            state.append(min(np.searchsorted(rows[state[-1]].cumsum(), rng.random(), side="right"), N_STATES - 1))
        drawn.append(state)
    slow = torch.tensor(np.array(drawn))
    for predict in (bayes_bigram, in_context_unigram):
        mean, stderr = mean_and_stderr(losses_of(predict(chains), chains))
        slow_mean, slow_stderr = mean_and_stderr(losses_of(predict(slow), slow))
        assert abs(mean - slow_mean) < 4 * (stderr**2 + slow_stderr**2) ** 0.5


def test_the_first_state_is_uniform_and_the_first_move_too():
    states = markov_chains(rng_at(1, 0), n_sequences=16000, length=2)
    for pos in range(2):
        counts = np.bincount(states[:, pos], minlength=N_STATES)
        chi2 = ((counts - 1000) ** 2 / 1000).sum()
        assert chi2 < 37.7  # 99.9 % point of chi-squared with 15 degrees of freedom


def test_held_out_chains_are_4096_and_not_among_the_training_ones(chains):
    assert chains.shape == (N_HELD_OUT, 65)
    training = {tuple(row) for step in range(8) for row in markov_chains(rng_at(0, step), 64, 65).tolist()}
    assert not training & {tuple(row) for row in chains.tolist()}


def test_repeated_tokens_repeat_with_their_period_and_with_no_other():
    tokens = repeated_tokens(rng_at(0, 0), n_sequences=200, length=40, d_vocab=64, period=15)
    np.testing.assert_array_equal(tokens[:, 15:], tokens[:, :-15])
    assert (tokens[:, 14:] == tokens[:, :-14]).mean() < 0.05
    assert set(np.unique(tokens)) == set(range(64))
    with pytest.raises(DataError, match="period=0"):
        repeated_tokens(rng_at(0, 0), n_sequences=1, length=4, d_vocab=4, period=0)
