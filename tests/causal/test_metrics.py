"""Metrics say what they say, where they look and of which tokens."""

import math

import pytest
import torch

from interp_gpt2.causal.metrics import kl_divergence, log_probability, logit, logit_difference, probability, rank
from interp_gpt2.errors import AnalysisError, TokenError

LOGITS = torch.tensor([[[9.0, 9, 9, 9], [0, 1, 2, 3]], [[9, 9, 9, 9], [4, 0, 1, 0]]])
ODDS = LOGITS[:, 1].exp() / LOGITS[:, 1].exp().sum(-1, keepdim=True)


def test_values_by_hand():
    assert logit([3, 0])(LOGITS).tolist() == [3, 4]
    assert logit_difference(3, 0)(LOGITS).tolist() == [3, -4]
    assert logit_difference([[3, 2], [0, -1]], [[0, 1], [1, 3]])(LOGITS).tolist() == [2.5 - 0.5, 4 - 0]
    assert torch.allclose(probability([3, 2])(LOGITS), torch.stack([ODDS[0, 3], ODDS[1, 2]]))
    assert torch.allclose(probability([[3, 1], [2, -1]])(LOGITS), torch.stack([ODDS[0, 3] + ODDS[0, 1], ODDS[1, 2]]))
    assert torch.allclose(log_probability([[3, 1], [2, -1]])(LOGITS), torch.stack([ODDS[0, 3] + ODDS[0, 1], ODDS[1, 2]]).log())
    assert rank([[3, 0], [1, 2]])(LOGITS).tolist() == [0, 1]
    assert rank(1)(LOGITS).tolist() == [2, 2]


def test_kl_divergence_is_from_the_reference():
    other = LOGITS.flip(-1)
    expected = (ODDS.flip(-1) * (ODDS.flip(-1).log() - ODDS.log())).sum(-1)
    assert torch.allclose(kl_divergence(other)(LOGITS), expected)
    assert torch.allclose(kl_divergence(LOGITS)(LOGITS), torch.zeros(2), atol=1e-6)


def test_positions_are_those_of_each_prompt_without_its_padding():
    left, right = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[1, 0], [1, 1]])
    assert logit(3, pos=0).positions(2, 2, left).tolist() == [1, 0]
    assert logit(3, pos=-1).positions(2, 2, right).tolist() == [0, 1]
    assert logit(3, pos=torch.tensor([0, -1])).positions(2, 2, right).tolist() == [0, 1]
    assert logit(3)(LOGITS, right).tolist() == [9, 0]
    assert probability(3, pos=0)(LOGITS).tolist() == [0.25, 0.25]
    with pytest.raises(AnalysisError, match="position 1 of pair 0, which has 1 tokens"):
        logit(3, pos=1)(LOGITS, right)
    with pytest.raises(AnalysisError, match=r"positions of shape \(3,\); expected one, or \(2,\)"):
        logit(3, pos=torch.tensor([0, 0, 0]))(LOGITS)


def test_only_the_named_tokens_are_read():
    metric = logit_difference([[3, 2], [0, -1]], [1, 1])
    assert metric.tokens.tolist() == [[3, 2, 1], [0, 0, 1]]
    assert metric.value(torch.tensor([[1.0, 2, 3], [5, math.pi, 1]]), torch.tensor([0, 1])).tolist() == [-1.5, 4]
    assert probability(3).tokens is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: logit_difference([1, 2], [2, 2]), "both correct and incorrect"),
        (lambda: logit_difference([1, 2], [3, 4, 5]), "2 pairs, incorrect ones for 3"),
        (lambda: logit(" Mary"), "ids, one, or one or more for each pair; got ' Mary'"),
        (lambda: logit([0.5]), "got float32 of shape"),
        (lambda: logit([]), "got float32 of shape"),
        (lambda: probability([-1, 2]), "-1 beside one stands for no token"),
    ],
)
def test_tokens_that_say_nothing_are_refused(make, message):
    with pytest.raises(TokenError, match=message):
        make()
