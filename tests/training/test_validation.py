"""The validation loss is a plain mean over every prediction of the held-out split."""

from math import log

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.data.source import MarkovSource, load_source
from interp_gpt2.model import GPT2
from interp_gpt2.training import validation
from interp_gpt2.training.validation import bytes_per_token, validation_loss

SMALL = {"n_layers": 1, "n_heads": 2, "d_model": 16}


@pytest.fixture
def text_source(tmp_path):
    words = [f"{i * i} is the square of {i}.\n" for i in range(400)]
    (tmp_path / "squares.txt").write_text("".join(words))
    return load_source(str(tmp_path / "squares.txt"), "byte", tmp_path / "streams")


def test_it_is_the_mean_over_each_token_of_the_split_once(text_source):
    model = GPT2(GPT2Config(**SMALL, d_vocab=256, n_ctx=16))
    held_out = torch.from_numpy(text_source.held_out.tokens.astype("int64"))
    n = (len(held_out) - 1) // 16 * 16  # what is left over fills no window
    by_hand = []
    for start in range(0, n, 16):
        log_probs = model(held_out[None, start : start + 16]).double().log_softmax(-1)[0]
        by_hand += [-log_probs[i, held_out[start + i + 1]].item() for i in range(16)]
    assert len(by_hand) == n > 1000
    assert validation_loss(model, text_source) == pytest.approx(sum(by_hand) / n, abs=1e-6)


def test_it_does_not_depend_on_how_many_tokens_are_computed_at_once(text_source, monkeypatch):
    model = GPT2(GPT2Config(**SMALL, d_vocab=256, n_ctx=16))
    losses = []
    for tokens_at_once in (16, 48, 100_000):  # 48 leaves a smaller batch at the end
        monkeypatch.setattr(validation, "TOKENS_AT_ONCE", tokens_at_once)
        losses.append(validation_loss(model, text_source))
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-7)


def test_bytes_per_token_are_those_of_the_text_that_the_loss_is_over(tmp_path):
    text = "".join(f"straße {i} für 5 €.\n" for i in range(900))
    (tmp_path / "strassen.txt").write_text(text)
    characters, single_bytes = (load_source(str(tmp_path / "strassen.txt"), kind, tmp_path / kind) for kind in ("char", "byte"))
    n = (len(characters.held_out) - 1) // 16 * 16
    predicted = characters.tokenizer.decode(characters.held_out.tokens[1 : n + 1].tolist())
    assert bytes_per_token(characters, 16) == len(predicted.encode()) / n > 1.1
    assert bytes_per_token(single_bytes, 16) == 1
    assert bytes_per_token(MarkovSource(), 16) is None


def test_a_token_that_ends_a_text_is_no_bytes(text_source, monkeypatch):
    plain = bytes_per_token(text_source, 16)
    end = ord("s")  # once in each line of the text
    monkeypatch.setattr(type(text_source.tokenizer), "eos_token_id", end, raising=False)
    assert bytes_per_token(text_source, 16) < plain == 1


def test_on_markov_chains_it_covers_the_positions_that_the_references_cover():
    n_ctx = 8
    model, source = GPT2(GPT2Config(**SMALL, d_vocab=16, n_ctx=n_ctx)), MarkovSource()
    tokens = torch.cat(list(source.validation(n_ctx, 512)))
    log_probs = model(tokens[:, :-1]).log_softmax(-1)
    losses = -log_probs.gather(-1, tokens[:, 1:, None])[..., 0]  # (4096, 8)
    assert validation_loss(model, source) == pytest.approx(losses[:, 4:].mean().item(), abs=1e-5)
    assert {reference.n for reference in source.references(n_ctx)} == {losses[:, 4:].numel()}


def test_a_model_that_knows_nothing_has_the_loss_of_the_uniform_distribution_whatever_dropout_it_trains_with(text_source):
    model = GPT2(GPT2Config(**SMALL, d_vocab=256, n_ctx=16, dropout=0.5)).train()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert validation_loss(model, text_source) == pytest.approx(log(256), abs=1e-6)
    assert model.training
    assert validation_loss(model, text_source) == validation_loss(model, text_source)
