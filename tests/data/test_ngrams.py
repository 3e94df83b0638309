"""N-gram losses are those of a dictionary that is counted and smoothed by hand, and every prediction sums to 1."""

import math
from collections import Counter

import numpy as np
import pytest

from interp_gpt2.data.ngrams import NGramModel
from interp_gpt2.errors import DataError

D_VOCAB = 7


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    steps = np.random.default_rng(0).choice([0, 1, 1, 2, 5], size=400)
    return (np.cumsum(steps) % (D_VOCAB - 1)).astype(np.uint16)  # token 6 never occurs


@pytest.fixture(scope="module")
def model(tokens) -> NGramModel:
    return NGramModel.fit(tokens[:300], D_VOCAB, order=3)


def by_hand(training: list[int], context: tuple[int, ...], token: int) -> float:
    """Interpolated Witten-Bell, straight from its definition."""
    n = len(context)
    lower = by_hand(training, context[1:], token) if n else 1 / D_VOCAB
    after = Counter(training[i + n] for i in range(len(training) - n) if tuple(training[i : i + n]) == context)
    if not after:
        return lower
    return (after[token] + len(after) * lower) / (after.total() + len(after))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_losses_are_those_of_a_dictionary_counted_by_hand(model, tokens, order):
    held_out = tokens[300:].tolist()
    training = tokens[:300].tolist()
    losses = model.token_losses(tokens[300:], order)
    assert len(losses) == len(held_out) - 1
    for i in range(1, len(held_out)):
        context = tuple(held_out[max(0, i - order + 1) : i])
        assert losses[i - 1] == pytest.approx(-math.log(by_hand(training, context, held_out[i])), abs=1e-12)


@pytest.mark.parametrize("length", [0, 1, 2, 4])
def test_next_token_probabilities_sum_to_one_and_agree_with_the_losses(model, tokens, length):
    contexts = np.array([tokens[i : i + length] for i in range(50)] + [[6] * length]).reshape(51, length)
    probabilities = model.next_token_probabilities(contexts)
    assert probabilities.shape == (51, D_VOCAB)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    assert (probabilities > 0).all()
    if length:
        for context, row in zip(contexts[:50].tolist(), probabilities[:50], strict=True):
            for token in range(D_VOCAB):
                loss = model.token_losses(np.array([*context, token]), order=3)[-1]
                assert row[token] == pytest.approx(math.exp(-loss))


def test_longer_contexts_predict_text_that_has_structure_better(model, tokens):
    unigram, bigram = (model.token_losses(tokens[:300], order).mean() for order in (1, 2))
    assert bigram < unigram < math.log(D_VOCAB)


def test_large_vocabularies_are_counted_without_overflow_or_refused():
    tokens = np.array([50256, 50255, 50256, 50255, 50256], dtype=np.uint16)
    model = NGramModel.fit(tokens, 50257, order=3)
    assert model.token_losses(tokens, 3)[-1] < model.token_losses(tokens, 1)[-1] < math.log(50257)
    with pytest.raises(DataError, match="use order=2"):
        NGramModel.fit(tokens, 2**21, order=3)
    with pytest.raises(DataError, match="2 tokens hold no 3-gram"):
        NGramModel.fit(tokens[:2], 10, order=3)
