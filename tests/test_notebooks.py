"""A notebook and its source are the same, and its prose says no number that it does not show.

That it runs, in a minute and without a network, and that its outputs are still what comes out, is checked in notebooks/check.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from notebooks.stated import NO_MEASUREMENTS, Number, cells, difference, numbers, output_text, prose, unsupported

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("[0-9]*.py"))

each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def code(text: str, tags: tuple[str, ...] = ()) -> dict:
    outputs = [{"output_type": "stream", "name": "stdout", "text": text}]
    return {"cell_type": "code", "source": "", "metadata": {"tags": list(tags)}, "outputs": outputs}


def said(text: str) -> dict:
    return {"cell_type": "markdown", "source": text}


@each
def test_the_committed_notebook_has_the_cells_of_its_source_and_was_executed(source):
    jupytext = pytest.importorskip("jupytext")
    ours, built = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    assert [(cell.cell_type, cell.source) for cell in built.cells] == [(cell.cell_type, cell.source) for cell in ours.cells]
    assert all(cell.execution_count for cell in built.cells if cell.cell_type == "code")
    assert not [out for cell in built.cells if cell.cell_type == "code" for out in cell.outputs if out.output_type == "error"]


@each
def test_every_number_in_the_prose_stands_in_an_output(source):
    assert not unsupported(source.stem, cells(source.with_suffix(".ipynb")))


@each
def test_a_notebook_is_small_enough_to_be_looked_at(source):
    assert source.with_suffix(".ipynb").stat().st_size < 2_000_000


def test_there_are_notebooks():
    assert len(SOURCES) == 7


@pytest.mark.parametrize("name", [name for name in NO_MEASUREMENTS if name])
def test_what_is_allowed_for_is_said_and_not_shown(name):
    notebook = list(cells(NOTEBOOKS / f"{name}.ipynb"))
    shown = [number for cell in notebook for number in numbers(output_text(cell))]
    for text in NO_MEASUREMENTS[name]:
        number = Number.read(text)
        assert number in numbers(prose(notebook)), text
        assert not any(number.says(other) for other in shown), text


@pytest.mark.parametrize(
    ("prose", "shown", "missing"),
    [
        ("It is 0.86.", "0.8612", []),
        ("It is 0.86.", "0.8662", ["0.86"]),
        ("It is 0.861.", "0.86", ["0.861"]),
        ("It is lower by 0.3, in 86 % of 1,000 texts.", "-0.30 0.86 1000", []),
        ("About 2.", "1.93", ["2"]),
        ("From step 757 on (Olsson et al. 2022), `f(99)`, L0H1 and GPT-2.", "at 757.1", []),
        ("From step 758 on.", "at 757.1", ["758"]),
    ],
)
def test_a_number_is_supported_by_what_rounds_to_it(prose, shown, missing):
    assert unsupported("", [said(prose), code(shown)]) == missing


@pytest.mark.parametrize(
    ("before", "now", "tags", "agree"),
    [
        ("head L0H1: 0.861", "head  L0H1: 0.862", (), True),
        ("head L0H1: 0.861", "head L0H1: 0.88", (), False),
        ("head L0H1: 0.861", "head L1H1: 0.861", (), False),
        ("4 of 18 curves", "5 of 18 curves", (), False),
        ("at step 757", "at step 759", (), True),
        ("apart by 1.9e-06", "apart by 9.5e-07", (), True),
        ("apart by 1.9e-06", "apart by 1.9e-03", (), False),
        ("-0.00 and 2.0", "0.00 and 2.0", (), True),
        ("12.1 times as fast", "10.4 times as fast", (), False),
        ("12.1 times as fast", "10.4 times as fast", ("timing",), True),
        ("12.1 times as fast", "10.4 times as slow", ("timing",), False),
    ],
)
def test_outputs_agree_to_rounding_unless_they_are_times(before, now, tags, agree):
    assert (difference(code(before), code(now, tags)) is None) == agree


@pytest.mark.parametrize("address", ["192.0.2.1", "example.org", "::ffff:192.0.2.1"])
def test_the_guard_lets_a_kernel_reach_its_own_machine_alone(address):
    ask = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()).close()\n"
    ask += "socket.create_connection((sys.argv[1], 9), timeout=1)"
    guarded = {"PYTHONPATH": str(NOTEBOOKS / "offline")}
    ran = subprocess.run([sys.executable, "-c", ask, address], capture_output=True, text=True, env=guarded)
    assert "OSError: a notebook has to run offline" in ran.stderr
