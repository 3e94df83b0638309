"""The verdict claims what was measured and no more."""

from dataclasses import replace

import pytest

from interp_gpt2.report.schema import HeadFinding, Report
from interp_gpt2.report.words import change_sentence, fact, loss_sentence, verdict


def test_a_phase_change_is_told_with_its_heads_and_their_yardsticks(report: Report) -> None:
    assert verdict(report) == (
        "Changed phase at step 1,480 (95 %: 1,452 to 1,507; width 210): L1H0 became an induction head "
        "(0.71; a uniform head scores 0.06). "
        "The strongest previous-token head is L0H1 (0.43; a uniform head scores 0.05), in a layer below it."
    )


def test_without_a_phase_change_the_reason_is_told(report: Report) -> None:
    found = replace(report, phase_change=None, phase_change_note="rise 0.05, 0.2 needed")
    assert verdict(found) == (
        "No phase change found. The highest induction score is that of L1H0 (0.71; a uniform head scores 0.06)."
    )
    assert change_sentence(found) == "Phase change: none; rise 0.05, 0.2 needed."
    assert verdict(replace(found, heads={})) == "No phase change found."
    assert change_sentence(report) == ""


def test_a_head_hardly_above_uniform_did_not_become_anything(report: Report) -> None:
    weak = replace(report, heads={"induction": HeadFinding("L1H0", 0.2, 0.06)})
    assert "became" not in verdict(weak)
    assert "L1H0 has the highest induction score at the end (0.20; a uniform head scores 0.06)" in verdict(weak)


def test_a_head_that_was_there_before_the_change_did_not_become_by_it(report: Report) -> None:
    first, *others = report.head_scores.scores
    always = replace(first, values=[[0.7] * len(row) for row in first.values])
    early = replace(report, head_scores=replace(report.head_scores, scores=[always, *others]))
    assert "L1H0 has the highest induction score at the end" in verdict(early)


def test_of_few_checkpoints_nothing_is_said_to_be_absent(report: Report) -> None:
    few = replace(report, phase_change=None, heads={}, run=replace(report.run, checkpoints=[0, 2600]))
    assert verdict(few) == "Whether it changed phase cannot be told."


@pytest.mark.parametrize("label", ["L1H1", "L3H0", "L10H0"])
def test_a_previous_token_head_is_below_only_if_its_layer_is(report: Report, label: str) -> None:
    heads = {**report.heads, "previous_token": HeadFinding(label, 0.4, 0.05)}
    assert "below" not in verdict(replace(report, heads=heads))


def test_the_loss_is_set_beside_the_lowest_reference(report: Report) -> None:
    assert "0.024 above the lowest reference, exact Bayes bigram (1.776 ± 0.004)" in loss_sentence(report)
    better = replace(report.loss, validation=replace(report.loss.validation, loss=[1.5] * 59))
    assert "0.276 below the lowest reference" in loss_sentence(replace(report, loss=better))
    assert loss_sentence(replace(report, loss=None)) == ""


def test_settings_are_written_as_a_reader_would() -> None:
    values = (10_649_600, 3e-3, True, None, "cosine", [0.9, 0.98], 1e-5)
    assert [fact(value) for value in values] == ["10,649,600", "0.003", "yes", "–", "cosine", "[0.9, 0.98]", "1e-05"]


def test_what_was_not_looked_for_is_not_said_to_be_absent(report):
    unasked = replace(report, phase_change=None, heads={}, omitted={**report.omitted, "head_scores": "not asked for"})
    assert verdict(unasked) == "A phase change was not looked for: head scores were not computed."
