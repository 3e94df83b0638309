"""Executed notebooks as pages: prose, code and what came out, without running anything.

Of an output that has several forms an interactive view is taken (a frame that holds its whole page, and can reach nothing
outside), else the picture, else an HTML table, else the text.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

from pages.markdown import fenced, first_sentence, table


def convert(notebook: Path, folder: Path) -> str:
    """The notebook's page, its pictures written to `folder` beside it."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    parts, images = [], 0
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source + "\n")
            continue
        shown = re.sub(r"^%.*\n", "", source, flags=re.MULTILINE)
        if shown.strip():
            parts.append(fenced(shown, "python"))
        for output in cell["outputs"]:
            text, images = _output(output, folder / notebook.stem, images)
            parts.append(text)
    note = f"*This page is `notebooks/{notebook.name}` as it was run; its source is `notebooks/{notebook.stem}.py`.*\n"
    return "\n".join([parts[0], *([] if _titled_alone(parts[0]) else [note]), *parts[1:]]) if parts else ""


def summaries(found: list[Path]) -> str:
    """Each notebook by its title, with the first sentence of its prose."""
    rows = []
    for notebook in found:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        title, _, prose = "".join(cells[0]["source"]).strip().removeprefix("# ").partition("\n")
        rows.append([f"{{doc}}`{title} </generated/notebooks/{notebook.stem}>`", first_sentence(prose)])
    return table(["notebook", ""], rows)


def _titled_alone(first: str) -> bool:
    return not first.lstrip().startswith("# ")


def _output(output: dict[str, Any], stem: Path, n_images: int) -> tuple[str, int]:
    if output["output_type"] == "stream":
        return _printed("".join(output["text"])), n_images
    data = output.get("data", {})
    html = "".join(data.get("text/html", ""))
    if "<iframe srcdoc=" in html:
        return f'````{{raw}} html\n<div class="view">{html.strip()}</div>\n````\n', n_images
    if "image/png" in data:
        path = stem.with_name(f"{stem.name}-{n_images}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode("".join(data["image/png"])))
        return f"```{{image}} {path.name}\n:alt: {_alt(data)}\n:class: output\n```\n", n_images + 1
    if "<table" in html and "<script" not in html:
        return f'````{{raw}} html\n<div class="output">{_only_table(html)}</div>\n````\n', n_images
    return _printed("".join(data.get("text/plain", ""))), n_images


def _printed(text: str) -> str:
    return f":::{{container}} output\n{fenced(text)}:::\n" if text.strip() else ""


def _only_table(html: str) -> str:
    found = re.search(r"<table.*?</table>", html, re.DOTALL)
    assert found is not None
    return re.sub(r"\n\s*\n", "\n", found[0]).replace(' border="1"', "")


def _alt(data: dict[str, Any]) -> str:
    return " ".join("".join(data.get("text/plain", "figure")).split())[:120]
