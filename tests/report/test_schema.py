"""report.json: nothing is lost on the way there and back, and what is not a report is refused."""

import json
from dataclasses import replace

import pytest

from interp_gpt2.errors import AnalysisError
from interp_gpt2.report.from_json import report_from_json
from interp_gpt2.report.schema import Report


def test_a_report_comes_back_from_json_as_it_went(report: Report) -> None:
    assert report_from_json(report.to_json()) == report


def test_the_promised_keys_stand_at_the_top(report: Report) -> None:
    found = json.loads(report.to_json())
    assert {"step", "width"} <= found["phase_change"].keys()
    assert found["heads"]["induction"] == {"label": "L1H0", "score": 0.71, "uniform": 0.06}


def test_no_phase_change_is_null(report: Report) -> None:
    text = replace(report, phase_change=None).to_json()
    assert json.loads(text)["phase_change"] is None
    assert report_from_json(text).phase_change is None


def test_a_loss_that_was_not_finite_is_null(report: Report) -> None:
    loss = replace(report.loss, validation=replace(report.loss.validation, loss=[float("nan")] * 59))
    assert json.loads(replace(report, loss=loss).to_json())["loss"]["validation"]["loss"] == [None] * 59


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda found: found.update(format="interp_gpt2 report 0"), "expected 'interp_gpt2 report 2'"),
        (lambda found: found["loss"].update(extra=1), "report.loss.*differ in extra"),
        (lambda found: found["heads"]["induction"].pop("uniform"), r"heads.induction.*differ in uniform"),
    ],
)
def test_another_layout_is_refused_and_the_field_named(report: Report, change, says: str) -> None:
    found = json.loads(report.to_json())
    change(found)
    with pytest.raises(AnalysisError, match=says):
        report_from_json(json.dumps(found))
