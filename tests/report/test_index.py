"""The page of a folder of runs says what each learned, and leads to its report."""

import json
import shutil
from pathlib import Path

import pytest

from interp_gpt2 import Run
from interp_gpt2.errors import RunError
from interp_gpt2.report.collect import collect
from interp_gpt2.report.index import entries, index_page, write_index
from interp_gpt2.report.page import write_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, markov_run: Run, text_run: Run) -> Path:
    """A run with a report, one without, and one whose record is damaged."""
    folder = tmp_path_factory.mktemp("runs")
    for name, run in (("b-chains", markov_run), ("a-text", text_run), ("c-broken", text_run)):
        shutil.copytree(run.path, folder / name, ignore=shutil.ignore_patterns("sweeps"))
    write_report(collect(Run(folder / "b-chains"), ("loss", "head_scores"), workers=1), folder / "b-chains")
    (folder / "c-broken" / "run.json").write_text("{")
    return folder


def test_runs_are_listed_with_what_training_logged_and_what_their_report_found(folder: Path, text_run: Run) -> None:
    text, chains, broken = entries(folder)
    assert (text.name, text.report, text.note) == ("a-text", None, "no report yet")
    logged = {row["step"]: row["val_loss"] for row in text_run.metrics() if "val_loss" in row}
    assert dict(zip(text.steps, text.losses, strict=True)) == logged
    assert (text.step, text.n_steps, text.n_checkpoints) == (10, 10, 6)
    assert chains.report.run.name == "b-chains"
    assert broken.problem


def test_a_run_with_a_report_is_a_link_to_it_and_one_that_cannot_be_read_says_why(folder: Path) -> None:
    page = index_page(entries(folder), "runs")
    assert 'href="./b-chains/report.html"' in page
    assert 'href="./a-text/report.html"' not in page
    assert "Cannot be read" in page
    assert page == index_page(entries(folder), "runs")


def test_a_link_leads_to_the_folder_whatever_it_is_called(folder: Path, tmp_path: Path) -> None:
    for name in ("a b#c?d%20", "javascript:alert(1)"):
        shutil.copytree(folder / "b-chains", tmp_path / name)
    page = index_page(entries(tmp_path), "runs")
    assert 'href="./a%20b%23c%3Fd%2520/report.html"' in page
    assert 'href="./javascript%3Aalert%281%29/report.html"' in page


def test_a_report_of_another_layout_is_said_to_be_one(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder / "b-chains", tmp_path / "b-chains")
    (copied / "report.json").write_text(json.dumps({"format": "interp_gpt2 report 1"}))
    (found,) = entries(tmp_path)
    assert found.report is None
    assert "make it again" in found.note


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no runs in"):
        write_index(tmp_path)


def test_the_page_opens_sorts_and_says_hostile_names_as_text(browser, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "runs")
    shutil.copytree(folder / "a-text", tmp_path / "runs" / "d<img src=x onerror=alert(1)>")
    path = write_index(tmp_path / "runs")
    page, wrongs = browser.new_page(), []
    page.on("console", lambda message: wrongs.append(message.text))
    page.on("dialog", lambda dialog: (wrongs.append("dialog"), dialog.dismiss()))
    page.on("request", lambda request: request.url != path.as_uri() and wrongs.append(request.url))
    page.goto(path.as_uri())
    page.get_by_role("button", name="parameters").click()
    assert page.locator("tbody th").first.inner_text() in ("a-text", "d<img src=x onerror=alert(1)>")  # the larger model
    assert page.locator("tbody th").all_inner_texts()[-1] == "b-chains"
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert wrongs == []
    page.close()
