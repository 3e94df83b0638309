"""Padding, documents packed into one row and a KV cache change nothing of what a token is and sees."""

import pytest
import torch

from interp_gpt2.errors import TokenError
from interp_gpt2.hooks import Hooks, resolve_edits
from interp_gpt2.model import KVCache


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_sequences_give_the_activations_of_unpadded_ones(any_model, side):
    draw = torch.Generator().manual_seed(2)
    texts = [torch.randint(0, 50, (n,), generator=draw) for n in (5, 9)]
    tokens, mask = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
    where = [slice(9 - len(text), 9) if side == "left" else slice(0, len(text)) for text in texts]
    for row, (text, place) in enumerate(zip(texts, where, strict=True)):
        tokens[row, place], mask[row, place] = text, 1
    logits, cache = any_model.run_with_cache(tokens, "*", attention_mask=mask)
    for row, (text, place) in enumerate(zip(texts, where, strict=True)):
        alone, alone_cache = any_model.run_with_cache(text[None], "*")
        torch.testing.assert_close(logits[row, place], alone[0], atol=1e-5, rtol=1e-5)
        for name, value in alone_cache.items():
            padded = cache[name][row]
            cut = padded[:, place, place] if name.endswith(("attn_scores", "pattern")) else padded[place]
            torch.testing.assert_close(cut, value[0], atol=1e-5, rtol=1e-5, msg=name)
    assert all(value.isfinite().all() for name, value in cache.items() if not name.endswith("attn_scores"))


@torch.no_grad()
def test_packed_documents_give_the_activations_they_have_alone(any_model):
    """Three documents in one row and two in another, with padding before, between and after them."""
    n_ctx = any_model.config.n_ctx
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(any_model.config.d_vocab, (2, min(n_ctx, 12)), generator=draw)
    n = tokens.shape[1]
    numbers = torch.zeros(2, n, dtype=torch.long)
    numbers[0, :1], numbers[0, 1 : n // 2], numbers[0, n // 2 :] = 7, 1, 2
    numbers[1, 1 : n // 3 + 1], numbers[1, n // 2 : n - 1] = 1, 2
    logits, cache = any_model.run_with_cache(tokens, "*", attention_mask=numbers)
    for row in range(2):
        for number in numbers[row].unique().tolist():
            place = (numbers[row] == number).nonzero()[:, 0]
            if number == 0:
                assert all(not value[row][:, place].any() for name, value in cache.items() if name.endswith("pattern"))
                continue
            expected_logits, alone = any_model.run_with_cache(tokens[row : row + 1, place], "*")
            torch.testing.assert_close(logits[row, place], expected_logits[0], rtol=0, atol=1e-5)
            for name, value in cache.items():
                of_queries = value[row][:, place][..., place] if name.endswith(("attn_scores", "pattern")) else value[row, place]
                torch.testing.assert_close(of_queries, alone[name][0], rtol=0, atol=1e-5, msg=name)


def test_a_mask_of_fractions_is_refused(model, tokens):
    with pytest.raises(TokenError, match="attention_mask is float32"):
        model(tokens, attention_mask=torch.ones(tokens.shape))


def test_a_padded_pass_composes_of_its_parts(any_model, tokens):
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    resid = any_model.run_blocks(any_model.embed(tokens, attention_mask=mask), attention_mask=mask)
    assert torch.equal(any_model.unembed(resid), any_model(tokens, attention_mask=mask))


@torch.no_grad()
def test_decoding_with_a_kv_cache_equals_one_pass(any_model, tokens):
    past = KVCache()
    pieces = [any_model(piece, past=past) for piece in tokens.split([5, 1, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), any_model(tokens), atol=1e-5, rtol=1e-5)
    assert past.n_pos == tokens.shape[1]


@torch.no_grad()
def test_a_pass_that_fails_leaves_the_kv_cache_as_it_was(model, tokens):
    def fail(value, site):
        raise RuntimeError("on purpose")

    past = KVCache()
    model(tokens[:, :5], past=past)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(tokens[:, 5:6], Hooks(edits=resolve_edits({("z", 1): fail}, model.config)), past=past)
    torch.testing.assert_close(model(tokens[:, 5:], past=past), model(tokens)[:, 5:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_edits_mean_the_same_while_decoding(model, tokens):
    def at_position_six(value, site):
        return torch.where((site.positions == 6)[:, None, None], value * 3, value)

    edits = {("z", 0): at_position_six}
    whole = model.run_with_edits(tokens, edits)
    past = KVCache()
    hooks = Hooks(edits=resolve_edits(edits, model.config))
    pieces = [model(piece, hooks, past=past) for piece in tokens.split([5, 1, 6], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("names", ["*.z", "*.pattern"])
def test_padded_sequences_give_the_derivatives_of_unpadded_ones(model, names):
    """Whether attention is fused or, for its pattern, explicit: the 0/0 of a query that sees nothing spreads to nothing."""
    tokens, mask = torch.tensor([[7, 8, 9, 10, 11], [3, 4, 5, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    _, _, both = model.run_with_gradients(tokens, lambda logits: logits[0, 4, 1] + logits[1, 2, 1], names, attention_mask=mask)
    _, _, alone = model.run_with_gradients(tokens[1:, :3], lambda logits: logits[0, 2, 1], names)
    for name, expected in alone.items():
        found = both[name][1:, :, :3, :3] if name.endswith("pattern") else both[name][1:, :3]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert both[name].isfinite().all()
