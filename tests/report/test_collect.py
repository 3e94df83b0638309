"""A report shows what was measured on this run, and says so where something could not be."""

import itertools
import json
import math
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from interp_gpt2.analysis.attention_patterns import head_scores
from interp_gpt2.analysis.loss import mean_loss, token_losses
from interp_gpt2.analysis.sequences import HEAD_SEQUENCES, held_out
from interp_gpt2.cli.train import Train
from interp_gpt2.data.source import MarkovSource
from interp_gpt2.data.synthetic import bayes_bigram, held_out_chains, losses_of
from interp_gpt2.errors import CheckpointError, RunError
from interp_gpt2.report.collect import collect
from interp_gpt2.report.facts import train_words
from interp_gpt2.report.from_json import report_from_json
from interp_gpt2.report.inputs import spread_steps, training_config
from interp_gpt2.report.page import render, write_report
from interp_gpt2.report.schema import Report
from interp_gpt2.report.subject import SECTIONS
from interp_gpt2.runs.run import Run
from interp_gpt2.training.config import RECIPES, load_recipe


@pytest.fixture(scope="module")
def text_report(text_run: Run) -> Report:
    return collect(text_run, workers=1)


@pytest.fixture(scope="module")
def markov_report(markov_run: Run) -> Report:
    return collect(markov_run, workers=1)


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.path, folder / run.name)
    return Run(folder / run.name)


def test_a_text_run_has_every_section(text_report, text_run):
    assert text_report.omitted == {}
    assert all(getattr(text_report, section) is not None for section in SECTIONS)
    assert text_report.run.checkpoints == text_run.steps == [0, 1, 2, 4, 8, 10]
    assert text_report.data.unit == "character"


def test_a_report_is_a_page_and_the_numbers_of_the_page(text_report, tmp_path):
    html, data = write_report(text_report, tmp_path)
    assert html.read_text("utf-8") == render(report_from_json(data.read_text("utf-8")))
    shown = json.loads(data.read_text("utf-8"))
    assert shown["phase_change"] is None
    assert set(shown["heads"]) == {"induction", "previous_token", "duplicate_token", "first_token"}
    assert html.stat().st_size < 2e6


def test_the_last_loss_is_measured_again_and_is_what_training_logged(text_report, text_run):
    curve = text_report.loss.validation
    logged = {row["step"]: row["val_loss"] for row in text_run.metrics() if "val_loss" in row}
    assert curve.steps == sorted(logged)
    assert curve.loss[:-1] == [logged[step] for step in curve.steps[:-1]]
    assert curve.loss[-1] == pytest.approx(logged[10], abs=1e-5)  # means of the same losses, summed in another order
    assert curve.stderr[-1] > 0
    assert [reference.name for reference in text_report.loss.references] == ["unigram", "bigram", "trigram"]


def test_a_markov_model_and_its_references_are_measured_on_the_same_positions(markov_report, markov_run):
    chains = held_out_chains(16)
    losses = token_losses(markov_run.model(), chains)
    expected = mean_loss(losses, range(8, 16))
    assert markov_report.loss.validation.loss[-1] == pytest.approx(expected.loss, rel=1e-12)
    assert markov_report.loss.validation.stderr[-1] == pytest.approx(expected.stderr, rel=1e-9)
    assert "positions 8 to 15 of all 4,096 held-out sequences" in markov_report.loss.measured_on
    exact = MarkovSource().references(16)
    assert [(r.name, r.loss, r.stderr) for r in markov_report.loss.references] == [(r.name, r.loss, r.stderr) for r in exact]


def test_losses_by_position_and_their_references_are_of_the_same_sequences(markov_report, markov_run):
    section = markov_report.loss_by_position
    chains = held_out(markov_run.source(), 16, 1024).tokens
    assert section.measured_on == "1,024 held-out sequences of markov, evenly spaced"
    assert section.loss[-1] == pytest.approx(token_losses(markov_run.model(), chains).mean(0).tolist())
    assert section.references[0].loss == pytest.approx(losses_of(bayes_bigram(chains), chains).mean(0).tolist())


def test_sections_that_make_no_sense_for_the_data_say_so(markov_report):
    assert set(markov_report.omitted) == {"probes", "neurons"}
    assert "markov is no text" in markov_report.omitted["probes"]
    assert markov_report.data.unit == "state"


def test_heads_are_the_highest_at_the_last_checkpoint(markov_report, markov_run):
    sequences = held_out(MarkovSource(), 16, HEAD_SEQUENCES)
    scores = head_scores(markov_run.model(), sequences.inputs)
    for name, finding in markov_report.heads.items():
        label, value = scores[name].best
        assert finding.label == label
        assert (finding.score, finding.uniform) == pytest.approx((value, scores[name].uniform))
    section = markov_report.head_scores
    assert section.heads == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert all(len(values) == len(section.steps) == 10 for score in section.scores for values in score.values)


def test_no_phase_change_is_null_with_the_reason(markov_report, text_report):
    assert markov_report.phase_change is None
    assert "10 checkpoints" in markov_report.phase_change_note
    assert text_report.phase_change is None
    assert "at least 8 are needed" in text_report.phase_change_note


def test_a_run_whose_data_is_gone_is_told_as_such(text_run, tmp_path):
    run = copied(text_run, tmp_path)
    settings = json.loads((run.path / "run.json").read_text())
    settings["config"]["data"] = str(tmp_path / "gone.txt")
    (run.path / "run.json").write_text(json.dumps(settings))
    report = collect(run, workers=1)
    assert set(report.omitted) == {"loss_by_position", "probes", "neurons", "neuron_pages"}
    assert {panel.name for panel in report.development.panels} == {
        "head_scores",
        "head_composition",
        "head_copying",
        "weight_distance",
    }
    assert "gone.txt" in report.development.skipped["loss_by_position"]
    assert all("gone.txt" in reason for reason in report.omitted.values())
    assert report.loss.references == []
    assert "not measured again" in report.loss.measured_on
    assert "random tokens repeated" in report.head_scores.measured_on
    assert render(report)


def test_a_run_of_one_checkpoint_has_a_report(text_run, tmp_path):
    run = copied(text_run, tmp_path)
    for step in run.steps[1:]:
        shutil.rmtree(run.checkpoint(step))
    report = collect(run, workers=1)
    assert report.omitted == {}
    assert report.lens.lens.steps == [0]
    assert report.phase_change is None
    assert render(report)


def test_a_damaged_checkpoint_is_an_error_and_not_a_gap(markov_run, tmp_path):
    run = copied(markov_run, tmp_path)
    weights = run.checkpoint(3) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"step-00000003/model\.safetensors is truncated"):
        collect(run, workers=1)


def test_only_what_is_asked_for_is_computed(markov_run, tmp_path):
    run = copied(markov_run, tmp_path)
    shutil.rmtree(run.path / "sweeps", ignore_errors=True)
    report = collect(run, ("lens",), workers=1)
    assert report.lens is not None
    assert report.omitted == {section: "not asked for" for section in SECTIONS if section != "lens"}
    assert not (run.path / "sweeps").exists()


def test_every_figure_names_the_command_that_makes_it(text_report, text_run):
    for section in SECTIONS:
        words = shlex.split(getattr(text_report, section).command)
        assert words[0] == "interp-gpt2"
        assert words[2] == str(text_run.path)


def test_the_training_command_trains_the_same_again(text_report, text_run, tmp_path):
    repeated = shlex.split(text_report.run.command)
    assert repeated == ["interp-gpt2", "train", str(text_run.path), "--out", f"{text_run.path}-again"]
    assert Train(recipe=str(text_run.path), out=tmp_path / "again").config() == training_config(text_run)
    for recipe in RECIPES:
        config = replace(load_recipe(recipe), seed=3)
        words = train_words(config, Path("x"))
        assert words[2:] == ["--seed", 3, "--out", Path("x")]
        assert Train(recipe=words[1], seed=3).config() == config


def test_a_run_without_checkpoints_is_refused(markov_run, tmp_path):
    run = copied(markov_run, tmp_path)
    for step in run.steps:
        shutil.rmtree(run.checkpoint(step))
    with pytest.raises(RunError, match="no checkpoints yet"):
        collect(run)


def test_chosen_steps_include_both_ends_and_are_dense_early():
    steps = list(range(0, 2001, 50))
    chosen = spread_steps(steps, 6)
    assert chosen[0] == 0
    assert chosen[-1] == 2000
    assert len(chosen) <= 6
    assert set(chosen) <= set(steps)
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert gaps == sorted(gaps)
    assert spread_steps([0, 7], 6) == [0, 7]


def test_held_out_sequences_are_spread_over_the_whole_split(text_run):
    source = text_run.source()
    everything = held_out(source, 32)
    some = held_out(source, 32, 5)
    rows = [everything.tokens.tolist().index(row) for row in some.tokens.tolist()]
    n = len(everything.tokens)
    assert rows[0] == 0
    assert all(math.isclose(b - a, n / 5, abs_tol=1) for a, b in itertools.pairwise(rows))
