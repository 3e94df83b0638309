import math

import pytest
import torch
from torch.nn import functional as F

from interp_gpt2.analysis.loss import LossByPosition, loss_by_position, mean_loss, token_losses
from interp_gpt2.analysis.rows import reach_95
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, TokenError
from interp_gpt2.model import GPT2


@pytest.fixture(scope="module")
def model():
    return GPT2(GPT2Config(n_layers=2, n_heads=2, d_model=16, d_vocab=7, n_ctx=8, embed_std=0.5), seed=1)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 7, (10, 9), generator=torch.Generator().manual_seed(0))


def test_the_mean_loss_is_the_cross_entropy_of_the_next_token(model, tokens):
    losses = token_losses(model, tokens, batch_size=4)
    expected = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert losses.shape == (10, 8)
    assert mean_loss(losses).loss == pytest.approx(expected, abs=1e-6)
    assert (mean_loss(losses).n, mean_loss(losses).n_tokens) == (10, 80)


def test_losses_by_position_average_to_the_mean_on_those_positions(model, tokens):
    losses = token_losses(model, tokens)
    by_position = loss_by_position(losses, range(4, 8))
    assert by_position.positions == (4, 5, 6, 7)
    assert float(by_position.loss.mean()) == pytest.approx(mean_loss(losses, range(4, 8)).loss, abs=1e-12)
    expected = F.cross_entropy(model(tokens[:, :-1])[:, 5], tokens[:, 6]).item()
    assert float(by_position.loss[1]) == pytest.approx(expected, abs=1e-6)


def test_a_model_without_opinions_loses_ln_d_vocab_everywhere():
    model = GPT2(GPT2Config(n_layers=1, n_heads=1, d_model=8, d_vocab=7, n_ctx=8))
    with torch.no_grad():
        model.W_E.zero_()
    tokens = torch.arange(7)[None].repeat(3, 1)
    losses = token_losses(model, tokens)
    assert torch.allclose(losses, torch.full_like(losses, math.log(7)), atol=1e-6)
    assert mean_loss(losses).stderr == pytest.approx(0, abs=1e-9)


def test_standard_errors_take_sequences_as_units():
    losses = torch.tensor([[1.0, 1.0], [3.0, 3.0]], dtype=torch.float64)
    assert mean_loss(losses).stderr == pytest.approx(1.0)  # sd sqrt(2) over sqrt(2) sequences, not sqrt(4) tokens
    assert loss_by_position(losses).stderr.tolist() == pytest.approx([1.0, 1.0])
    assert math.isnan(mean_loss(losses[:1]).stderr)
    assert loss_by_position(losses[:1]).stderr.isnan().all()


def test_rows_say_the_same(model, tokens):
    rows = LossByPosition(tokens, positions=(4, 7))(model)
    losses = token_losses(model, tokens)
    mean = mean_loss(losses, (4, 7))
    assert rows[0] == {"metric": "loss_uniform", "value": math.log(7)}
    assert rows[1]["value"] == mean.loss
    assert rows[1]["high"] - rows[1]["low"] == pytest.approx(2 * reach_95(mean.n) * mean.stderr)
    assert [(row["position"], row["value"]) for row in rows[2:]] == [
        (4, pytest.approx(float(losses[:, 4].mean()))),
        (7, pytest.approx(float(losses[:, 7].mean()))),
    ]


def test_what_predicts_nothing_is_refused(model, tokens):
    with pytest.raises(AnalysisError, match="predict nothing"):
        token_losses(model, tokens[:, :1])
    with pytest.raises(AnalysisError, match="position 8 is not there"):
        mean_loss(token_losses(model, tokens), [8])
    with pytest.raises(AnalysisError, match="no positions"):
        mean_loss(token_losses(model, tokens), [])
    with pytest.raises(TokenError):
        token_losses(model, tokens + 7)
    last_is_unknown = tokens.clone()
    last_is_unknown[0, -1] = 7
    with pytest.raises(TokenError):
        token_losses(model, last_is_unknown)
