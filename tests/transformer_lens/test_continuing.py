"""Writing on: generate, and passes that continue what a cache of keys and values has seen, as in TransformerLens."""

from itertools import chain

import pytest
import torch

from interp_gpt2.errors import ConfigError, TokenError
from interp_gpt2.transformer_lens import HookedTransformerKeyValueCache

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
TEXT = "When John and Mary went to the shops"
TEXTS = ["When John and Mary", "the ball to James gave the bag", "to"]
GREEDY = {"do_sample": False, "verbose": False, "max_new_tokens": 6}


def test_greedy_text_is_the_same(pair):
    def code(lens, model):
        tokens = model.to_tokens(TEXT)
        hooked = [("blocks.0.hook_mlp_out", lambda value, hook: value * 0)]
        with model.hooks(fwd_hooks=hooked):
            edited = model.generate(tokens, **GREEDY)
        return [
            model.generate(TEXT, **GREEDY), model.generate(tokens, **GREEDY),
            model.generate(TEXT, return_type="tokens", **GREEDY), model.generate(TEXT, prepend_bos=False, **GREEDY),
            model.generate([TEXTS[0], TEXTS[0]], **GREEDY), edited,
            model.generate(TEXT, temperature=0.0, verbose=False, stop_at_eos=False),
            model.generate(TEXT, **GREEDY, eos_token_id=int(model.generate(tokens, **GREEDY)[0, -3])),
        ]  # fmt: skip

    results = pair.both(code)
    assert not torch.equal(results[1], results[5])


def test_samples_follow_torchs_seed(pair):
    model = pair.ours.model
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model.generate(TEXT, max_new_tokens=12, top_k=20, verbose=False))
    assert drawn[0] == drawn[1] != drawn[2]


def test_texts_of_unequal_length_are_continued_as_each_would_be_alone(pair):
    def code(lens, model):
        before = model.tokenizer.padding_side
        found = [
            model.generate(TEXTS, **GREEDY), model.generate(TEXTS, return_type="tokens", **GREEDY),
            model.generate(TEXTS, prepend_bos=False, stop_at_eos=False, **GREEDY),
        ]  # fmt: skip
        assert model.tokenizer.padding_side == before
        return found

    texts, tokens, _ = pair.both(code)
    model = pair.ours.model
    assert texts == [model.generate(text, **GREEDY) for text in TEXTS]
    assert (tokens[2, : tokens.shape[1] - 8] == model.tokenizer.pad_token_id).all()


def fresh(lens, model, batch_size=1):
    return lens.TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, batch_size)


def held(cache, n_layers=2):
    return [[cache[layer].past_keys, cache[layer].past_values] for layer in range(n_layers)]


def test_a_text_in_pieces_is_the_text_in_one_piece(pair):
    def code(lens, model):
        tokens, cache = model.to_tokens(TEXT), fresh(lens, model)
        found = [model(tokens[:, :5], past_kv_cache=cache)]
        found += [model(tokens[:, [at]], past_kv_cache=cache) for at in (5, 6)]
        last, activations = model.run_with_cache(tokens[:, 7:], past_kv_cache=cache)
        torch.testing.assert_close(torch.cat([*found, last], 1), model(tokens), rtol=1e-5, atol=1e-5)
        names = ("q", "k", "pattern", "z", "resid_post")
        loss = model(" gave the ball", prepend_bos=False, past_kv_cache=cache, return_type=None)
        return [found, last, [activations[name, 1] for name in names], activations["pos_embed"], held(cache), loss]

    pair.both(code)


def test_hooks_act_on_the_new_tokens(pair):
    def code(lens, model):
        tokens, cache = model.to_tokens(TEXT), fresh(lens, model)
        model(tokens[:, :5], past_kv_cache=cache)
        hooks = [("blocks.0.hook_mlp_out", lambda value, hook: value * 0), ("blocks.1.attn.hook_k", lambda k, hook: k + 1)]
        return [model.run_with_hooks(tokens[:, 5:], past_kv_cache=cache, fwd_hooks=hooks), held(cache)]

    pair.both(code)


def test_a_frozen_cache_is_continued_and_stays(pair):
    def code(lens, model):
        cache = fresh(lens, model)
        model(TEXT, past_kv_cache=cache)
        before = held(cache)
        cache.freeze()
        endings = [model(text, prepend_bos=False, past_kv_cache=cache) for text in (" gave", " to the park")]
        assert cache[0].frozen
        after = held(cache)
        for one, other in zip(chain(*before), chain(*after), strict=True):
            assert torch.equal(one, other)
        cache.unfreeze()
        return [endings, model(" gave", prepend_bos=False, past_kv_cache=cache), held(cache)]

    endings, again, _ = pair.both(code)
    torch.testing.assert_close(endings[0], again)


def test_what_is_held_can_be_changed(pair):
    def code(lens, model):
        tokens, cache = model.to_tokens(TEXT), fresh(lens, model)
        model(tokens[:, :6], past_kv_cache=cache)
        cache[0].past_values[:, 2] = 0.0
        cache[1].past_keys = cache[1].past_keys * 2
        return [model(tokens[:, 6:], past_kv_cache=cache), held(cache)]

    pair.both(code)


def test_padding_on_the_left_stays_padding(pair):
    def code(lens, model):
        cache = fresh(lens, model, 2)
        first = model(TEXTS[:2], padding_side="left", past_kv_cache=cache)
        new = model.to_tokens([" and", " to"], prepend_bos=False)
        return [first[:, -1], model(new, past_kv_cache=cache)[:, -1], cache.previous_attention_mask.long()]

    _, logits, mask = pair.both(code)
    model = pair.ours.model
    assert not mask.all()
    for text, row in zip((TEXTS[0] + " and", TEXTS[1] + " to"), logits, strict=True):
        torch.testing.assert_close(row, model(text)[0, -1], rtol=1e-5, atol=1e-5)


def test_a_cache_that_does_not_fit_is_refused_and_stays(pair):
    model = pair.ours.model
    tokens = model.to_tokens(TEXT)
    cache = HookedTransformerKeyValueCache.init_cache(model.cfg, "cpu")
    assert cache[0].past_keys.shape == (1, 0, model.cfg.n_heads, model.cfg.d_head)
    model(tokens, past_kv_cache=cache)
    with pytest.raises(TokenError, match="holds 1 sequences, 2 are given"):
        model(tokens.expand(2, -1), past_kv_cache=cache)
    with pytest.raises(TokenError, match="token 10000"):
        model(torch.full((1, 2), 10_000), past_kv_cache=cache)
    with pytest.raises(TokenError, match="not \\(1, 9, 4, 8\\)"):
        cache[1].past_values = torch.zeros(1, 2, 4, 8)
    for argument in ("start_at_layer", "stop_at_layer"):
        with pytest.raises(ConfigError, match=f"past_kv_cache with {argument}"):
            model(tokens, past_kv_cache=cache, **{argument: 1})
    assert cache.previous_attention_mask.shape == (1, 9)
    assert cache.past.n_pos == 9
