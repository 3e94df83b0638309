"""report.html: self-contained, the same bytes from the same numbers, and deaf to hostile text, also in a real browser."""

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from interp_gpt2.report.from_json import report_from_json
from interp_gpt2.report.page import render, write_report
from interp_gpt2.report.schema import Report
from interp_gpt2.report.subject import SECTIONS

HOSTILE = "</script><img src=x onerror=alert(1)>"


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


def test_the_page_refers_to_nothing_but_itself_its_numbers_and_its_neurons(report: Report) -> None:
    links = {value for name, value in Reader(render(report)).attributes if name in ("src", "href", "action", "data", "srcset")}
    pages = {f"neurons/{page.label}.html" for page in report.neuron_pages.pages}
    assert links == {"report.json", "#run", *(f"#{name}" for name in SECTIONS), *pages}


def test_every_number_of_a_chart_stands_in_the_table_under_it(report: Report) -> None:
    page = render(report)
    rows = re.findall(
        r"<tr><td>([\d,]+)</td><td>([\d.]+)</td>", page[page.index('id="loss"') : page.index('id="loss_by_position"')]
    )
    curve = report.loss.validation
    assert [(int(step.replace(",", "")), float(loss)) for step, loss in rows] == [
        (step, round(loss, 4)) for step, loss in zip(curve.steps, curve.loss, strict=True)
    ]


def charts_of(page: str, section: str) -> list[str]:
    """The wide charts of a section."""
    part = page[page.index(f'<section id="{section}"') :]
    return re.findall(r'<div class="wide">(<svg.*?</svg>)', part[: part.index("</section>")], re.DOTALL)


def test_panels_lie_on_one_axis_with_the_phase_change_shaded_through_all(report: Report) -> None:
    charts = charts_of(render(report), "development")
    assert len(charts) == len(report.development.panels) + 1
    frames = [re.search(r'data-frame="([\d.e+]+ [\d.e+]+ [\d.e+]+ [\d.e+]+)', chart)[1] for chart in charts]
    assert set(frames) == {"72 664 0 2600"}
    windows = {re.search(r'<rect class="window" x="([\d.]+)"[^>]*width="([\d.]+)"', chart).groups() for chart in charts}
    assert len(windows) == 1


def test_every_number_of_a_panel_stands_in_the_table_under_it(report: Report) -> None:
    page = render(report)
    for panel in report.development.panels:
        part = page[page.index(f'id="panel-{panel.name}"') :]
        rows = re.findall(r"<tr><td>([\d,]+)</td>(.*?)</tr>", part[: part.index("</table>")])
        assert [int(step.replace(",", "")) for step, _ in rows] == report.development.steps
        last = [float(cell) for cell in re.findall(r"<td>(-?[\d.]+)</td>", rows[-1][1])]
        lines = sorted(panel.lines, key=lambda line: line.is_yardstick)
        assert last == pytest.approx([line.values[-1] for line in lines], abs=5e-5)


def test_curves_that_changed_phase_stand_in_the_order_in_which_they_did_and_the_others_with_their_reason(report: Report) -> None:
    page = render(report)
    part = page[page.index('id="panel-changes"') :]
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", part[: part.index("</table>")])
    assert rows == [
        ("Loss: the model", "1,466", "1,430 to 1,499"),
        ("Heads: induction (L1H0)", "1,480", "1,452 to 1,507"),
        ("Heads: previous token (L0H1)", "–", "–"),
    ]
    assert "rise 0.02, 0.2 needed" in part
    assert "2 of 3 curves that were asked did" in Reader(part).text


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


def test_one_step_for_the_whole_page(opened: Watched, report: Report) -> None:
    page = opened.page
    assert opened.text(".stepper output") == "step 2,600"
    page.locator(".stepper button").first.click()
    assert opened.text(".stepper output") == "step 1,600"
    assert page.locator(".lens").get_attribute("data-step") == "1500"  # the nearest that it has
    assert opened.text("[data-heads-step]") == "1,600"
    at = report.head_scores.steps.index(1600)
    shown = page.locator("[data-view=heads] tbody tr").nth(2).locator("td").first.inner_text()
    assert shown == f"{report.head_scores.scores[0].values[2][at]:.3f}"
    assert page.locator(".sample:visible h3").all_inner_texts() == ["Step 2,600"]
    assert set(page.eval_on_selector_all(".cursor", "nodes => nodes.map((node) => node.dataset.x)")) == {"1600"}
    page.get_by_role("button", name="Show every step").click()
    assert page.locator(".sample:visible").count() == 4


def test_a_click_on_a_chart_goes_to_the_nearest_step_that_is_shown(opened: Watched) -> None:
    chart = opened.page.locator("#panel-loss_by_position .wide svg")
    chart.scroll_into_view_if_needed()
    left, right, *_ = map(float, chart.get_attribute("data-frame").split())
    box = chart.bounding_box()
    scale = box["width"] / 860
    chart.click(position={"x": (left + (right - left) * 300 / 2600) * scale, "y": 40})  # linear: the change is late
    assert opened.text(".stepper output") == "step 256"
    assert opened.page.locator(".sample:visible h3").all_inner_texts() == ["Step 64"]


def test_the_keyboard_moves_through_training(opened: Watched) -> None:
    opened.page.locator(".stepper input").focus()
    opened.page.keyboard.press("Home")
    assert opened.text(".stepper output") == "step 0"
    assert opened.page.locator(".lens").get_attribute("data-step") == "0"
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.locator(".lens").get_attribute("data-step") == "256"


def test_heads_are_sorted_by_a_score_at_every_step_and_lead_to_their_pattern(opened: Watched, report: Report) -> None:
    page, names = opened.page, "[data-view=heads] tbody th"
    page.get_by_role("button", name="K-composition").click()
    assert page.locator(names).all_inner_texts()[:2] == ["L1H0", "L1H1"]  # those of the first layer have none
    page.get_by_role("button", name="K-composition").click()
    assert page.locator(names).all_inner_texts()[:2] == ["L1H1", "L1H0"]
    page.get_by_role("button", name="Previous token", exact=True).click()
    assert page.locator(names).first.inner_text() == "L0H1"
    page.locator(".stepper input").focus()
    page.keyboard.press("Home")
    score = report.head_scores.scores[1]
    order = sorted(report.head_scores.heads, key=lambda head: -score.values[report.head_scores.heads.index(head)][0])
    assert page.locator(names).all_inner_texts() == order
    page.locator("[data-view=heads] button[data-head=L1H1]").click()
    assert page.locator(".attention").get_attribute("data-head") == "L1H1"


def test_neurons_are_sorted_and_lead_to_their_pages(opened: Watched) -> None:
    page = opened.page
    page.locator("#neuron_pages").get_by_role("button", name="highest").click()
    links = page.locator("#neuron_pages tbody a")
    assert links.all_inner_texts() == ["L2N137", "L0N3", "L1N200"]
    assert links.first.get_attribute("href") == "neurons/L2N137.html"
    assert page.locator("#neurons h3 a").get_attribute("href") == "neurons/L2N137.html"


def test_on_paper_there_is_every_sample_and_no_control(opened: Watched) -> None:
    opened.page.emulate_media(media="print")
    assert opened.page.locator(".sample:visible").count() == 4
    assert opened.page.locator(".stepper").is_hidden()
    assert opened.page.locator(".scripted:visible").count() == 0


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
