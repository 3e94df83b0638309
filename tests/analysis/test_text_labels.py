import random

import pytest

from interp_gpt2.analysis.text_labels import (
    TEXT_LABELS,
    digit,
    indentation,
    inside_quotes,
    paragraph_starts,
    text_label,
    uppercase,
    word_start,
)
from interp_gpt2.errors import AnalysisError


def marks(labels) -> str:
    return "".join(".123"[label] for label in labels)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('say "hi" now', "....111....."),
        ('"a" "b"', "11..11."),
        ("I don't, 'tis", "............."),
        ("dogs' \"it's\" x", "......11111..."),
        ("“to be” or", "111111...."),
        ('"one\ntwo" x', "11111111..."),
        ('"open\n\nnext', "111111....."),
        ('"open\n  \nnext', "11111111....."),
        ('"""doc"""', "1.1111.1."),
    ],
)
def test_inside_quotes(text, expected):
    assert marks(inside_quotes(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab", ".."),
        ("  ab", "1111"),
        ("    a b", "1111111"),
        ("     a", "111122"),
        ("\ta\n\t\tb", "11.122"),
        ("         a", "1111222233"),
        (" " * 30, "11112222" + "3" * 22),
        ("  a\nb\n   \nc", "111...111.."),
        ("a  b", "...."),
    ],
)
def test_indentation(text, expected):
    assert marks(indentation(text)) == expected


def test_labels_told_by_one_or_two_characters():
    text = "An x_1, É9 b"
    assert marks(word_start(text)) == "1..1....1..1"
    assert marks(uppercase(text)) == "1.......1..."
    assert marks(digit(text)) == ".....1...1.."


@pytest.mark.parametrize("name", TEXT_LABELS)
def test_a_label_depends_only_on_the_text_so_far(name):
    rng = random.Random(0)
    text = "".join(rng.choices("ab \"“”\n\tA1'", k=300))
    whole = TEXT_LABELS[name].of(text)
    for end in range(len(text) + 1):
        assert TEXT_LABELS[name].of(text[:end]).tolist() == whole[:end].tolist()


@pytest.mark.parametrize("name", TEXT_LABELS)
def test_a_paragraphs_labels_do_not_depend_on_what_stands_before_it(name):
    rng = random.Random(1)
    text = "".join(rng.choices("ab \"“”\n\tA1'", weights=[3, 3, 3, 2, 1, 1, 5, 1, 1, 1, 1], k=300))
    starts = paragraph_starts(text)
    assert len(starts) > 5
    for start in starts:
        assert TEXT_LABELS[name].of(text[start:]).tolist() == TEXT_LABELS[name].of(text)[start:].tolist()


def test_paragraphs_start_after_blank_lines():
    assert paragraph_starts("ab\nc\n\nd\n \n\nef\n").tolist() == [0, 6, 10, 11]
    assert paragraph_starts("one line").tolist() == [0]


def test_unknown_labels_are_refused():
    with pytest.raises(AnalysisError, match="'quotes'"):
        text_label("quotes")
