"""The page of answers in analyses/ has one of every script, and its check finds what differs by more than it may."""

import runpy
from pathlib import Path

import pytest

ANALYSES = Path(__file__).parents[2] / "analyses"


@pytest.fixture(scope="module")
def index() -> dict:
    return runpy.run_path(str(ANALYSES / "index.py"))


def test_every_script_has_its_answers_on_the_page(index):
    asked = {one.key for one in index["ASKED"]}
    assert {script for script, _ in asked} == {path.stem for path in ANALYSES.glob("*.py")} - {"index"}
    assert index["committed_answers"]((ANALYSES / "README.md").read_text()).keys() == asked


def test_answers_are_read_from_the_page_as_they_were_written(index):
    found = {one.key: f"L1H0 scores 0.{i:02d}: at step 1,{i:03d} (--ok: yes)" for i, one in enumerate(index["ASKED"])}
    page = f"# Title\n\n{index['BEGIN']}\n\n{index['block'](found)}\n{index['END']}\n- not: this\n"
    assert index["committed_answers"](page) == found


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ("L1H0 scores 0.63 from step 752 on", None),
        ("L1H0 scores 0.64 from step 760 on", None),
        ("L1H0 scores 0.66 from step 752 on", "0.63 is now 0.66"),
        ("L1H0 scores 0.63 from step 782 on", "752 is now 782"),
        ("L1H1 scores 0.63 from step 752 on", "in words"),
        ("L1H0 scores 0.63", "in words"),
    ],
)
def test_a_number_may_be_off_by_its_tolerance_and_words_not_at_all(index, now, said):
    asked = index["Asked"]("attention_heads", index["INDUCTION"])
    assert index["apart"](asked, "L1H0 scores 0.63 from step 752 on", now) == said


def test_what_was_trained_may_differ_more_and_in_words_but_not_in_what_it_says(index):
    asked = index["Asked"]("attention_heads", index["TEXT"], (), index["WIDE"])
    assert index["apart"](asked, "L3H1: 0.50 after 1,000", "L2H0: 0.58 after 900") is None
    assert index["apart"](asked, "L3H1: 0.50 after 1,000", "L3H1: 0.65 after 1,000") == "0.50 is now 0.65"
    assert index["apart"](asked, "L3H1: 0.50 after 1,000", "L3H1: none") == "in how many numbers it has, 2 and 0"
