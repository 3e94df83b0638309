"""A steering vector is a difference of means; adding it does what adding it by hand does, also while text is generated."""

import math

import pytest
import torch
from torch import Tensor

from interp_gpt2.analysis.loss import token_losses
from interp_gpt2.causal.metrics import logit, logit_difference
from interp_gpt2.causal.steering import steering_vector
from interp_gpt2.causal.steering_sweep import steering_sweep
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, EditError, TokenError
from interp_gpt2.model import GPT2

WHERE = ("resid_post", 0)
POSITIVE = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
NEGATIVE = [[10, 11], [12, 13, 14]]


@pytest.fixture
def vector(model):
    return steering_vector(model, POSITIVE, NEGATIVE, WHERE)


def activations(model: GPT2, prompt: list[int], name=WHERE) -> Tensor:
    with torch.no_grad():
        return model.run_with_cache(torch.tensor([prompt]), name)[1][name][0].double()


@pytest.mark.parametrize("name", [("resid_pre", 1), ("attn_out", 0), ("mlp_out", 1), ("post", 0)], ids=str)
@pytest.mark.parametrize(("rule", "read"), [("last", lambda value: value[-1]), ("mean", lambda value: value.mean(0))])
def test_the_vector_is_the_difference_of_the_prompts_means(model, name, rule, read):
    found = steering_vector(model, POSITIVE, NEGATIVE, name, rule, batch_size=2)
    plus, minus = (torch.stack([read(activations(model, p, name)) for p in prompts]).mean(0) for prompts in (POSITIVE, NEGATIVE))
    torch.testing.assert_close(found.vector, plus - minus, rtol=1e-5, atol=1e-6)
    assert (found.n_positive, found.n_negative, found.rule) == (3, 2, rule)


def test_one_prompt_against_another_keeps_a_vector_for_each_position(model):
    found = steering_vector(model, [[1, 2, 3]], [[4, 2, 5]], WHERE, "all")
    torch.testing.assert_close(found.vector, activations(model, [1, 2, 3]) - activations(model, [4, 2, 5]), rtol=1e-5, atol=1e-6)


def test_a_direction_that_one_token_writes_is_found(make_gpt2):
    """Token 7 writes along one direction in an otherwise random model; prompts that end in it differ by that direction."""
    model = make_gpt2(GPT2Config(n_layers=1, n_heads=2, d_model=16, d_vocab=50, n_ctx=8))
    direction = torch.nn.functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(0)), dim=0)
    with torch.no_grad():
        model.wte.weight[7] = model.wte.weight[8] + 3 * direction
    prompts = torch.randint(10, 50, (20, 5), generator=torch.Generator().manual_seed(1))
    positive, negative = (torch.cat([prompts, torch.full((20, 1), token)], 1) for token in (7, 8))
    found = steering_vector(model, positive, negative, ("resid_pre", 0))
    torch.testing.assert_close(found.vector, 3 * direction.double(), rtol=1e-5, atol=1e-5)
    assert found.norm == pytest.approx(3, abs=1e-5)


@pytest.mark.parametrize("positions", [None, [1, 4], slice(3, None)], ids=str)
def test_steering_adds_the_vector_at_these_positions_alone(model, tokens, vector, positions):
    clean = model.run_with_cache(tokens, WHERE)[1][WHERE]
    found = model.run_with_cache(tokens, WHERE, vector.edits(2.5, positions))[1][WHERE]
    expected = clean.clone()
    for pos in positions if isinstance(positions, list) else range(12)[positions or slice(None)]:
        expected[:, pos] += 2.5 * vector.vector.float()
    torch.testing.assert_close(found, expected)


def test_a_vector_of_positions_goes_to_these(model, tokens):
    vector = steering_vector(model, [[1, 2, 3]], [[4, 5, 6]], WHERE, "all")
    clean = model.run_with_cache(tokens, WHERE)[1][WHERE]
    found = model.run_with_cache(tokens, WHERE, vector.edits(-2))[1][WHERE]
    clean[:, :3] -= 2 * vector.vector.float()
    torch.testing.assert_close(found, clean)
    with pytest.raises(AnalysisError, match="its own positions, 0 to 2"):
        vector.edits(1, [1])
    with pytest.raises(EditError, match="position 2, and a text of this pass ends at 1"):
        model.run_with_edits(tokens[:, :2], vector.edits(1))


def test_padding_does_not_move_where_steering_acts(model, vector):
    text = torch.tensor([[3, 4, 5, 6]])
    alone = model.run_with_edits(text, vector.edits(3, [2]))
    tokens, mask = torch.tensor([[0, 0, 3, 4, 5, 6]]), torch.tensor([[0, 0, 1, 1, 1, 1]])
    torch.testing.assert_close(model.run_with_edits(tokens, vector.edits(3, [2]), mask)[:, 2:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.hooked_transformer
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_transformer_lens_steers_the_same_way(model, tokens, vector):
    from interp_gpt2.convert.transformer_lens import to_hooked_transformer

    def steer(resid, hook):
        resid[:, 3:] += 4 * vector.vector.float()
        return resid

    theirs = to_hooked_transformer(model).run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_post", steer)])
    ours = model.run_with_edits(tokens, vector.edits(4, slice(3, None)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", [None, slice(4, None), [2], [6]], ids=str)
def test_steered_generation_is_a_loop_of_steered_passes(model, tokens, vector, positions):
    prompt = tokens[:, :4]
    if positions == [6]:  # it comes only after the prompt: refused rather than passed over without a word
        with pytest.raises(EditError, match="position 6"):
            model.with_edits(vector.edits(3, positions)).generate(prompt, 6)
        return
    edited = model.with_edits(vector.edits(3, positions))
    text = prompt
    for _ in range(6):
        text = torch.cat([text, edited(text)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(edited.generate(prompt, 6, temperature=0), text)
    assert torch.equal(model.with_edits(vector.edits(0)).generate(prompt, 6, seed=1), model.generate(prompt, 6, seed=1))


def test_enough_steering_alone_decides_the_next_token(model, tokens):
    vector = steering_vector(model, POSITIVE, NEGATIVE, ("resid_post", 1))
    steered = model.run_with_edits(tokens, vector.edits(1e4))
    wanted = model.unembed(1e4 * vector.vector.float()).argmax(-1)
    assert (steered.argmax(-1) == wanted).all()


def test_a_random_control_has_the_same_length_and_another_direction(model, vector):
    control = vector.random(0)
    assert control.norm == pytest.approx(vector.norm)
    assert abs(float(torch.cosine_similarity(control.vector, vector.vector, dim=0))) < 0.6
    assert torch.equal(control.vector, vector.random(0).vector)
    assert not torch.equal(control.vector, vector.random(1).vector)
    by_position = steering_vector(model, [[1, 2, 3]], [[4, 5, 6]], WHERE, "all")
    torch.testing.assert_close(by_position.random(0).vector.norm(dim=1), by_position.vector.norm(dim=1))
    assert vector.normalised().norm == pytest.approx(1)


# The sweep ------------------------------------------------------------------------------------------------------------


def test_a_sweep_measures_effect_and_side_effects(model, tokens, vector):
    neutral = torch.randint(0, 50, (5, 9), generator=torch.Generator().manual_seed(3))
    metric = logit_difference([3, 4], [7, 8])
    found = steering_sweep(model, vector, [-2.0, 0.0, 3.0], tokens, metric, neutral, n_random=2, batch_size=2)
    assert found.vectors == ("steering", "random 0", "random 1")
    for v, one in enumerate((vector, vector.random(0), vector.random(1))):
        for c, coefficient in enumerate(found.coefficients):
            edited = model.with_edits(one.edits(coefficient))
            torch.testing.assert_close(found.metric[v, c].float(), metric(edited(tokens)), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.loss[v, c], token_losses(edited, neutral).mean(1), rtol=1e-4, atol=1e-5)
            with torch.no_grad():
                p, q = model(neutral).softmax(-1), edited(neutral).softmax(-1)
            torch.testing.assert_close(found.kl[v, c].float(), (p * (p / q).log()).sum(-1).mean(1), rtol=1e-3, atol=1e-5)
    assert found.effect[:, 1].abs().max() < 1e-6
    assert found.kl[:, 1].abs().max() < 1e-9
    assert (found.kl > -1e-9).all()


def test_a_table_has_a_row_for_each_vector_and_coefficient(model, tokens, vector):
    found = steering_sweep(model, vector, [1, 2], tokens, logit(3), tokens, n_random=1)
    table = found.to_frame()
    assert list(zip(table.vector, table.coefficient, strict=True)) == [
        ("steering", 1), ("steering", 2), ("random 0", 1), ("random 0", 2),
    ]  # fmt: skip
    assert table.effect[1] == pytest.approx(float(found.effect[0, 1].mean()))
    assert table.effect_stderr[1] == pytest.approx(float(found.effect[0, 1].std()) / math.sqrt(2))
    assert set(table.measure) == {"logit"}


def test_padded_neutral_text_counts_its_own_tokens(model, tokens, vector):
    mask = torch.tensor([[1] * 12, [1] * 5 + [0] * 7])
    both = steering_sweep(model, vector, [3], tokens, logit(3), tokens, neutral_mask=mask, n_random=0)
    alone = steering_sweep(model, vector, [3], tokens, logit(3), tokens[1:, :5], n_random=0)
    torch.testing.assert_close(both.loss[0, 0, 1], alone.loss[0, 0, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(both.kl[0, 0, 1], alone.kl[0, 0, 0], rtol=1e-4, atol=1e-6)


def test_nothing_is_left_on_the_model(model, tokens, vector):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    logits = model(tokens)
    steering_sweep(model, vector, [5], tokens, logit(3), tokens)
    assert torch.equal(model(tokens), logits)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


# Held wrong -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positive", "negative", "names", "rule", "message"),
    [
        ([[1, 2]], NEGATIVE, WHERE, "last", "one positive prompt has no mean"),
        (POSITIVE, [[1, 2]], WHERE, "mean", "one negative prompt has no mean"),
        ([], NEGATIVE, WHERE, "last", "none of them empty"),
        ([[1], []], NEGATIVE, WHERE, "last", "none of them empty"),
        (torch.zeros(0, 3, dtype=torch.long), NEGATIVE, WHERE, "last", "none of them empty"),
        ("a text", NEGATIVE, WHERE, "last", "encode text first"),
        (["a text", "another"], NEGATIVE, WHERE, "last", "encode text first"),
        (POSITIVE, POSITIVE[::-1], WHERE, "last", "there is no direction"),
        (POSITIVE, NEGATIVE, WHERE, "all", "which must have one length; positive ones have 2 and 3 and 4 tokens"),
        ([[1, 2]], [[1, 2, 3]], WHERE, "all", "positive ones have 2 tokens, negative ones 3 tokens"),
        (POSITIVE, NEGATIVE, WHERE, "first", "rule='first' is unknown"),
        (POSITIVE, NEGATIVE, ("z", 0), "last", r"is not \(batch, pos, d\)"),
        (POSITIVE, NEGATIVE, "*resid_post", "last", "stands for 2 hook points"),
    ],
)
def test_holding_it_wrong(model, positive, negative, names, rule, message):
    with pytest.raises(AnalysisError, match=message):
        steering_vector(model, positive, negative, names, rule)


def test_ids_of_another_vocabulary_are_refused(model):
    with pytest.raises(TokenError, match="not in the vocabulary"):
        steering_vector(model, [[50], [1]], NEGATIVE, WHERE)


@pytest.mark.parametrize("coefficient", [math.nan, math.inf, "2", None])
def test_coefficients_that_are_no_numbers_are_refused(vector, coefficient):
    with pytest.raises(AnalysisError, match="must be a finite number"):
        vector.edits(coefficient)


def test_a_sweep_of_nothing_is_refused(model, tokens, vector):
    with pytest.raises(AnalysisError, match="nothing to sweep"):
        steering_sweep(model, vector, [], tokens, logit(3), tokens)


def test_a_vector_of_another_width_is_refused(make_gpt2, tokens, vector):
    other = make_gpt2(GPT2Config(n_layers=2, n_heads=2, d_model=16, d_vocab=50, n_ctx=16))
    with pytest.raises(EditError, match=r"a vector of 32 numbers cannot be added to 'blocks.0.resid_post', of 16"):
        other.run_with_edits(tokens, vector.edits(1))
