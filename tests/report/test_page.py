"""report.html: self-contained, the same bytes from the same numbers, and deaf to hostile text, also in a real browser."""

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from interp_gpt2.report.page import render, write_report
from interp_gpt2.report.schema import Report, report_from_json

HOSTILE = "</script><img src=x onerror=alert(1)>"
SECTIONS = ["loss", "loss_by_position", "head_scores", "attention", "lens", "probes", "neurons", "samples"]


class Reader(HTMLParser):
    """Elements, attributes and text of a page, as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_from_report_json_alone_is_the_same_to_the_byte(report: Report) -> None:
    assert render(report_from_json(report.to_json())) == render(report)


def test_the_page_and_its_numbers_are_written_side_by_side(report: Report, tmp_path: Path) -> None:
    html, data = write_report(report, tmp_path)
    assert (html, data) == (tmp_path / "report.html", tmp_path / "report.json")
    assert html.stat().st_size < 1_500_000
    assert report_from_json(data.read_text(encoding="utf-8")) == report


def test_every_section_has_the_command_that_made_it(report: Report) -> None:
    page = Reader(render(report)).text
    for name in SECTIONS:
        assert getattr(report, name).command in page
    assert report.run.command in page
    assert report.phase_change.command in page


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_that_was_not_computed_is_left_out_and_its_reason_told(report: Report, name: str) -> None:
    page = render(replace(report, **{name: None}, omitted={name: "because of that"}))
    assert f'id="{name}"' not in page
    assert f'href="#{name}"' not in page
    assert "because of that" in Reader(page).text


def test_a_report_of_nothing_but_facts_still_renders(report: Report) -> None:
    nothing = replace(report, phase_change=None, heads={}, **dict.fromkeys(SECTIONS))
    assert "No phase change found." in Reader(render(nothing)).text


def test_hostile_text_adds_no_element_and_no_handler(report: Report, hostile_report: Report) -> None:
    plain, hostile = Reader(render(report)), Reader(render(hostile_report))
    marked = [tag for tag in hostile.tags if tag in ("img", "script", "iframe", "svg", "style")]
    assert marked == [tag for tag in plain.tags if tag in ("img", "script", "iframe", "svg", "style")]
    names = {name for name, _ in hostile.attributes}
    assert not [name for name in names if name.startswith("on") or name == "style"]
    assert hostile.text.count(HOSTILE) > 100


def test_a_page_may_hold_any_character(report: Report) -> None:
    odd = replace(report, run=replace(report.run, name="\ud800\u202e\x00{{ 7 * 7 }}"))
    assert "⟨d800⟩⟨202e⟩⟨0⟩{{ 7 * 7 }}" in render(odd).encode().decode()


def test_the_page_refers_to_nothing_but_itself_and_report_json(report: Report) -> None:
    links = {value for name, value in Reader(render(report)).attributes if name in ("src", "href", "action", "data", "srcset")}
    assert links == {"report.json", "#run", *(f"#{name}" for name in SECTIONS)}


def test_every_number_of_a_chart_stands_in_the_table_under_it(report: Report) -> None:
    page = render(report)
    rows = re.findall(
        r"<tr><td>([\d,]+)</td><td>([\d.]+)</td>", page[page.index('id="loss"') : page.index('id="loss_by_position"')]
    )
    curve = report.loss.validation
    assert [(int(step.replace(",", "")), float(loss)) for step, loss in rows] == [
        (step, round(loss, 4)) for step, loss in zip(curve.steps, curve.loss, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# In a real browser


class Watched:
    """A page that remembers whatever a page should not do."""

    def __init__(self, browser, path: Path, **options) -> None:
        self.wrongs: list[str] = []
        self.page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
        self.page.on("console", lambda message: self.wrongs.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrongs.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.wrongs.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: request.url != path.as_uri() and self.wrongs.append(f"request: {request.url}"))
        self.page.goto(path.as_uri())

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()


@pytest.fixture
def opened(browser, report: Report, tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(browser, write_report(report, tmp_path)[0])
    yield watched
    watched.page.close()
    assert watched.wrongs == []


def test_clicking_a_head_enlarges_it(opened: Watched) -> None:
    pixels = "document.querySelector('.attention .plot canvas').toDataURL()"
    assert opened.text(".attention h4").startswith("L1H0")
    before = opened.page.evaluate(pixels)
    opened.page.locator('.thumb[data-head="L0H1"]').click()
    assert opened.text(".attention h4") == "L0H1previous token 0.43"
    assert opened.page.locator('.thumb[aria-pressed="true"]').get_attribute("data-head") == "L0H1"
    assert opened.page.evaluate(pixels) != before


def test_hovering_a_token_shows_what_it_attends_to(opened: Watched, report: Report) -> None:
    opened.page.locator('.thumb[data-head="L0H1"]').click()
    opened.page.locator('.token[data-position="20"]').hover()
    attention = report.attention.attention
    weight = attention.patterns()[-1, 0, 1, 20, 19]
    assert f"19 ‘{attention.tokens[19]}’ {weight:.2f}" in opened.text(".attention .said")
    assert opened.page.locator(".token.query").get_attribute("data-position") == "20"
    assert opened.page.locator(".token.future").count() == len(attention.tokens) - 21
    assert opened.page.locator(".plot .cross").first.get_attribute("y") == "20"


def test_a_held_token_stays_while_the_mouse_wanders_and_escape_lets_go(opened: Watched) -> None:
    root = opened.page.locator(".attention")
    opened.page.locator('.token[data-position="30"]').click()
    opened.page.locator('.token[data-position="5"]').hover()
    assert (root.get_attribute("data-query"), root.get_attribute("data-other")) == ("30", "5")
    opened.page.keyboard.press("Escape")
    assert root.get_attribute("data-locked") == "false"
    assert root.get_attribute("data-query") == ""


def test_the_keyboard_reaches_heads_and_tokens(opened: Watched) -> None:
    opened.page.locator('.thumb[data-head="L0H0"]').focus()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        opened.page.keyboard.press(key)
    assert opened.page.locator(".attention").get_attribute("data-head") == "L1H1"
    opened.page.locator('.token[data-position="0"]').focus()
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.locator(".attention").get_attribute("data-query") == "1"


def test_a_cell_of_the_enlarged_pattern_names_its_query_and_key(opened: Watched, report: Report) -> None:
    opened.page.locator(".attention .plot").scroll_into_view_if_needed()
    box = opened.page.locator(".attention .plot canvas").bounding_box()
    cell = box["width"] / len(report.attention.attention.tokens)
    opened.page.mouse.move(box["x"] + 3.5 * cell, box["y"] + 10.5 * cell)
    root = opened.page.locator(".attention")
    assert (root.get_attribute("data-query"), root.get_attribute("data-other")) == ("10", "3")


def test_the_lens_changes_with_step_statistic_and_cell(opened: Watched, report: Report) -> None:
    lens = report.lens.lens
    opened.page.locator('.lens td[data-layer="1"][data-position="4"]').hover()
    assert f"probability {lens.probability[-1][1][4]:.3f}, rank {lens.rank[-1][1][4]}" in opened.text(".lens .said")
    top = lens.words[lens.top[-1][1][4][0]]
    assert opened.text('.lens td[data-layer="1"][data-position="4"]') == top
    colour = 'getComputedStyle(document.querySelector(\'.lens td[data-layer="0"][data-position="4"]\')).backgroundColor'
    before = opened.page.evaluate(colour)
    opened.page.locator(".lens select").select_option("entropy")
    assert opened.page.evaluate(colour) != before
    opened.page.locator(".lens input[type=range]").fill("0")
    assert opened.page.locator(".lens").get_attribute("data-step") == "0"
    assert opened.text('.lens td[data-layer="1"][data-position="4"]') == lens.words[lens.top[0][1][4][0]]


def test_a_chart_under_the_mouse_says_the_nearest_number(opened: Watched, report: Report) -> None:
    chart = opened.page.locator("#head_scores .panel svg.chart").first
    chart.scroll_into_view_if_needed()
    place = chart.evaluate("(svg) => { const l = [...svg.querySelectorAll('polyline[data-name=L1H0]')][0];"
                           "const p = l.getAttribute('points').split(' ').at(-1).split(',').map(Number);"
                           "const r = svg.getBoundingClientRect(); const k = r.width / svg.viewBox.baseVal.width;"
                           "return [r.x + p[0] * k, r.y + p[1] * k]; }")  # fmt: skip
    opened.page.mouse.move(*place)
    value = report.head_scores.scores[0].values[2][-1]
    assert opened.text("#head_scores .panel .readout:not([hidden])") == f"L1H0 · step 2,600 · {value:.4g}"


def test_the_step_axis_switches_between_linear_and_logarithmic(opened: Watched) -> None:
    xs = "[...document.querySelector('#loss .wide polyline').getAttribute('points').matchAll(/([\\d.]+),/g)].map((m) => +m[1])"
    linear = opened.page.evaluate(xs)
    opened.page.locator("[data-axis-switch]").click()
    log = opened.page.evaluate(xs)
    assert (linear[0], linear[-1]) == (log[0], log[-1])
    assert log[len(log) // 2] > linear[len(linear) // 2] + 100
    opened.page.locator("[data-axis-switch]").click()
    assert opened.page.evaluate(xs) == pytest.approx(linear, abs=0.11)


def test_the_theme_follows_the_system_and_the_button(browser, report: Report, tmp_path: Path) -> None:
    path = write_report(report, tmp_path)[0]
    background = "getComputedStyle(document.documentElement).backgroundColor"
    light, dark = (Watched(browser, path, color_scheme=scheme) for scheme in ("light", "dark"))
    colours = light.page.evaluate(background), dark.page.evaluate(background)
    assert colours[0] != colours[1]
    light.page.locator("[data-theme-switch]").click()
    assert light.page.evaluate(background) == colours[1]
    assert light.wrongs + dark.wrongs == []


def test_a_table_is_saved_as_csv(opened: Watched) -> None:
    opened.page.locator("#loss summary").click()
    with opened.page.expect_download() as download:
        opened.page.locator("#loss [data-csv]").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert download.value.suggested_filename == "loss.csv"
    assert lines[0] == "step,validation,standard error,training batch (all positions)"
    assert lines[1].startswith("0,2.7700,0.0040,")


def test_hostile_text_runs_nothing_in_a_browser(browser, hostile_report: Report, tmp_path: Path) -> None:
    watched = Watched(browser, write_report(hostile_report, tmp_path)[0])
    page = watched.page
    for selector in (".thumb", ".token", ".lens td", "#loss .wide svg", "#samples pre"):
        page.locator(selector).first.hover()
    page.locator(".thumb").nth(2).click()
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert HOSTILE in watched.text("h1")
    assert HOSTILE in watched.text(".attention .said") + watched.text(".lens .said")
    assert HOSTILE in page.locator("#samples pre").first.inner_text()
    assert watched.wrongs == []


def test_nothing_sticks_out_of_a_narrow_page(browser, report: Report, tmp_path: Path) -> None:
    watched = Watched(browser, write_report(report, tmp_path)[0], viewport={"width": 360, "height": 800})
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert watched.wrongs == []


def test_every_field_of_a_report_is_shown(report: Report) -> None:
    """Each section's own numbers are checked above; here, that no field of the report is forgotten by the template."""
    template = Path(__file__).parents[2].joinpath("interp_gpt2", "report", "templates", "report.html").read_text(encoding="utf-8")
    spoken_of = {"phase_change_note", "heads", "format"}  # by words.py, pictures.py and the file itself
    for field in fields(Report):
        assert field.name in spoken_of or f"report.{field.name}" in template


def test_a_probe_of_one_step_stands_in_a_table_and_not_in_an_empty_chart(report: Report) -> None:
    page = render(report)
    assert "Probes for inside quotes" in page
    assert "Probes for digit" not in page
    digit = report.probes.probes[-1]
    assert f"<tr><td>digit</td><td>2,600</td><td>{digit.majority:.4f}</td>" in page
    assert f"<td>{digit.auroc[-1][-1]:.4f}</td></tr>" in page
