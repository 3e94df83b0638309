"""Classes are what their names say of texts written to show it, and their losses are means over their members."""

import math

import pytest
import torch

from interp_gpt2.analysis.loss import token_losses
from interp_gpt2.analysis.registry import analysis_named
from interp_gpt2.analysis.token_classes import KINDS, LossByTokenClass, TokenClasses, loss_by_class, text_classes, token_classes
from interp_gpt2.config import GPT2Config
from interp_gpt2.data.synthetic_sources import MarkovSource, RepeatedSource
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.tokenizers import CharTokenizer, tokenizer_named


def marked(text, tokenizer):
    """For each class, the characters that are in it, the others as dots; the first one is not predicted."""
    classes = text_classes(torch.tensor([tokenizer.encode(text)]), tokenizer)
    pieces = [tokenizer.token_bytes(token).decode() for token in tokenizer.encode(text)][1:]
    lines = (
        "".join(piece if held else "." for piece, held in zip(pieces, members[0], strict=True)) for members in classes.members
    )
    return dict(zip(classes.names, lines, strict=True))


def test_characters_are_in_the_classes_their_names_say():
    text = "x the 42 the_day, ab!"  # x is not predicted
    found = marked(text, CharTokenizer.from_text(text))
    shown = [
        ("whitespace", " ... .. ........ ..."),
        ("letter", ".the....the.day..ab."),
        ("digit", ".....42............."),
        ("punctuation", "..........._...,...!"),
        ("other", "...................."),
        ("word start", ".t...4..t........a.."),
        ("word inside", "..he..2..he.day...b."),
        ("repeated bigram", "........the........."),
    ]
    for name, expected in shown:
        assert (name, found[name]) == (name, expected)


def test_tokens_of_several_characters_are_told_by_their_first_that_is_no_space(gpt2):
    found = marked("so the cat's 12 eyes saw 12", gpt2)
    assert found["letter"] == " the cat.. eyes saw."
    assert found["digit"] == "... 12.. 12"
    assert found["punctuation"] == "..'s...."
    assert found["word start"] == " the cat. 12 eyes saw 12"


def test_every_prediction_is_of_one_kind_and_bytes_that_are_no_character_are_other():
    tokens = torch.arange(256).repeat(2)[None]
    classes = text_classes(tokens, tokenizer_named("byte"))
    assert torch.equal(classes.members[: len(KINDS)].sum(0), torch.ones(1, 511, dtype=torch.long))
    assert classes.members[KINDS.index("other"), 0, 199]  # predicts the byte 200
    assert torch.equal(classes.members[-1], ~classes.members[-2])


def test_states_of_a_chain_are_predictable_once_they_have_been_left():
    classes = token_classes(MarkovSource(), torch.tensor([[3, 5, 3, 5, 5, 3]]))
    found = dict(zip(classes.names, classes.members[:, 0].int().tolist(), strict=True))
    assert found["predictable"] == [0, 0, 1, 1, 1]
    assert found["repeated bigram"] == [0, 0, 1, 0, 1]
    repeated = RepeatedSource(CharTokenizer("ABCD"), period=3)
    assert token_classes(repeated, next(repeated.validation(6, 1))).members[0].tolist() == [
        [False, False, True, True, True, True]
    ]


def test_the_loss_of_a_class_is_the_mean_over_its_members_with_sequences_as_units():
    losses = torch.tensor([[1.0, 2.0, 3.0], [5.0, 0.0, 0.0], [2.0, 4.0, 0.0]], dtype=torch.float64)
    members = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
    found = loss_by_class(losses, TokenClasses(("some", "none"), torch.stack([members, members & False])))
    assert (float(found.loss[0]), found.n.tolist()) == (pytest.approx(17 / 6), [6, 0])
    residuals = [6 - 3 * 17 / 6, 5 - 17 / 6, 6 - 2 * 17 / 6]
    assert float(found.stderr[0]) == pytest.approx(math.sqrt(sum(r * r for r in residuals) * 3 / 2) / 6)
    assert math.isnan(found.loss[1])
    with pytest.raises(AnalysisError, match="do not fit"):
        loss_by_class(losses[:2], TokenClasses(("some",), members[None]))


def test_classes_that_share_out_the_predictions_share_out_the_loss():
    model = GPT2(GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=16, n_ctx=16)).eval()
    analysis = analysis_named("loss_by_token_class", MarkovSource(), 16)
    assert isinstance(analysis, LossByTokenClass)
    rows = {(row["metric"], row["label"]): row for row in analysis(model)}
    for end in ("", "_bayes_bigram"):
        parts = [rows[f"class_loss{end}", name] for name in ("predictable", "unpredictable")]
        total = sum(part["value"] * part["n"] for part in parts) / sum(part["n"] for part in parts)
        losses = token_losses(model, analysis.tokens) if not end else analysis.references[-1].losses
        assert total == pytest.approx(float(losses.mean()))
    known, unknown = (rows["class_loss_bayes_bigram", name]["value"] for name in ("predictable", "unpredictable"))
    assert known < 2.2 < unknown == pytest.approx(math.log(16))
