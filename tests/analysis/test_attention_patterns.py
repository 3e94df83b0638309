import math

import pytest
import torch

from interp_gpt2.analysis.attention_patterns import (
    METRICS,
    HeadScores,
    RepeatedSequenceScores,
    duplicate_token_score,
    entropy_score,
    first_token_score,
    head_scores,
    induction_score,
    previous_token_score,
    repeated_sequence_score,
    repeated_sequence_scores,
    uniform_pattern,
)
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

SCORES = {
    "previous_token": previous_token_score,
    "duplicate_token": duplicate_token_score,
    "induction": induction_score,
    "first_token": first_token_score,
    "entropy": entropy_score,
}


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 5, (6, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return GPT2(GPT2Config(n_layers=3, n_heads=2, d_model=16, d_vocab=5, n_ctx=16, embed_std=1.0), seed=1)


@pytest.fixture(scope="module")
def pattern():
    scores = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return scores.masked_fill(torch.ones(12, 12).triu(1).bool(), -math.inf).softmax(-1)


def one_hot(key_of_query: list[int]) -> torch.Tensor:
    """The pattern (1, 1, query, key) of a head that looks at one key only."""
    return torch.eye(len(key_of_query))[key_of_query][None, None]


def by_hand(metric: str, pattern: torch.Tensor, tokens: torch.Tensor) -> tuple[list[float], int]:
    """The definitions as loops over batch, head, query and key."""
    batch, n_heads, n_pos, _ = pattern.shape
    per_head = []
    for head in range(n_heads):
        terms = []
        for b in range(batch):
            t = tokens[b].tolist()
            for q in range(n_pos):
                keys = {
                    "previous_token": [k for k in range(q + 1) if k == q - 1],
                    "duplicate_token": [k for k in range(q) if t[k] == t[q]],
                    "induction": [k for k in range(1, q + 1) if t[k - 1] == t[q]],
                    "first_token": [0] if q > 0 else [],
                    "entropy": list(range(q + 1)) if q > 0 else [],
                }[metric]
                if keys and metric == "entropy":
                    terms.append(-sum(p * math.log(p) for p in pattern[b, head, q, keys].tolist() if p > 0))
                elif keys:
                    terms.append(sum(pattern[b, head, q, keys].tolist()))
        per_head.append(sum(terms) / len(terms))
    return per_head, len(terms)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_equal_their_definition_written_as_loops(metric, pattern, tokens):
    score = SCORES[metric](pattern, tokens)
    expected, n = by_hand(metric, pattern, tokens)
    assert score.n == n
    assert score.value.tolist() == pytest.approx(expected, abs=1e-6)  # float32 attention, at most 12 terms a query


@pytest.mark.parametrize("metric", METRICS)
def test_a_uniform_head_scores_exactly_its_yardstick(metric, tokens):
    uniform = uniform_pattern(tokens)
    score = SCORES[metric](uniform, tokens)
    assert score.value.tolist() == [score.uniform]
    expected, _ = by_hand(metric, uniform, tokens)
    assert score.uniform == pytest.approx(expected[0], abs=1e-12)


def test_the_uniform_yardsticks_have_their_closed_forms():
    tokens = torch.arange(8)[None].repeat(3, 1)
    pattern = uniform_pattern(tokens)
    harmonic = sum(1 / (q + 1) for q in range(1, 8)) / 7
    assert previous_token_score(pattern, tokens).uniform == pytest.approx(harmonic, abs=1e-12)
    assert first_token_score(pattern, tokens).uniform == pytest.approx(harmonic, abs=1e-12)
    assert entropy_score(pattern, tokens).uniform == pytest.approx(math.log(math.factorial(8)) / 7, abs=1e-12)
    twice = torch.arange(4).repeat(2)[None]
    expected = sum(1 / (q + 1) for q in range(4, 8)) / 4
    assert induction_score(uniform_pattern(twice), twice).uniform == pytest.approx(expected, abs=1e-12)


def test_a_planted_previous_token_head_scores_one():
    tokens = torch.tensor([[0, 1, 2, 3]])
    score = previous_token_score(one_hot([0, 0, 1, 2]), tokens)
    assert score.value.tolist() == [1.0]
    assert score.n == 3
    assert first_token_score(one_hot([0, 0, 1, 2]), tokens).value.tolist() == pytest.approx([1 / 3])
    assert entropy_score(one_hot([0, 0, 1, 2]), tokens).value.tolist() == [0.0]


def test_a_planted_induction_head_scores_one_and_a_duplicate_head_nought():
    tokens = torch.tensor([[7, 8, 9, 7, 8, 9]])
    looks_after = one_hot([0, 0, 0, 1, 2, 3])  # query 3 sees token 7, which 8 followed at key 1
    looks_at_same = one_hot([0, 0, 0, 0, 1, 2])
    assert induction_score(looks_after, tokens).value.tolist() == [1.0]
    assert duplicate_token_score(looks_after, tokens).value.tolist() == [0.0]
    assert induction_score(looks_at_same, tokens).value.tolist() == [0.0]
    assert duplicate_token_score(looks_at_same, tokens).value.tolist() == [1.0]
    assert repeated_sequence_score(looks_after, tokens, period=3).value.tolist() == [1.0]
    assert repeated_sequence_score(looks_at_same, tokens, period=3).value.tolist() == [0.0]


def test_induction_counts_every_earlier_occurrence_and_the_token_itself():
    tokens = torch.tensor([[4, 4, 4]])  # at q = 2, keys 1 and 2 both follow a 4
    pattern = torch.tensor([[[[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]]])
    score = induction_score(pattern, tokens)
    assert score.n == 2
    assert score.value.item() == pytest.approx((0.5 + 0.8) / 2)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_neither_query_nor_key(metric, side, pattern, tokens):
    n_pad = 3
    short, inner = tokens[:, :-n_pad], pattern[:, :, :-n_pad, :-n_pad]
    pads = (n_pad, 0) if side == "left" else (0, n_pad)
    padded = torch.nn.functional.pad(short, pads, value=4)
    mask = torch.nn.functional.pad(torch.ones_like(short), pads)
    zero_keys = torch.nn.functional.pad(inner, pads)
    garbage_queries = torch.nn.functional.pad(zero_keys, (0, 0, *pads), value=0.7)
    ours, expected = SCORES[metric](garbage_queries, padded, mask), SCORES[metric](inner, short)
    assert torch.allclose(ours.value, expected.value, atol=1e-6)  # float32 sums of other lengths
    assert (ours.uniform, ours.n) == (pytest.approx(expected.uniform, abs=1e-12), expected.n)


def test_padding_between_tokens_is_refused(pattern, tokens):
    mask = torch.ones_like(tokens)
    mask[0, 5] = 0
    with pytest.raises(AnalysisError, match="between tokens"):
        induction_score(pattern, tokens, mask)


def test_the_standard_error_is_that_of_independent_sequences(pattern, tokens):
    # Every sequence has the same number of previous-token queries, so the ratio is a plain mean of means.
    by_sequence = torch.stack([previous_token_score(pattern[i : i + 1], tokens[i : i + 1]).value for i in range(6)])
    score = previous_token_score(pattern, tokens)
    assert torch.allclose(score.stderr, by_sequence.std(0) / math.sqrt(6), atol=1e-12)
    assert previous_token_score(pattern[:1], tokens[:1]).stderr.isnan().all()


def test_sequences_with_more_queries_weigh_more_in_value_and_standard_error(pattern, tokens):
    tokens = tokens.clone()
    tokens[:3, 6:] = torch.arange(5, 11)  # three sequences with few repetitions, so few induction queries
    alone = [induction_score(pattern[i : i + 1], tokens[i : i + 1]) for i in range(6)]
    n = torch.tensor([score.n for score in alone], dtype=torch.float64)
    assert n.max() > 2 * n.min()
    score = induction_score(pattern, tokens)
    weighted = [(a.n * (a.value - score.value) / n.sum()) ** 2 for a in alone]
    assert torch.allclose(score.value, sum(a.n * a.value for a in alone) / n.sum(), atol=1e-12)
    assert torch.allclose(score.stderr, (sum(weighted) * 6 / 5).sqrt(), atol=1e-12)


def test_scores_of_a_model_are_those_of_its_patterns_layer_by_layer(model, tokens):
    _, cache = model.run_with_cache(tokens, "*.pattern")
    scores = head_scores(model, tokens, batch_size=4)
    for metric, score in scores.items():
        for layer in range(3):
            expected = SCORES[metric](cache["pattern", layer], tokens)
            # Other batch sizes may sum a matrix product in another order: float32 rounding.
            assert torch.allclose(score.value[layer], expected.value, atol=1e-6)
            assert torch.allclose(score.stderr[layer], expected.stderr, atol=1e-6)
            assert (score.uniform, score.n) == (pytest.approx(expected.uniform, abs=1e-12), expected.n)


def test_scores_of_a_model_with_padding_are_those_without(model, tokens):
    plain = head_scores(model, tokens[:, :9])
    mask = torch.nn.functional.pad(torch.ones(6, 9, dtype=torch.long), (3, 0))
    padded = head_scores(model, torch.nn.functional.pad(tokens[:, :9], (3, 0)), attention_mask=mask)
    for metric in METRICS:
        assert torch.allclose(plain[metric].value, padded[metric].value, atol=1e-6)
        assert plain[metric].n == padded[metric].n


def test_the_best_head_is_named(model, tokens):
    score = head_scores(model, tokens, ["induction"])["induction"]
    label, value = score.best
    layer, head = int(label[1]), int(label[3])
    assert value == score.value.max() == score.value[layer, head]


def test_rows_hold_every_head_beside_the_uniform_one(model, tokens):
    rows = HeadScores(tokens)(model)
    scores = head_scores(model, tokens)
    assert len(rows) == len(METRICS) * (3 * 2 + 1)
    for row in rows:
        score = scores[row["metric"].removesuffix("_uniform")]
        if row["metric"].endswith("_uniform"):
            assert (row["value"], row["n"]) == (score.uniform, score.n)
        else:
            assert row["label"] == f"L{row['layer']}H{row['head']}"
            assert row["value"] == score.value[row["layer"], row["head"]]
            assert row["low"] < row["value"] < row["high"]


def test_repeated_sequence_rows_ask_for_the_tokens_to_repeat(model, tokens):
    twice = tokens[:, :6].repeat(1, 2)
    score = repeated_sequence_scores(model, twice, period=6)
    rows = RepeatedSequenceScores(twice, 6)(model)
    assert [row["value"] for row in rows[1:]] == score.value.flatten().tolist()
    assert rows[0]["value"] == pytest.approx(sum(1 / (q + 1) for q in range(6, 12)) / 6)
    with pytest.raises(AnalysisError, match="period 5"):
        RepeatedSequenceScores(twice, 5)(model)
    with pytest.raises(AnalysisError, match="period 12"):
        RepeatedSequenceScores(twice, 12)(model)


def test_a_score_no_query_qualifies_for_is_refused(model):
    distinct = torch.arange(5)[None]
    with pytest.raises(AnalysisError, match="no token occurs twice"):
        head_scores(model, distinct)
    with pytest.raises(AnalysisError, match="previous_token score: no sequence has a second token"):
        head_scores(model, distinct[:, :1])


def test_unknown_metrics_and_random_models_are_refused(model, tokens):
    with pytest.raises(AnalysisError, match="'inductive'"):
        head_scores(model, tokens, ["inductive"])
    dropping = GPT2(GPT2Config(n_layers=1, n_heads=2, d_model=16, d_vocab=5, n_ctx=16, dropout=0.1))
    with pytest.raises(AnalysisError, match=r"model.eval\(\)"):
        head_scores(dropping.train(), tokens)
    with pytest.raises(AnalysisError, match="no heads"):
        head_scores(GPT2(GPT2Config(n_layers=0, n_heads=2, d_model=16, d_vocab=5, n_ctx=16)), tokens)
