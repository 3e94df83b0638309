"""The report's long tables: every head at a step, every neuron that has a page. A button in each head sorts by its column."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from interp_gpt2.report.neuron_pages import FOLDER
from interp_gpt2.report.schema import HeadScores, NeuronPages, Report
from interp_gpt2.views.html import json_script, tag
from interp_gpt2.views.neuron_charts import number, share


def head_listing(section: HeadScores) -> Markup:
    """A row for each head with its scores at the last step; the yardsticks below. The script moves it through training."""
    last = len(section.steps) - 1
    rows = []
    for i, head in enumerate(section.heads):
        name = tag("th", {"scope": "row", "data-value": i}, tag("button", {"type": "button", "data-head": head}, head))
        rows.append(tag("tr", {}, name, *(_score(score.values[i][last]) for score in section.scores)))
    beside = [tag("th", {"scope": "row"}, "yardstick")]
    beside += [tag("td", {"title": score.yardstick}, f"{score.uniform:.3f}") for score in section.scores]
    values = [[[_rounded(value) for value in of_head] for of_head in score.values] for score in section.scores]
    at_each = [score.beside or [score.uniform] * len(section.steps) for score in section.scores]
    data = json_script({"steps": section.steps, "values": values, "beside": at_each})
    table = _table(["head", *(score.title for score in section.scores)], rows, tag("tfoot", {}, tag("tr", {}, *beside)))
    return tag("div", {"class": "scroll listing", "data-view": "heads", "tabindex": "0"}, table, data)


def neuron_listing(section: NeuronPages) -> Markup:
    """A row for each neuron, its name a link to its page."""
    rows = []
    for i, page in enumerate(section.pages):
        link = tag("a", {"href": f"{FOLDER}/{page.label}.html"}, page.label)
        words = [_words(page.promotes), _words(page.suppresses)]
        numbers = [
            tag("td", {"data-value": float(value)}, text)
            for value, text in (
                (page.fires, share(page.fires)),
                (page.highest, number(page.highest)),
                (page.kurtosis, number(page.kurtosis)),
            )
        ]
        rows.append(tag("tr", {}, tag("th", {"scope": "row", "data-value": i}, link), *numbers, *words))
    unsorted = [tag("th", {"scope": "col", "class": "words"}, name) for name in ("promotes", "suppresses")]
    table = _table(["neuron", "fires", "highest", "kurtosis"], rows, "", unsorted)
    return tag("div", {"class": "scroll listing", "tabindex": "0"}, table)


def neuron_link(label: str, report: Report) -> Markup | str:
    """A neuron's name, as a link if it has a page."""
    known = {page.label for page in report.neuron_pages.pages} if report.neuron_pages else set()
    return tag("a", {"href": f"{FOLDER}/{label}.html"}, label) if label in known else label


def _table(names: Sequence[str], rows: Sequence[Markup], foot: Markup | str = "", unsorted: Sequence[Markup] = ()) -> Markup:
    head = [tag("th", {"scope": "col"}, tag("button", {"type": "button", "data-sort": ""}, name)) for name in names]
    return tag(
        "table",
        {"class": "numbers sortable"},
        tag("thead", {}, tag("tr", {}, *head, *unsorted)),
        tag("tbody", {}, *rows),
        foot,
    )


def _words(tokens: Sequence[str]) -> Markup:
    return tag("td", {"class": "words"}, *(tag("span", {}, token) for token in tokens))


def _score(value: float | None) -> Markup:
    return tag("td", {"data-value": None if value is None else float(value)}, "–" if value is None else f"{value:.3f}")


def _rounded(value: float | None) -> Any:
    return None if value is None else round(value, 6)  # fewer would be rounded twice, here and by the script
