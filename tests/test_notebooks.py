"""A notebook and its source are the same; that it runs is checked in notebooks/check.py."""

from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("[0-9]*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_committed_notebook_has_the_cells_of_its_source_and_was_executed(source):
    ours, built = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    assert [(cell.cell_type, cell.source) for cell in built.cells] == [(cell.cell_type, cell.source) for cell in ours.cells]
    assert all(cell.execution_count for cell in built.cells if cell.cell_type == "code")
    assert not [out for cell in built.cells if cell.cell_type == "code" for out in cell.outputs if out.output_type == "error"]


def test_there_are_notebooks():
    assert SOURCES
