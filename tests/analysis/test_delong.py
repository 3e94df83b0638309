"""Standard errors of an AUROC: DeLong's own sums over pairs, documents that are not independent, and coverage."""

import numpy as np
import pytest

from interp_gpt2.analysis.classification import score
from interp_gpt2.analysis.delong import delong
from interp_gpt2.errors import AnalysisError


def drawn(seed: int, n_documents: int = 40, size: int = 12, shared: float = 0.0) -> tuple[np.ndarray, ...]:
    """Scores of tokens whose documents move them together by `shared`, rounded so that there are ties. Documents differ in
    their share of positives: where all have the same, what moves a whole document moves both classes, and cancels."""
    draw = np.random.default_rng(seed)
    documents = np.repeat(np.arange(n_documents), size)
    positive = draw.random(len(documents)) < draw.beta(0.5, 1, n_documents)[documents]
    values = draw.standard_normal(len(documents)) + shared * draw.standard_normal(n_documents)[documents] + positive
    return values.round(1), positive, documents


def test_independent_tokens_have_delongs_variance() -> None:
    values, positive, _ = drawn(0)
    pairs = values[positive][:, None] - values[~positive]
    won = (pairs > 0) + (pairs == 0) / 2
    variance = won.mean(1).var(ddof=1) / len(won) + won.mean(0).var(ddof=1) / won.shape[1]
    found = delong(values, positive)
    assert found.auroc == pytest.approx(won.mean(), abs=1e-12)
    assert found.stderr == pytest.approx(np.sqrt(variance), rel=1e-12)


def test_documents_that_move_together_widen_the_interval_as_resampling_them_does() -> None:
    values, positive, documents = drawn(1, shared=1.5)
    alone, together = delong(values, positive), delong(values, positive, documents)
    assert together.auroc == alone.auroc
    assert together.stderr > 1.3 * alone.stderr
    resampled = score(np.stack([-values, values], 1), positive.astype(int), documents)
    assert together.high - together.low == pytest.approx(resampled.auroc_high - resampled.auroc_low, rel=0.2)


def test_saying_every_token_twice_changes_nothing_when_documents_are_the_units() -> None:
    values, positive, documents = drawn(2)
    once, twice = delong(values, positive, documents), delong(*(np.repeat(x, 2) for x in (values, positive, documents)))
    assert twice.stderr == pytest.approx(once.stderr, rel=1e-9)
    assert delong(np.repeat(values, 2), np.repeat(positive, 2)).stderr < 0.75 * once.stderr


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    truth = delong(*drawn(10**6, 40_000, shared=1.0)[:2]).auroc
    found = [delong(*drawn(seed, shared=1.0)) for seed in range(300)]
    assert 0.91 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.985
    naive = [delong(*drawn(seed, shared=1.0)[:2]) for seed in range(300)]
    assert np.mean([one.low <= truth <= one.high for one in naive]) < 0.9


def test_a_perfect_score_of_few_documents_is_not_certain_and_too_few_have_no_interval() -> None:
    positive, documents = np.arange(8) % 2 == 1, np.arange(8) // 2
    for sign, ends in ((1, (0.025**0.25, 1)), (-1, (0, 1 - 0.025**0.25))):
        found = delong(sign * positive.astype(float), positive, documents)
        assert (found.auroc, found.low, found.high) == ((sign + 1) / 2, *map(pytest.approx, ends))
    alone = delong(np.arange(8.0), np.arange(8) == 3, documents)
    assert alone.auroc == pytest.approx(3 / 7)
    assert np.isnan([alone.stderr, alone.low, alone.high]).all()
    with pytest.raises(AnalysisError, match="there are 0 and 8"):
        delong(np.arange(8.0), np.arange(8) == 9, documents)
