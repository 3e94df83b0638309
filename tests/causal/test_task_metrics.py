"""The metric of a set of prompts is the one that its literature defines, computed by hand."""

import pytest
import torch

from interp_gpt2.causal.task_metrics import probability_difference, standard_metric
from interp_gpt2.errors import TokenError
from interp_gpt2.prompts.induction import induction
from interp_gpt2.prompts.pairs import PromptPairs
from interp_gpt2.prompts.prompt_set import PromptSet

PAIRS = PromptPairs.from_tokens(
    [[1, 2], [1, 2], [1, 2, 3]], [[1, 3], [2, 2], [2, 2, 3]], [[4, 5], [6], [7, 8]], [[1], [2, 3], [9]]
)


@pytest.fixture
def logits():
    return torch.randn(3, 3, 10, generator=torch.Generator().manual_seed(0))


def test_the_probability_difference_counts_each_answer_once_at_the_end_of_its_prompt(logits):
    p = torch.stack([logits[0, 1], logits[1, 1], logits[2, 2]]).softmax(-1)
    expected = [p[0, 4] + p[0, 5] - p[0, 1], p[1, 6] - p[1, 2] - p[1, 3], p[2, 7] + p[2, 8] - p[2, 9]]
    prompts = PromptSet(PAIRS, "sums", "", "probability_difference", "")
    torch.testing.assert_close(standard_metric(prompts)(logits, PAIRS.attention_mask), torch.stack(expected))


def test_all_of_the_vocabulary_on_two_sides_lies_between_minus_one_and_one(logits):
    metric = probability_difference([[0, 1, 2]], [[3, 4, 5, 6, 7, 8, 9]])
    p = logits[:, -1].softmax(-1)
    torch.testing.assert_close(metric(logits), 2 * p[:, :3].sum(-1) - 1)
    with pytest.raises(TokenError, match="both correct and incorrect"):
        probability_difference(3, 3)


def test_of_induction_it_is_the_difference_of_two_logits():
    prompts = induction(10, 3, period=3)
    logits = torch.randn(3, 5, 10, generator=torch.Generator().manual_seed(1))
    row = torch.arange(3)
    right, wrong = prompts.pairs.correct[:, 0], prompts.pairs.incorrect[:, 0]
    torch.testing.assert_close(standard_metric(prompts)(logits), logits[row, -1, right] - logits[row, -1, wrong])
