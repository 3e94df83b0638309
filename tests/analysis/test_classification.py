import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, roc_auc_score

from interp_gpt2.analysis.classification import auroc, average_ranks, score
from interp_gpt2.errors import AnalysisError

RNG = np.random.default_rng(0)
POSITIVE = RNG.random(400) < 0.2
VALUES = RNG.normal(size=(400, 7)) + POSITIVE[:, None] * np.linspace(-2, 2, 7)


@pytest.mark.parametrize("decimals", [None, 1, 0], ids=["distinct", "some ties", "many ties"])
def test_auroc_of_all_columns_is_sklearns_one_by_one(decimals):
    values = VALUES if decimals is None else VALUES.round(decimals)
    labels = np.stack([POSITIVE, VALUES[:, 0] > 1], 1)
    for label, found in zip(labels.T, auroc(values, labels), strict=True):
        assert found == pytest.approx([roc_auc_score(label, column) for column in values.T], abs=1e-12)


def test_auroc_has_its_known_values():
    positive = np.array([False, False, True, True])
    columns = np.array([[1, 2, 3, 4], [4, 3, 2, 1], [0, 0, 0, 0], [0, 1, 0, 1]], dtype=float).T
    assert auroc(columns, positive[:, None])[0].tolist() == [1.0, 0.0, 0.5, 0.5]


def test_ranks_are_scipys():
    rectified = np.maximum(VALUES, 0).astype(np.float32)
    assert np.array_equal(average_ranks(rectified), rankdata(rectified, axis=0))


def test_intervals_are_those_of_leaving_out_each_document():
    values, documents = VALUES[:, 5].round(1), RNG.integers(0, 12, 400)
    found = score(np.stack([-values, values], 1), POSITIVE.astype(int), documents)
    for value, ends, statistic in (
        (
            found.accuracy,
            (found.accuracy_low, found.accuracy_high),
            lambda kept: accuracy_score(POSITIVE[kept], values[kept] > 0),
        ),
        (found.auroc, (found.auroc_low, found.auroc_high), lambda kept: roc_auc_score(POSITIVE[kept], values[kept])),
    ):
        without = np.array([statistic(documents != document) for document in range(12)])
        stderr = np.sqrt(11 / 12 * np.square(without - without.mean()).sum())
        reach = 2.200985 * stderr / (value * (1 - value))  # Student's t, 11 degrees of freedom, in the logit
        assert ends == pytest.approx((expit(logit(value) - reach), expit(logit(value) + reach)), rel=1e-6)


@pytest.mark.parametrize("n_documents", [6, 20])
def test_intervals_over_few_documents_hold_the_truth_about_as_often_as_they_say(n_documents):
    """Documents move their tokens together; a percentile bootstrap of 6 held the accuracy 4 times in 5."""

    def drawn(seed, n):
        draw = np.random.default_rng(seed)
        documents = np.repeat(np.arange(n), 12)
        positive = draw.random(len(documents)) < draw.beta(1, 1, n)[documents]
        values = draw.standard_normal(len(documents)) + 0.7 * draw.standard_normal(n)[documents] + 2 * positive - 1
        return values, positive, documents

    values, positive, _ = drawn(10**6, 20_000)
    truths = roc_auc_score(positive, values), accuracy_score(positive, values > 0)
    held = np.zeros(2)
    for seed in range(200):
        values, positive, documents = drawn(seed, n_documents)
        found = score(np.stack([-values, values], 1), positive.astype(int), documents)
        ends = (found.auroc_low, found.auroc_high), (found.accuracy_low, found.accuracy_high)
        held += [low <= truth <= high for (low, high), truth in zip(ends, truths, strict=True)]
    assert (held / 200 > 0.91).all()
    assert (held / 200 < 0.99).all()


def test_what_was_never_wrong_is_not_certain_and_a_class_of_one_document_says_nothing():
    labels, documents = np.arange(20) % 2, np.arange(20) // 4
    found = score(np.eye(2)[labels], labels, documents)
    assert (found.accuracy, found.accuracy_high, found.auroc_high) == (1, 1, 1)
    assert found.accuracy_low == found.auroc_low == pytest.approx(0.025**0.2)  # 5 documents
    labels[documents > 0] = 0
    alone = score(np.stack([np.zeros(20), np.arange(20.0)], 1), labels, documents)
    assert (alone.auroc_low, alone.auroc_high) == (0, 1)
    assert 0 < alone.accuracy_low < alone.accuracy_high < 1


def test_a_score_has_sklearns_accuracy_and_auroc_in_intervals_that_hold_them():
    scores = np.stack([-VALUES[:, 5], VALUES[:, 5]], 1)
    documents = RNG.integers(0, 20, 400)
    found = score(scores, POSITIVE.astype(int), documents)
    assert found.accuracy == accuracy_score(POSITIVE, VALUES[:, 5] > 0)
    assert found.auroc == pytest.approx(roc_auc_score(POSITIVE, VALUES[:, 5]))
    assert found.accuracy_low < found.accuracy < found.accuracy_high
    assert found.auroc_low < found.auroc < found.auroc_high
    assert found.n == 400
    assert found == score(scores, POSITIVE.astype(int), documents)


def test_with_more_classes_the_auroc_is_each_against_the_rest():
    labels = RNG.integers(0, 3, 400)
    scores = RNG.random((400, 3)) + np.eye(3)[labels] * 0.5
    scores /= scores.sum(1, keepdims=True)
    found = score(scores, labels, RNG.integers(0, 20, 400))
    assert found.auroc == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr", average="macro"))
    rare_missing = np.concatenate([scores, np.zeros((400, 1))], 1)  # a class that never occurs says nothing
    assert score(rare_missing, labels, RNG.integers(0, 20, 400)).auroc == pytest.approx(found.auroc)


def test_intervals_are_wider_when_documents_agree_within():
    # The same tokens as one document each, and as documents of twenty that are right or wrong together.
    right = np.repeat(RNG.random(20) < 0.7, 20)
    labels = RNG.integers(0, 2, 400)
    scores = np.eye(2)[np.where(right, labels, 1 - labels)]
    by_token = score(scores, labels, np.arange(400))
    by_document = score(scores, labels, np.repeat(np.arange(20), 20))
    assert by_token.accuracy == by_document.accuracy
    width = by_document.accuracy_high - by_document.accuracy_low
    assert width > 3 * (by_token.accuracy_high - by_token.accuracy_low)


def test_what_has_no_ranking_is_refused():
    with pytest.raises(AnalysisError, match="only one of them"):
        auroc(VALUES, np.ones((400, 1), dtype=bool))
    with pytest.raises(AnalysisError, match="not finite"):
        auroc(np.full((400, 1), np.nan), POSITIVE[:, None])
    with pytest.raises(AnalysisError, match="have 1 and 400"):
        score(VALUES[:, :2], np.zeros(400, dtype=int), np.arange(400))
