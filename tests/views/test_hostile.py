"""15 texts that try to be more than text, wherever one can stand in every view, page and figure: they stay text."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from interp_gpt2.report.page import write_report
from interp_gpt2.views import View, figures, save_neuron_pages
from interp_gpt2.views.html import printable
from interp_gpt2.views.sheet import drawable
from tests.report.conftest import example_report, with_every_string
from tests.views.conftest import HOSTILE, Watched
from tests.views.examples import every_figure, every_view, histories, labels_of

pytestmark = pytest.mark.slow

HARMLESS = [f"word{i}" for i in range(len(HOSTILE))]
PAGES = [
    "attention", "attention, many heads", "lens", "circuit", "patching", "patching, three axes", "tracing", "sampling", "neuron",
]  # fmt: skip
OTHERS = ["neuron page", "neuron index", "report"]
TITLES = {"hostile": " ".join(HOSTILE), "harmless": " ".join(HARMLESS)}
HANDLES = ".thumb, .token, td[tabindex], .node, .edges .edge, rect, polyline, summary, button, select, input, .chart"


@pytest.fixture(scope="module")
def views() -> dict[str, View]:
    return every_view(HOSTILE, TITLES["hostile"])


@pytest.fixture(scope="module")
def drawings() -> dict[str, Callable[[], Any]]:
    return every_figure(HOSTILE, TITLES["hostile"])


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, dict[str, Path]]:
    """Every page as a file, of hostile and of harmless texts."""
    made: dict[str, dict[str, Path]] = {}
    for kind, texts in (("hostile", HOSTILE), ("harmless", HARMLESS)):
        folder, title = tmp_path_factory.mktemp(kind), TITLES[kind]
        found = {name: view.save(folder / f"{i}.html") for i, (name, view) in enumerate(every_view(texts, title).items())}
        index = save_neuron_pages(histories(), labels_of(texts), folder / "neurons", title, title)
        report = with_every_string(example_report(), lambda text, title=title: text + title)
        (folder / "report").mkdir()
        found |= {"neuron page": index.parent / "L1N5.html", "neuron index": index}
        made[kind] = found | {"report": write_report(report, folder / "report")[0]}
    return made


def elements(watched: Watched) -> Counter[str]:
    return Counter(watched.shown.evaluate("[...document.querySelectorAll('*')].map((node) => node.tagName)"))


def touch(watched: Watched) -> None:
    """Point at, focus, press and choose what there is: the first, the last and a few between of every kind."""
    watched.shown.evaluate(
        """(handles) => {
            const kinds = new Map();
            for (const node of document.querySelectorAll(handles)) {
                const kind = `${node.tagName} ${node.getAttribute('class')}`;
                kinds.set(kind, [...(kinds.get(kind) ?? []), node]);
            }
            for (const nodes of kinds.values()) {
                const stride = Math.max(1, Math.floor(nodes.length / 20));
                for (const node of nodes.filter((_, i) => i % stride === 0)) {
                    for (const type of ['pointerenter', 'mouseenter', 'pointermove']) {
                        const box = node.getBoundingClientRect();
                        node.dispatchEvent(new PointerEvent(type, { bubbles: true, clientX: box.x + 1, clientY: box.y + 1 }));
                    }
                    node.focus?.();
                    if (!node.matches('[data-csv]')) node.dispatchEvent(new MouseEvent('click', { bubbles: true }));
                    if (node.tagName === 'SELECT') node.selectedIndex = node.options.length - 1;
                    if (node.tagName === 'INPUT') node.value = 0;
                    node.dispatchEvent(new Event(node.tagName === 'SELECT' ? 'change' : 'input', { bubbles: true }));
                }
            }
        }""",
        HANDLES,
    )


def hover_and_press(watched: Watched) -> None:
    """The same with a real mouse and keyboard, on one of each."""
    for handle in (".thumb", ".token", "td[tabindex]", ".node"):
        found = watched.shown.locator(handle)
        if found.count():
            found.last.hover()
            found.last.focus()
            for key in ("ArrowLeft", "Enter", "Escape"):
                watched.page.keyboard.press(key)


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name in [*PAGES, *OTHERS] for form in ("light", "dark", "notebook") if form != "notebook" or name in PAGES],
)
def test_hostile_texts_run_nothing_fetch_nothing_and_add_nothing(pages, views, name: str, form: str, watch) -> None:
    watched = watch(views[name]._repr_html_()) if form == "notebook" else watch(pages["hostile"][name], color_scheme=form)
    fresh = elements(watched)
    hover_and_press(watched)
    touch(watched)
    shown = watched.shown.evaluate(
        "document.body.innerText + [...document.querySelectorAll('[aria-label]')].map((node) => node.ariaLabel)"
    )
    missing = [text for text in HOSTILE if printable(text) not in shown]
    assert missing == []
    assert not {"IMG", "IFRAME", "OBJECT", "EMBED", "LINK", "BASE", "FORM"} & set(elements(watched))
    if form == "light":
        assert fresh == elements(watch(pages["harmless"][name]))


def test_every_view_is_driven_here(views) -> None:
    assert list(views) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_hostile_texts_have_tables(views, name: str, tmp_path: Path) -> None:
    assert "alert(1)" in views[name].save(tmp_path / "table.csv").read_text("utf-8") or name == "circuit"


FIGURES = [
    *PAGES, "loss curve", "curves", "head scores", "ladder", "attention pattern", "probe heat map", "patching heat map",
    "tracing heat map", "ablation, a map", "ablation, rows", "steering",
]  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_hostile_texts_are_drawn_as_text(drawings, name: str, tmp_path: Path) -> None:
    """A warning, such as of a missing glyph, is an error in these tests."""
    svg = figures.save(drawings[name](), tmp_path / "figure.svg")[0].read_text("utf-8")
    root = ElementTree.fromstring(svg)
    assert not {node.tag.rpartition("}")[2] for node in root.iter()} & {"script", "image/svg", "iframe", "foreignObject"}
    assert not [key for node in root.iter() for key in node.attrib if key.startswith("on")]
    assert "alert(1)" in "".join(root.itertext())
    assert not re.search("[\u202e\u2066\u2028\x00\ud800]", svg)


def test_every_figure_is_drawn_here(drawings) -> None:
    assert list(drawings) == FIGURES


def test_what_has_no_glyph_or_hides_others_is_spelled_out_and_no_two_texts_meet() -> None:
    assert drawable("a\u202eb\x00\ud800 の é Ж 中") == "a⟨U+202E⟩b⟨U+0000⟩⟨U+D800⟩ ⟨U+306E⟩ é Ж ⟨U+4E2D⟩"
    assert drawable("two\nlines ·↵→…") == "two\nlines ·↵→…"
    assert len({drawable(text) for text in HOSTILE}) == len(HOSTILE)
