"""`interp-gpt2 neurons`: the pages of the neurons asked for, and one line for what cannot be asked."""

from pathlib import Path

import pytest

from interp_gpt2 import cli
from interp_gpt2.analysis.neuron_activity import strongest_writers
from interp_gpt2.analysis.neuron_history import neuron_histories
from interp_gpt2.analysis.sequences import held_out
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.views.neuron_charts import number, share


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def printed(capsys, *words: object) -> list[str]:
    assert cli.main(["neurons", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_it_prints_and_writes_the_neurons_that_move_the_stream_most(capsys, markov_run):
    lines = printed(capsys, markov_run.path, "--count", 3, "--sequences", 8)
    windows = Windows.of(held_out(markov_run.source(), 16, 8).inputs)
    neurons = strongest_writers(markov_run.model(), windows, 3)
    assert [line.split()[0] for line in lines[3:9]] == [f"L{layer}N{neuron}" for layer, neuron in neurons]
    assert lines[0] == "chains, step 9, on 8 held-out sequences of markov, evenly spaced"
    assert lines[-1] == "wrote neurons/index.html"
    assert {path.name for path in Path("neurons").iterdir()} == {"index.html", *(f"L{layer}N{n}.html" for layer, n in neurons)}
    (history,) = neuron_histories(markov_run.model, [9], windows, neurons[:1])
    assert share(history.last.frequency) in lines[3]
    assert number(history.last.highest) in lines[3]


def test_one_neuron_up_to_a_step(capsys, markov_run):
    lines = printed(capsys, markov_run.path, "--layer", 1, "--neuron", 5, "--step", 4, "--sequences", 8, "--out", "one")
    assert lines[0].startswith("chains, step 4, ")
    assert sorted(path.name for path in Path("one").iterdir()) == ["L1N5.html", "index.html"]
    page = Path("one/L1N5.html").read_text("utf-8")
    assert '<th scope="row">4</th>' in page
    assert '<th scope="row">5</th>' not in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--neuron", 3], "--neuron needs --layer"),
        (["--layer", 2], "there is no layer 2; the model has 2, from 0"),
        (["--layer", 1, "--neuron", 64], "there is no neuron 64 in layer 1: the model has 2 layers of 64 neurons"),
        (["--count", 0], "must be at least 1"),
        (["--step", 99], "no checkpoint at step 99"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(capsys, markov_run, words, said):
    assert cli.main(["neurons", str(markov_run.path), *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not Path("neurons").exists()
