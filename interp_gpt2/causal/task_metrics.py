"""Metrics of named tasks: what the literature of a set of prompts measures."""

import torch
from torch import Tensor

from interp_gpt2.causal.metrics import Ids, Metric, Positions, logit_difference, probability
from interp_gpt2.prompts.prompt_set import PromptSet


def probability_difference(correct: Ids, incorrect: Ids, pos: Positions = -1) -> Metric:
    """The probability of all correct tokens less that of all incorrect ones, in [-1, 1]; -1 among ids is no token.

    Hanna et al. 2023, "How does GPT-2 compute greater-than?". Raises TokenError for a token that is both.
    """
    right, wrong = probability(correct, pos), probability(incorrect, pos)
    logit_difference(correct, incorrect)  # which refuses ids that cannot be subtracted
    assert right.ids is not None
    assert wrong.ids is not None
    n_pairs = max(len(right.ids), len(wrong.ids))
    ids = torch.cat([right.ids.expand(n_pairs, -1), wrong.ids.expand(n_pairs, -1)], 1)

    def measure(logits: Tensor, pair: Tensor) -> Tensor:
        return right.value(logits, pair) - wrong.value(logits, pair)

    return Metric("probability difference", measure, pos, None, ids)


def standard_metric(prompts: PromptSet) -> Metric:
    """What the literature of these prompts measures, of their own answers, at the last token of each prompt."""
    metric = {"logit_difference": logit_difference, "probability_difference": probability_difference}[prompts.metric]
    return metric(prompts.pairs.correct, prompts.pairs.incorrect)
