"""report.html: one file that needs no network, made from the numbers of report.json and nothing else."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from interp_gpt2.files import written_atomically
from interp_gpt2.report import listings, panel_pictures, pictures, words
from interp_gpt2.report.schema import Report
from interp_gpt2.views.attention import attention_fragment
from interp_gpt2.views.html import document, printable
from interp_gpt2.views.lens import lens_fragment


def render(report: Report) -> str:
    """The whole page as text; the same report gives the same bytes.

    Every string in the report is shown as text, whatever it holds, with characters that hide or reorder others made
    visible. Nothing is computed here but scales and labels: the numbers are those of report.json.
    """
    body = (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            pictures=pictures,
            panels=panel_pictures,
            heads=listings,
            words=words,
            attention=attention_fragment,
            lens=lens_fragment,
        )
    )
    return document(f"{report.run.name}: report", Markup(body))  # safe: the template escapes


def write_report(report: Report, run_dir: str | Path) -> tuple[Path, Path]:
    """Write report.html and report.json into a run's directory and return their paths, in that order: both whole, or neither."""
    html, data = Path(run_dir, "report.html"), Path(run_dir, "report.json")
    for path, text in [(html, render(report)), (data, report.to_json())]:
        with written_atomically(path) as file:
            file.write(text.encode())
    return html, data


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("interp_gpt2.report"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _visible(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
