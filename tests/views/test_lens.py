"""The logit lens as the page holds it, beside the model's own logits."""

import pytest
import torch

from interp_gpt2.analysis.logit_lens import logit_lens
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.views import lens_view, pack_lens

LABELS = [f"t{i}" for i in range(50)]


def test_the_last_layer_is_what_the_model_says(model: GPT2, tokens: torch.Tensor) -> None:
    data = pack_lens(tokens[0], LABELS, [logit_lens(model, tokens[:1])])
    probabilities = model(tokens[:1])[0].detach().softmax(-1)
    for position in range(tokens.shape[1] - 1):
        best = probabilities[position].argmax()
        following = probabilities[position, tokens[0, position + 1]]
        assert data.words[data.top[0][-1][position][0]] == LABELS[best]
        assert data.top_probability[0][-1][position][0] == pytest.approx(float(probabilities[position, best]), rel=6e-3)
        assert data.probability[0][-1][position] == pytest.approx(float(following), rel=1e-3)
        assert data.rank[0][-1][position] == int((probabilities[position] > following).sum())
        assert data.targets[position] == LABELS[tokens[0, position + 1]]


def test_the_last_position_has_no_target_and_nothing_is_said_of_one(model: GPT2, tokens: torch.Tensor) -> None:
    data = pack_lens(tokens[0], LABELS, [logit_lens(model, tokens[:1])])
    assert data.targets[-1] is None
    assert all(row[-1] is None for row in data.rank[0] + data.probability[0])
    assert all(row[-1] is not None for row in data.entropy[0] + data.kl[0])


def test_targets_of_ones_own_are_kept(model: GPT2, tokens: torch.Tensor) -> None:
    answer = torch.full_like(tokens[:1], -1)
    answer[0, -1] = 7
    data = pack_lens(tokens[0], LABELS, [logit_lens(model, tokens[:1], targets=answer)])
    assert data.targets == [None] * 11 + ["t7"]


def test_steps_are_stacked_in_order(make_gpt2, config, tokens: torch.Tensor) -> None:
    lenses = [logit_lens(make_gpt2(config, seed), tokens[:1]) for seed in (0, 1)]
    both = pack_lens(tokens[0], LABELS, lenses, steps=[0, 100])
    for i, lens in enumerate(lenses):
        assert both.entropy[i] == pack_lens(tokens[0], LABELS, [lens]).entropy[0]


def test_a_view_holds_its_numbers(model: GPT2, tokens: torch.Tensor) -> None:
    lens = logit_lens(model, tokens[:1])
    view = lens_view(tokens[0], LABELS, [lens])
    assert view.packed == pack_lens(tokens[0], LABELS, [lens])


def test_a_batch_is_refused_with_what_to_pass_instead(model: GPT2, tokens: torch.Tensor) -> None:
    with pytest.raises(AnalysisError, match=r"tokens\[0\]"):
        pack_lens(tokens, LABELS, [logit_lens(model, tokens)])
    with pytest.raises(AnalysisError, match=r"tokens\[:1\]"):
        pack_lens(tokens[0], LABELS, [logit_lens(model, tokens)])
    with pytest.raises(AnalysisError, match="one lens a step"):
        pack_lens(tokens[0], LABELS, [logit_lens(model, tokens[:1])], steps=[0, 1])
