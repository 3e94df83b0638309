"""Execute every notebook from its source and hold the committed one against it.

    pytest notebooks/check.py            # in a fresh kernel, offline; what continuous integration runs
    python notebooks/check.py [04 07]    # execute and rewrite the .ipynb files (those whose names begin so)

A notebook runs within a minute on two cores, without a network, and puts out the numbers that are committed, as `stated`
compares them. It runs beside a copy of the checkpoints without the rows that earlier sweeps stored, so that all are computed.
"""

import os
import shutil
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from stated import cells, difference

HERE = Path(__file__).parent
STUDY = Path("tests", "data", "study")
SOURCES = sorted(HERE.glob("[0-9]*.py"))
MOST_SECONDS = 60
OFFLINE = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE / "offline")}  # whose sitecustomize.py guards the sockets
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # models so small gain nothing from two, and lose much beside other work

each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


@cache
def room() -> tempfile.TemporaryDirectory:
    """A folder with what the notebooks read, laid out as the repository is; it goes when the process does."""
    folder = tempfile.TemporaryDirectory()
    shutil.copytree(HERE.parent / STUDY, folder.name / STUDY, ignore=shutil.ignore_patterns("sweeps", "analyses"))
    (Path(folder.name) / HERE.name).mkdir()
    return folder


def execute(notebook: nbformat.NotebookNode) -> float:
    """Run it in a fresh kernel, its outputs in place; how many seconds it took. Raises CellExecutionError."""
    began = time.monotonic()
    where = {"metadata": {"path": str(Path(room().name) / HERE.name)}}
    client = NotebookClient(notebook, timeout=4 * MOST_SECONDS, kernel_name="python3", resources=where)
    client.execute(env={**os.environ, **OFFLINE, **ONE_THREAD})
    return time.monotonic() - began


@cache
def executed(source: Path) -> tuple[nbformat.NotebookNode, float]:
    """The notebook of a source, as it comes out now, and the seconds that took."""
    notebook = jupytext.read(source)
    seconds = execute(notebook)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"  # random ids would differ each time
        cell.metadata.pop("execution", None)  # so would times
        if cell.cell_type == "code":  # and warnings, which name the machine's folders
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook, seconds


@each
def test_the_notebook_runs_from_its_source_within_a_minute(source):
    _, seconds = executed(source)
    assert seconds <= MOST_SECONDS, f"{seconds:.0f} s"


@each
def test_the_committed_numbers_are_those_that_come_out(source):
    fresh, _ = executed(source)
    committed = list(cells(source.with_suffix(".ipynb")))
    assert len(committed) == len(fresh.cells)
    found = {index: difference(*pair) for index, pair in enumerate(zip(committed, fresh.cells, strict=True))}
    stale = [f"cell {index}: {said}" for index, said in found.items() if said]
    assert not stale, "\n".join([*stale, "python notebooks/check.py rewrites it"])


def test_a_notebook_cannot_reach_the_network():
    asks = nbformat.v4.new_code_cell("import urllib.request; urllib.request.urlopen('http://example.org')")
    with pytest.raises(CellExecutionError, match="has to run offline"):
        execute(nbformat.v4.new_notebook(cells=[asks]))


if __name__ == "__main__":
    chosen = [source for source in SOURCES if source.name.startswith(tuple(sys.argv[1:] or [""]))]
    for source in chosen:
        notebook, seconds = executed(source)
        target = source.with_suffix(".ipynb")
        nbformat.write(notebook, target)
        print(f"wrote {target.name}, {target.stat().st_size / 1e6:.2f} MB, in {seconds:.1f} s")
