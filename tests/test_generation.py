"""Sampling: greedy is the most probable token, the cuts keep what they say, and a seed decides."""

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConfigError, TokenError
from interp_gpt2.generation import next_token_probs


def by_hand(model, tokens, n):
    """Greedy tokens without a KV cache."""
    for _ in range(n):
        logits = model(tokens[:, -model.config.n_ctx :])
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    return tokens


@torch.no_grad()
def test_greedy_tokens_are_those_of_full_passes_also_past_the_context(model, tokens):
    assert torch.equal(model.generate(tokens, 10, temperature=0), by_hand(model, tokens, 10))  # n_ctx is 16: the window slides
    assert torch.equal(model.generate(tokens[:, :1], 15, temperature=0), by_hand(model, tokens[:, :1], 15))


def test_a_seed_decides_and_another_differs(model, tokens):
    first = model.generate(tokens, 4, seed=1)
    assert torch.equal(first, model.generate(tokens, 4, seed=1))
    assert not torch.equal(first, model.generate(tokens, 4, seed=2))
    assert torch.equal(first[:, :12], tokens)


def test_cuts_keep_what_they_say():
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    torch.testing.assert_close(next_token_probs(logits, 1.0), logits.exp())
    torch.testing.assert_close(next_token_probs(logits, 0.5), (logits.exp() ** 2) / (logits.exp() ** 2).sum())
    torch.testing.assert_close(next_token_probs(logits, 1.0, top_k=2), torch.tensor([[2 / 3, 1 / 3, 0, 0]]))
    torch.testing.assert_close(next_token_probs(logits, 1.0, top_p=0.8), torch.tensor([[5 / 9, 2.5 / 9, 1.5 / 9, 0]]))
    torch.testing.assert_close(next_token_probs(logits, 1.0, top_p=0.01), torch.tensor([[1.0, 0, 0, 0]]))


def test_rows_end_at_the_stop_token(model, tokens):
    whole = model.generate(tokens, 4, temperature=0)
    stop = int(whole[0, 12])
    out = model.generate(tokens, 4, temperature=0, stop_token=stop)
    assert (out[0, 12:] == stop).all()


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"temperature": -1.0}, "0 takes the most"),
        ({"top_k": 0}, "keeps no token"),
        ({"top_p": 0.0}, "above 0"),
        ({"top_p": 2.0}, "at most 1"),
    ],
)
def test_sampling_that_means_nothing_is_refused(model, tokens, sampling, said):
    with pytest.raises(ConfigError, match=said):
        model.generate(tokens, 1, **sampling)


def test_no_prompt_and_training_mode_dropout_are_refused(model, make_gpt2):
    with pytest.raises(TokenError, match="at least one token"):
        model.generate(torch.zeros(1, 0, dtype=torch.long), 3)
    noisy = make_gpt2(GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=50, dropout=0.1)).train()
    with pytest.raises(ConfigError, match=r"call model\.eval\(\)"):
        noisy.generate(torch.zeros(1, 1, dtype=torch.long), 3)
