"""Execute every notebook from its source and hold the committed one against it.

    pytest notebooks/check.py            # in a fresh kernel, offline; what continuous integration runs
    python notebooks/check.py            # execute and rewrite the .ipynb files
"""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("[0-9]*.py"))


def executed(source: Path) -> nbformat.NotebookNode:
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"  # random ids would differ each time
        cell.metadata.pop("execution", None)  # so would times
        if cell.cell_type == "code":  # and warnings, which name the machine's folders
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_notebook_runs_from_its_source(source):
    executed(source)


if __name__ == "__main__":
    for source in SOURCES:
        nbformat.write(executed(source), source.with_suffix(".ipynb"))
        print("wrote", source.with_suffix(".ipynb"))
