"""Pages that need nothing but themselves: escaping, the security policy, determinism."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

from interp_gpt2.views.html import document, json_script, plain, printable, tag


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


def test_hostile_text_comes_back_as_text_from_element_attribute_and_data(hostile_text: str) -> None:
    page = tag("p", {"title": hostile_text}, hostile_text, json_script({hostile_text: [hostile_text]}))
    read = Reader(str(page))
    assert read.tags == ["p", "script"]
    assert read.attributes == [("title", printable(hostile_text)), ("type", "application/json")]
    data = re.search(r"<script type=\"application/json\">(.*)</script>", str(page), re.DOTALL)
    assert json.loads(data[1]) == {printable(hostile_text): [printable(hostile_text)]}
    assert read.text == printable(hostile_text) + data[1]


def test_hostile_text_in_a_title_adds_no_element_to_the_page(hostile_text: str) -> None:
    ours, harmless = (
        Reader(document(hostile_text, tag("main", {}, hostile_text))),
        Reader(document("title", tag("main", {}, "text"))),
    )
    assert ours.tags == harmless.tags
    assert not [name for name, _ in ours.attributes if name.startswith("on") or name == "style"]


def test_characters_that_hide_or_reorder_text_are_written_out() -> None:
    assert printable("a\u202eb\u200bc\x00\ud800") == "a⟨202e⟩b⟨200b⟩c⟨0⟩⟨d800⟩"
    assert printable("line\n\tindented é 漢") == "line\n\tindented é 漢"


def test_the_policy_allows_exactly_the_style_and_the_script_of_the_page() -> None:
    page = document("t", tag("main", {}, "x"))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for name in ("script", "style"):
        (text,) = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
        assert f"{name}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy


def test_a_page_refers_to_nothing_outside_itself() -> None:
    page = document("t", tag("main", {}, "x"))
    assert not re.search(r"""(src|href)\s*=|@import|url\(|fetch\(|XMLHttpRequest|import\(""", page.replace("srcdoc", ""))


def test_numbers_that_are_not_finite_become_null() -> None:
    assert plain({"a": [1.5, float("nan")], "b": (float("inf"), 2)}) == {"a": [1.5, None], "b": [None, 2]}
