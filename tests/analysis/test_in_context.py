"""The in-context-learning score is 0 where context does not help, and what was planted where it does."""

from math import log

import pytest
import torch

from interp_gpt2.analysis.in_context import InContextLearningScore, in_context_learning_score
from interp_gpt2.analysis.registry import REGISTRY, analysis_named
from interp_gpt2.analysis.rows import fingerprint
from interp_gpt2.config import GPT2Config
from interp_gpt2.data.source import MarkovSource
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2


def test_a_planted_fall_is_found_between_the_positions_that_count():
    losses = torch.full((3, 64), 2.0)
    losses[:, 4:8] = torch.tensor([3.0, 4.0, 5.0])[:, None]
    losses[:, 56:] = 1.0
    found = in_context_learning_score(losses)
    assert (found.early, found.late, found.score) == pytest.approx((4.0, 1.0, -3.0))
    assert found.stderr == pytest.approx(1 / 3**0.5)  # of -2, -3, -4
    losses[:, :4] = losses[:, 8:56] = 99.0
    assert in_context_learning_score(losses) == found


def test_a_model_that_sees_one_token_only_has_none():
    """Without layers nothing but the present token predicts, and without positions it does so equally everywhere."""
    model = GPT2(GPT2Config(n_layers=0, n_heads=1, d_model=8, d_vocab=16, n_ctx=64)).eval()
    with torch.no_grad():
        model.wpe.weight.zero_()
        model.wte.weight.mul_(50)
    (score, early, late, bayes, *_) = analysis_named("in_context_learning", MarkovSource(), 64)(model)
    assert abs(score["value"]) < score["high"] - score["low"]
    assert early["value"] > log(16)
    assert late["value"] - early["value"] == pytest.approx(score["value"])
    assert bayes["metric"] == "in_context_learning_bayes_bigram"
    assert bayes["high"] < -0.3, "the best predictor of chains reads their transitions from the context"


def test_short_contexts_have_no_score():
    with pytest.raises(AnalysisError, match="63 positions are too few"):
        in_context_learning_score(torch.zeros(2, 63))
    rows = InContextLearningScore(torch.zeros(2, 17, dtype=torch.long))(
        GPT2(GPT2Config(n_layers=1, n_heads=1, d_model=8, n_ctx=16))
    )
    assert [row["metric"] for row in rows] == ["in_context_learning", "early_loss", "late_loss"]
    assert not [row for row in rows if "value" in row]


@pytest.mark.parametrize("name", [name for name in REGISTRY if not name.endswith("probes")])  # which are of text
def test_every_registered_analysis_is_the_same_each_time_and_gives_rows(name):
    model = GPT2(GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=16, n_ctx=16)).eval()
    analysis, again = (analysis_named(name, MarkovSource(), 16) for _ in range(2))
    assert analysis == again
    assert fingerprint(analysis) == fingerprint(again)
    assert analysis.name == name
    assert analysis(model)
    assert REGISTRY[name].measures


def test_an_analysis_nobody_registered_is_refused_with_the_nearest():
    with pytest.raises(AnalysisError, match="did you mean 'induction_heads'"):
        analysis_named("induction_head", MarkovSource(), 16)
    with pytest.raises(AnalysisError, match="there are head_scores, induction_heads"):
        analysis_named("x", MarkovSource(), 16)
