"""The scripts in analyses/ answer on the demo's checkpoints, with their tables and figures."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from interp_gpt2.errors import RunError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Run a script on a copy of the demo with some of its checkpoints; what it said, and where it wrote."""

    def run(name: str, steps: tuple[int, ...], *options: str) -> tuple[str, Path]:
        demo, copy = ROOT / "tests/data/study/demo-induction", tmp_path / "demo-induction"
        copy.mkdir()
        for path in demo.iterdir():
            if path.is_file():
                shutil.copy(path, copy)
            elif path.name in {f"step-{step:08d}" for step in steps}:
                shutil.copytree(path, copy / path.name)
        script = ROOT / f"analyses/{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), str(copy), *options])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out, copy / "analyses"

    return run


def test_the_tuned_lens_is_kept_and_said_to_be_nearer(ask):
    said, out = ask("tuned_lens", (600, 2000), "--train-steps", "40", "--sequences", "8")
    assert "nearer to the output than the logit lens at all 4 layers and checkpoints" in said
    assert len(list((out.parent / "tuned-lens").iterdir())) == 2
    assert (out / "tuned_lens_depth.pdf").exists()
    assert json.loads((out / "tuned_lens.json").read_text())[0]["analysis"] == "tuned_lens"


def test_in_context_learning_is_beside_the_best_possible(ask):
    said, out = ask("in_context_learning", (300, 2000))
    assert "bayes bigram -0.79" in said
    assert "2 checkpoints are too few" in said
    assert "unpredictable: model 2.7" in said
    assert (out / "in_context_learning.csv").exists()


def test_the_demo_goes_from_the_unigram_to_the_bayes_bigram(ask):
    said, _ = ask("ngram_agreement", (0, 600, 2000))
    assert "in-context unigram: nearest at step 600" in said
    assert said.splitlines()[0].startswith("answer: 0.0")
    assert said.splitlines()[0].endswith("Bayes bigram from step 2000")


def test_layers_are_compared_with_what_they_became(ask):
    said, out = ask("representations", (0, 900, 2000), "--sequences", "8")
    assert "L0: CKA with its end 0.1" in said
    assert "moved most from step 0: blocks.1.W_O" in said
    assert json.loads((out / "cka_between_steps.json").read_text())["steps"] == [0, 900, 2000]


def test_the_learning_coefficient_comes_with_its_doubts(ask):
    said, out = ask("llc", (0, 2000), "--chains", "1", "--draws", "4", "--sequences", "16")
    assert "% of draws below the start" in said
    assert "a regular model: 52608" in said
    assert (out / "llc.pdf").exists()


def test_phase_changes_of_the_demo_are_dated(ask):
    steps = (0, 64, 300, 500, 600, 700, 750, 800, 900, 1100, 1500, 2000)
    said, out = ask("phase_changes", steps, "--metric", "in_context_learning")
    assert "2 of 2 curves changed phase" in said
    found = json.loads((out / "phase_changes.json").read_text())
    (curves,) = found.values()
    assert 700 < curves["induction, best head"]["change"]["step"] < 800
    assert (out / "phase_changes.pdf").exists()
    assert "demo-induction: width of" in (out / "phase_changes.csv").read_text()


def test_two_models_differ_with_examples_and_a_figure(ask):
    said, out = ask("model_diff", (700, 2000), "--sequences", "8", "--match")
    assert "moved most: L1H0" in said
    assert "looked at" in said
    assert "4 of 4 stand where they stood" in said
    record = json.loads((out / "model_diff_700_demo-induction_2000.json").read_text())
    assert len(record["examples"]["neurons"]) == 3
    assert set(record["examples"]["heads"]) >= {"L1H0"}
    assert {pair["layer"] for pair in record["matched_heads"]} == {0, 1}
    assert (out / "model_diff_700_demo-induction_2000.pdf").exists()


@pytest.mark.parametrize("name", ["attention_heads", "logit_lens", "ngram_agreement", "representations"])
def test_a_run_of_its_first_checkpoint_alone_is_answered(ask, name):
    said, out = ask(name, (0,), *(["--sequences", "8"] if name != "ngram_agreement" else []))
    assert said.startswith("answer: ")
    assert [path.suffix for path in out.iterdir()].count(".pdf") == 1


SCRIPTS = sorted(path.stem for path in (ROOT / "analyses").glob("*.py") if 'add_argument("run' in path.read_text())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_that_is_not_there_is_named_and_not_made(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "demo-inductoin")])
    with pytest.raises(RunError, match=r"there is no run at .*demo-inductoin"):
        runpy.run_path(str(ROOT / f"analyses/{name}.py"), run_name="__main__")
    assert not list(tmp_path.iterdir())
