"""Generation: greedy is the most probable token, cuts keep what they say, a seed decides, and edits act in every step."""

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.errors import ConfigError, ContextLengthError, TokenError
from interp_gpt2.generation import Sampling, generate, generate_with_cache, next_token_probs, stream
from interp_gpt2.hooks import Hooks, resolve
from interp_gpt2.model import KVCache


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


@pytest.mark.parametrize("stop", [-1, 50])
def test_a_stop_token_that_can_never_come_is_refused_at_once(model, tokens, stop):
    with pytest.raises(TokenError, match=f"stop_token={stop} can never come"):
        stream(model, tokens, 1, Sampling(stop_token=stop))
    with pytest.raises(TokenError, match="can never come"):
        generate_with_cache(model, tokens, 1, (), Sampling(stop_token=stop))


def test_no_temperature_is_too_small(model, tokens):
    for temperature in (1e-30, 1e-50, 5e-324):
        assert torch.equal(model.generate(tokens, 3, temperature, seed=0), model.generate(tokens, 3, temperature=0))


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


# ------------------------------------------------------------------------------------------------------------- batches


@torch.no_grad()
def test_left_padded_rows_get_the_tokens_they_would_get_alone_also_past_the_context(model, tokens):
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0
    out = model.generate(tokens, 14, temperature=0, attention_mask=mask)
    assert torch.equal(out[:1, 7:], by_hand(model, tokens[:1, 7:], 14))
    assert torch.equal(out[1:], by_hand(model, tokens[1:], 14))


def test_padding_that_new_tokens_would_follow_is_refused(model, tokens):
    mask = torch.ones_like(tokens)
    mask[0, -1] = 0
    with pytest.raises(TokenError, match="pad on the left"):
        model.generate(tokens, 1, attention_mask=mask)
    with pytest.raises(TokenError, match=r"expected \(2, 12\)"):
        model.generate(tokens, 1, attention_mask=mask[:, 1:])


@torch.no_grad()
def test_cached_uncached_and_hugging_faces_tokens_and_logits_are_the_same(model, tokens):
    theirs = to_huggingface(model)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    for prompt, padding in ((tokens, None), (tokens, mask)):
        given = torch.ones_like(prompt) if padding is None else padding
        hf = theirs.generate(
            prompt, attention_mask=given, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        ours, caches = generate_with_cache(model, prompt, 4, "unembed.out", Sampling(temperature=0), attention_mask=padding)
        assert torch.equal(ours, hf.sequences)
        for cache, logits in zip(caches, hf.logits, strict=True):
            torch.testing.assert_close(cache["unembed.out"][:, -1], logits, atol=1e-4, rtol=0)
    assert torch.equal(model.generate(tokens, 4, temperature=0), by_hand(model, tokens, 4))


# -------------------------------------------------------------------------------------------- looking on, and stepping in


@torch.no_grad()
def test_an_edit_at_a_position_means_the_same_while_decoding_as_in_one_pass(model, tokens):
    direction = 5 * torch.randn(32, generator=torch.Generator().manual_seed(3))

    def steer_odd_positions(resid, site):
        return resid + direction * (site.positions % 2)[..., None]

    for where in (("resid_mid", 0), ("mlp_out", 1)):
        edited = model.with_edits({where: steer_odd_positions})
        out = edited.generate(tokens[:, :6], 8, temperature=0)
        assert torch.equal(out, by_hand(edited, tokens[:, :6], 8))
        assert not torch.equal(out, by_hand(model, tokens[:, :6], 8))


@torch.no_grad()
def test_a_padded_rows_edit_counts_positions_from_its_first_token(model, tokens):
    direction = 5 * torch.randn(32, generator=torch.Generator().manual_seed(3))

    def steer_position_nine(resid, site):
        return resid + direction * (site.positions == 9)[..., None]

    mask = torch.ones_like(tokens)
    mask[0, :5] = 0  # of its tokens, 7 are the prompt's and 2 more come before position 9
    edited = model.with_edits({("resid_pre", 1): steer_position_nine})
    out = edited.generate(tokens, 4, temperature=0, attention_mask=mask)
    assert torch.equal(out[:1, 5:], by_hand(edited, tokens[:1, 5:], 4))
    assert not torch.equal(out, model.generate(tokens, 4, temperature=0, attention_mask=mask))


@torch.no_grad()
def test_the_caches_of_the_steps_are_the_parts_of_one_pass_over_the_whole_text(model, tokens):
    out, caches = generate_with_cache(model, tokens[:, :10], 4, ["*resid_post", "*pattern"], Sampling(seed=0))
    assert torch.equal(out, model.generate(tokens[:, :10], 4, seed=0))
    _, whole = model.run_with_cache(out[:, :-1], ["*resid_post", "*pattern"])
    assert [cache["resid_post", 0].shape[1] for cache in caches] == [10, 1, 1, 1]
    for layer in (0, 1):
        parts = torch.cat([cache["resid_post", layer] for cache in caches], dim=1)
        torch.testing.assert_close(parts, whole["resid_post", layer], atol=1e-4, rtol=1e-4)
        last = caches[-1]["pattern", layer]
        torch.testing.assert_close(last, whole["pattern", layer][:, :, -1:], atol=1e-5, rtol=1e-4)


def test_a_stream_yields_each_token_before_the_next_is_computed(model, tokens):
    passes = []

    def count(embed, site):
        passes.append(len(site.positions))
        return embed

    steps = stream(model.with_edits({"embed": count}), tokens, 3, Sampling(seed=5))
    assert passes == []
    first = next(steps)
    assert passes == [12]
    assert torch.is_grad_enabled()  # between tokens the caller's own setting holds
    rest = list(steps)
    assert passes == [12, 1, 1]
    whole = model.generate(tokens, 3, seed=5)
    assert torch.equal(torch.stack([first, *rest], dim=1), whole[:, 12:])


@torch.no_grad()
def test_a_patched_value_in_the_cache_is_what_later_tokens_attend_to(model, tokens):
    """Zeroing a value is, for the queries after it, the same as not attending to it."""
    past = KVCache()
    model(tokens[:, :10], past=past)
    past.values[1][:, 4, 2] = 0

    def ignore(pattern, site):
        pattern[:, 2, 10:, 4] = 0
        return pattern

    _, caches_wanted = model.run_with_cache(tokens, "unembed.out", {("pattern", 1): ignore})
    patched = model(tokens[:, 10:], past=past)
    torch.testing.assert_close(patched, caches_wanted["unembed.out"][:, 10:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(patched, model(tokens)[:, 10:], atol=1e-2)


@torch.no_grad()
def test_patching_the_cache_in_place_changes_nothing_that_was_recorded(model, tokens):
    past, hooks = KVCache(), Hooks(resolve(["*.k", "*.v"], model.config))
    for piece in tokens.split([10, 2], dim=1):
        model(piece, hooks, past=past)
        before = {name: value.clone() for name, value in hooks.cache.items()}
        for layer in past.keys:
            past.keys[layer][:], past.values[layer][:] = 7, 7
        assert all(torch.equal(value, before[name]) for name, value in hooks.cache.items())


@torch.no_grad()
def test_generation_goes_on_from_a_patched_cache_and_one_can_be_patched_between_tokens(model, tokens):
    def ignore(pattern, site):
        pattern[:, :, 10:, :3] = 0  # queries from position 10 on
        return pattern

    past = KVCache()
    model(tokens[:, :10], past=past)
    for layer in past.values:
        past.values[layer] = past.values[layer].index_fill(1, torch.arange(3), 0)  # replaced, not changed in place
    steps = list(stream(model, tokens[:, :11], 4, Sampling(temperature=0), past=past))
    edited = model.with_edits({"*pattern": ignore})
    wanted = by_hand(edited, tokens[:, :11], 4)[:, 11:]
    assert torch.equal(torch.stack(steps, 1), wanted)

    past, text = KVCache(), tokens[:, :11]
    between = []
    for new in stream(model, text, 4, Sampling(temperature=0), past=past):
        between.append(new)
        for layer in past.values:
            past.values[layer][:] = 0
    assert not torch.equal(torch.stack(between, 1), by_hand(model, text, 4)[:, 11:])
    assert torch.equal(between[0], by_hand(model, text, 1)[:, 11])


def test_a_cache_that_does_not_fit_the_tokens_is_refused(model, tokens):
    past = KVCache()
    model(tokens, past=past)
    with pytest.raises(TokenError, match="one at least that is new"):
        stream(model, tokens, 1, past=past)
    with pytest.raises(ContextLengthError, match="pass max_new_tokens=5"):
        stream(model, tokens, 6, past=KVCache())
    assert len(list(stream(model, tokens, 5, past=KVCache()))) == 5


def test_without_a_seed_samples_differ_and_torchs_own_generator_is_left_alone(model, tokens):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = (model.generate(tokens, 4, temperature=3.0) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)


def test_a_temperature_near_zero_is_greedy(model, tokens):
    assert torch.equal(model.generate(tokens, 4, temperature=1e-30, seed=0), model.generate(tokens, 4, temperature=0))


@pytest.mark.parametrize("wrong", [[1, 2], torch.tensor([1, 2]), torch.tensor(3), torch.tensor([[50]]), torch.rand(1, 3)])
def test_what_is_no_batch_of_tokens_is_refused(model, wrong):
    with pytest.raises(TokenError):
        model.generate(wrong, 1)


def test_the_models_own_methods_are_these_functions(model):
    prompt, sampling = torch.tensor([[1, 2, 3]]), Sampling(temperature=0)
    expected = generate(model, prompt, 4, temperature=0)
    assert torch.equal(model.generate(prompt, 4, temperature=0), expected)
    assert torch.equal(torch.stack(list(model.stream(prompt, 4, sampling)), dim=1), expected[:, 3:])
    whole, caches = model.generate_with_cache(prompt, 4, "*.pattern", sampling)
    assert torch.equal(whole, expected)
    assert caches[3]["pattern", 0].shape[-2:] == (1, 6)
