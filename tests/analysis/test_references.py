"""References are what the data room computes, on the windows a model sees; agreement is 0 with oneself."""

import math

import numpy as np
import pytest
import torch

from interp_gpt2.analysis.ngram_agreement import NGramAgreement, agreement
from interp_gpt2.analysis.references import DensePredictor, predictors, reference_losses, strongest_reference
from interp_gpt2.analysis.registry import analysis_named
from interp_gpt2.analysis.sequences import held_out
from interp_gpt2.config import GPT2Config
from interp_gpt2.data.synthetic import losses_of
from interp_gpt2.data.synthetic_sources import MarkovSource, RepeatedSource
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.tokenizers import CharTokenizer

EVERYTHING = (slice(None), slice(None))


@pytest.fixture(scope="module")
def text(text_run):
    return text_run.source()


def test_ngrams_made_from_followers_are_the_ngram_models_own(text):
    tokens = held_out(text, 32, 5).tokens
    ngrams = text.ngrams()
    for order, predictor in enumerate(predictors(text, tokens), start=1):
        found = predictor.log_probabilities(EVERYTHING)
        assert found.exp().sum(-1).numpy() == pytest.approx(1)
        for i, at in [(0, 0), (1, 1), (2, 7), (4, 31)]:
            context = tokens[i : i + 1, max(0, at + 2 - order) : at + 1].numpy()
            assert found[i, at].exp().numpy() == pytest.approx(ngrams.next_token_probabilities(context)[0], rel=1e-9)


def test_a_context_never_seen_passes_on_the_shorter_ones_distribution(text):
    vocabulary = np.arange(text.tokenizer.d_vocab)
    seen = set(zip(text.train.head(10**6)[:-1].tolist(), text.train.head(10**6)[1:].tolist(), strict=True))
    pair = next((a, b) for a in vocabulary for b in vocabulary if (a, b) not in seen)
    _, bigram, trigram = predictors(text, torch.tensor([[*pair, 0]]))
    assert torch.equal(bigram.log_probabilities(EVERYTHING)[0, 1], trigram.log_probabilities(EVERYTHING)[0, 1])


@pytest.mark.parametrize("kind", ["text", "markov"])
def test_losses_are_those_of_the_whole_distributions(kind, text):
    source = text if kind == "text" else MarkovSource()
    tokens = held_out(source, 32, 6).tokens
    for losses, predictor in zip(reference_losses(source, tokens), predictors(source, tokens), strict=True):
        assert losses.name == predictor.name
        assert losses.losses.numpy() == pytest.approx(losses_of(predictor.log_probabilities(EVERYTHING), tokens).numpy())


def test_parts_of_a_predictor_are_parts_of_the_whole(text):
    *_, trigram = predictors(text, held_out(text, 32, 5).tokens)
    whole = trigram.log_probabilities(EVERYTHING)
    assert torch.equal(trigram.log_probabilities((slice(1, 3), slice(4, 30))), whole[1:3, 4:30])


def test_on_repeated_tokens_perfect_copying_pays_for_the_first_time_alone():
    source = RepeatedSource(CharTokenizer("ABCD"), period=5)
    none, copying = reference_losses(source, next(source.validation(12, 3)))
    assert copying.losses[0].tolist() == pytest.approx([math.log(4)] * 4 + [0] * 8)
    assert none.losses[0].tolist() == pytest.approx([math.log(4)] * 12)
    assert strongest_reference(source, next(source.validation(12, 3))).suffix == "_perfect_copying"
    assert strongest_reference(None, torch.zeros(1, 5)) is None


def test_a_model_agrees_with_itself_and_its_distance_from_others_is_the_kl(model, tokens):
    log_probs = model(tokens).double().log_softmax(-1)
    other = torch.randn(2, 12, 50, generator=torch.Generator().manual_seed(2)).double().log_softmax(-1)
    found = agreement(model, tokens, (DensePredictor("itself", log_probs), DensePredictor("other", other)), batch_size=1)
    assert found.kl[0].abs().max() < 1e-9
    assert found.same_top[0].mean() == 1
    by_hand = torch.nn.functional.kl_div(other, log_probs, log_target=True, reduction="none").sum(-1)
    assert found.kl[1].numpy() == pytest.approx(by_hand.detach().numpy())


def test_an_untrained_model_is_as_far_as_one_that_knows_nothing(text):
    model = GPT2(GPT2Config(n_layers=0, n_heads=1, d_model=8, d_vocab=text.tokenizer.d_vocab, n_ctx=32)).eval()
    with torch.no_grad():
        model.wte.weight.zero_()
    rows = NGramAgreement.of(text, held_out(text, 32, 4).tokens)(model)
    kl, uniform = (
        {row["label"]: row["value"] for row in rows if row["metric"] == f"agreement_kl{end}"} for end in ("", "_uniform")
    )
    assert kl == pytest.approx(uniform)
    assert kl["trigram"] > kl["bigram"] > kl["unigram"] > 0


def test_data_without_predictors_is_refused(model, tokens):
    with pytest.raises(AnalysisError, match="no predictor to compare with"):
        NGramAgreement.of(None, tokens)(model)


def test_each_position_has_the_references_loss_beside_the_models():
    model = GPT2(GPT2Config(n_layers=0, n_heads=1, d_model=8, d_vocab=16, n_ctx=8)).eval()
    rows = analysis_named("loss_by_position", MarkovSource(), 8)(model)
    metrics = [row["metric"] for row in rows]
    assert all(metrics.count(name) == 8 for name in ("loss", "loss_bayes_bigram", "loss_in_context_unigram"))
    (bayes,) = (row["value"] for row in rows if row["metric"] == "mean_loss_bayes_bigram")
    assert bayes < min(row["value"] for row in rows if row["metric"].startswith("mean_loss") and "bayes" not in row["metric"])
