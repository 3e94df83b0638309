"""The panels of a report are the analyses' own numbers, on one set of steps; what a run cannot have is named."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from interp_gpt2 import Run
from interp_gpt2.analysis.attention_patterns import head_scores
from interp_gpt2.analysis.development import MIN_RISE
from interp_gpt2.analysis.loss import token_losses
from interp_gpt2.analysis.phase_changes import detect
from interp_gpt2.analysis.sequences import HEAD_SEQUENCES, held_out
from interp_gpt2.errors import AnalysisError, CheckpointError
from interp_gpt2.report import panels
from interp_gpt2.report.collect import collect, collect_from
from interp_gpt2.report.development import KINDS, SLOW, collect_development
from interp_gpt2.report.page import render
from interp_gpt2.report.schema import Development
from interp_gpt2.report.subject import Subject

pytestmark = pytest.mark.slow

STUDY = Path(__file__).parents[1] / "data" / "study"


@pytest.fixture(scope="module")
def of_text(text_run: Run) -> Development:
    return collect_development(Subject(text_run, workers=1))


def panel(section: Development, name: str) -> dict[str, list[float | None]]:
    (found,) = [one for one in section.panels if one.name == name]
    return {line.label: line.values for line in found.lines}


def test_a_text_run_has_every_panel_but_those_that_take_long_or_its_context_is_too_short_for(of_text: Development) -> None:
    made = {one.name for one in of_text.panels}
    assert set(of_text.skipped) == set(KINDS) - made == {*SLOW, "in_context_learning"}
    assert "--also tuned_lens" in of_text.skipped["tuned_lens"]
    assert all(len(line.values) == len(of_text.steps) for one in of_text.panels for line in one.lines)


def test_the_loss_is_the_mean_over_held_out_tokens_beside_what_ngrams_lose(of_text: Development, text_run: Run) -> None:
    tokens = held_out(text_run.source(), 32, 64).tokens
    by_hand = [float(token_losses(text_run.model(step), tokens).mean()) for step in text_run.steps]
    curves = panel(of_text, "loss_by_position")
    assert curves.pop("the model") == pytest.approx(by_hand)
    assert {"unigram", "bigram", "trigram"} <= set(curves)


def test_heads_are_the_highest_less_the_uniform_head(of_text: Development, text_run: Run) -> None:
    inputs = held_out(text_run.source(), 32, HEAD_SEQUENCES).inputs
    scores = [head_scores(text_run.model(step), inputs)["induction"] for step in text_run.steps]
    assert panel(of_text, "head_scores")["induction"] == pytest.approx([score.best[1] - score.uniform for score in scores])
    (measures,) = [one.measures for one in of_text.panels if one.name == "head_scores"]
    assert f"{scores[-1].best[0]} (induction)" in measures


def test_weights_have_not_moved_at_the_first_step_and_streams_are_what_they_end_as_at_the_last(of_text: Development) -> None:
    distances = panel(of_text, "weight_distance")
    assert distances.pop("unrelated")[0] == pytest.approx(2**0.5)
    assert all(values[0] == 0 and values[-1] > 0 for values in distances.values())
    likeness = panel(of_text, "similarity_to")
    assert abs(likeness.pop("shuffled")[-1]) < 0.2
    assert all(values[-1] == pytest.approx(1) for values in likeness.values())


def test_the_demo_changes_phase_and_its_control_does_not(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path))
    found = {}
    for name in ("demo-induction", "demo-induction-one-layer"):
        report = collect(Run(STUDY / name), ("development",), workers=1)
        section = report.development
        found[name] = {(one.panel, one.curve): one.step for one in section.changes}
        assert render(report)
        curves = panel(section, "head_scores")
        detected = detect(section.steps, curves["induction"], least_rise=MIN_RISE)
        assert found[name]["Heads", "induction"] == (detected.change and detected.change.step)
    demo, control = found.values()
    assert demo["Heads", "induction"] == pytest.approx(752, abs=25)
    assert demo["In-context learning", "the model"] == pytest.approx(demo["Heads", "induction"], abs=100)
    assert set(control.values()) == {None}


def test_a_slow_panel_is_made_when_asked_for_with_gaps_where_it_was_not_measured(text_run: Run, monkeypatch) -> None:
    monkeypatch.setattr("interp_gpt2.report.development.SLOW_STEPS", 3)
    section = collect_from(Subject(text_run, 1, ("development",), also=("learning_coefficient",))).development
    values = panel(section, "learning_coefficient")["LLC"]
    assert len(section.steps) == 6
    assert sum(value is not None for value in values) <= 3


def test_a_checkpoint_that_cannot_be_read_is_an_error(text_run: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(text_run.path, tmp_path / "copy", ignore=shutil.ignore_patterns("sweeps")))
    weights = run.checkpoint(4) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="step-00000004"):
        collect_development(Subject(run, workers=1))


def test_an_analysis_that_refuses_is_skipped_with_its_reason(text_run: Run, monkeypatch) -> None:
    def refuses(_: Subject) -> None:
        raise AnalysisError("not with these weights")

    monkeypatch.setitem(KINDS, "head_copying", replace(KINDS["head_copying"], analysis=refuses))
    section = collect_development(Subject(text_run, workers=1))
    assert section.skipped["head_copying"] == "not with these weights"
    assert "head_copying" not in {one.name for one in section.panels}


def test_a_curve_has_a_gap_where_it_was_not_measured_and_none_without_a_value_is_drawn() -> None:
    rows = pd.DataFrame({"step": [2, 1], "metric": "x", "value": [0.5, 0.25], "low": [0.4, None], "high": [0.6, None]})
    found = panels.Measured(rows, [1, 2, 3])
    line = found.line(rows, "x")
    assert (line.values, line.low, line.high) == ([0.25, 0.5, None], [None, 0.4, None], [None, 0.6, None])
    twice = found.line(pd.concat([rows, rows.assign(value=1.0)]), "mean")
    assert (twice.values, twice.low) == ([0.625, 0.75, None], None)
    with pytest.raises(AnalysisError, match="x has no value at any step"):
        found.line(rows.assign(value=None), "x")


def test_models_that_others_trained_have_a_report_on_a_given_text(text_run: Run, text_file, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("INTERP_GPT2_CACHE", str(tmp_path))
    foreign = Run.from_directories([text_run.checkpoint(step) for step in text_run.steps], text_run.steps, name="theirs")
    blind = collect(foreign, workers=1)
    assert blind.run.training == {}
    assert "was not trained here" in blind.omitted["loss"]
    assert {one.name for one in blind.development.panels} >= {"head_scores", "head_composition", "weight_distance"}
    assert "trained elsewhere" in render(blind)
    seeing = collect_from(Subject(foreign, 1, data=str(text_file)))
    assert set(seeing.omitted) == set()
    own = collect(text_run, ("loss",), workers=1)
    assert seeing.loss.validation.loss == pytest.approx(own.loss.validation.loss[-1:])  # the same text, the same split
