"""Every view is a page, a still picture, a table and files of each, with the same numbers in all of them."""

import io
from html.parser import HTMLParser

import numpy as np
import pandas
import pytest
from PIL import Image

from interp_gpt2.errors import AnalysisError
from interp_gpt2.views import View, attention_view
from tests.views.examples import draw, every_view, histories, patterns

pytestmark = pytest.mark.slow

NAMES = [
    "attention", "attention, many heads", "lens", "circuit", "patching", "patching, three axes", "tracing", "sampling", "neuron",
]  # fmt: skip
each = pytest.mark.parametrize("name", NAMES)


TEXTS = ["the", "·cat", "·sat", "·Washington", ",", "·on", "↵", "·1", "9"]


@pytest.fixture(scope="module")
def views() -> dict[str, View]:
    return every_view(TEXTS, "Title")


@pytest.fixture(scope="module")
def again() -> dict[str, View]:
    return every_view(TEXTS, "Title")


def test_every_view_is_looked_at_here(views: dict[str, View]) -> None:
    assert list(views) == NAMES


class Outer(HTMLParser):
    """The elements of a notebook's output, with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str | None]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] = dict(attrs)


@each
def test_a_notebook_is_given_a_page_in_a_frame_over_a_still_picture_and_the_picture_by_itself(views, name, tmp_path) -> None:
    from IPython.core.formatters import DisplayFormatter

    bundle, _ = DisplayFormatter().format(views[name])
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    outer = Outer(bundle["text/html"]).found
    assert list(outer) == ["div", "img", "iframe"]
    assert outer["iframe"]["srcdoc"] == views[name].save(tmp_path / "view.html").read_text("utf-8")
    assert "allow-same-origin" not in outer["iframe"]["sandbox"]
    picture = Image.open(io.BytesIO(bundle["image/png"]))
    assert 300 < picture.width <= 800
    assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
    assert len(bundle["image/png"]) * 2 * 4 / 3 < 150_000  # what a notebook grows by, beside the page


def test_a_front_end_that_takes_frames_and_styles_out_shows_the_still_picture(views, watch) -> None:
    html = views["lens"]._repr_html_()
    start, end = html.index("<iframe"), html.index("</iframe>") + len("</iframe>")
    stripped = (html[:start] + html[end:]).replace(' style="', ' data-was="')
    page = watch(stripped).page
    assert page.locator("img").evaluate("img => img.complete && img.naturalWidth > 300")
    assert page.locator("img").bounding_box()["width"] > 300


@each
def test_the_same_view_gives_the_same_bytes(views, again, name) -> None:
    assert again[name]._repr_html_() == views[name]._repr_html_()


@each
def test_a_view_is_written_as_its_suffix_says(views, name, tmp_path) -> None:
    view = views[name]
    for suffix, begins in ((".html", b"<!DOCTYPE html>"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".png", b"\x89PNG")):
        assert view.save(tmp_path / f"view{suffix}").read_bytes().startswith(begins)
    read = pandas.read_csv(view.save(tmp_path / "view.csv"), keep_default_na=False)
    assert list(read) == list(view.data)
    assert len(read) == len(view.data) > 0


def test_another_suffix_is_refused_with_those_there_are(views, tmp_path) -> None:
    for path, says in ((tmp_path / "view.jpg", r"as \.jpg; name one of .*'.html'"), (tmp_path / "view", "without a suffix")):
        with pytest.raises(AnalysisError, match=says):
            views["lens"].save(path)
    assert list(tmp_path.iterdir()) == []


def test_a_table_holds_what_utf_8_cannot(tmp_path) -> None:
    path = attention_view(["a", "\ud800"], patterns(1, 1, n=2)).save(tmp_path / "odd.csv")
    assert "\\ud800" in path.read_text("utf-8")


# The tables -----------------------------------------------------------------------------------------------------------


def test_a_table_is_made_once_and_only_when_it_is_asked_for(views) -> None:
    made = []
    view = View("", None, "", lambda: made.append(1) or pandas.DataFrame(), lambda: None)
    assert made == []
    assert view.data is view.data
    assert made == [1]


def test_attention_has_a_row_for_every_weight_that_can_be_seen() -> None:
    weights = patterns(2, 3, 4, n=5)
    table = attention_view(list("abcba"), weights, [0, 100]).data
    assert list(table) == ["step", "layer", "head", "query", "query_token", "key", "key_token", "weight"]
    assert len(table) == 2 * 3 * 4 * 15
    for row in table.sample(40, random_state=0).itertuples():
        step = [0, 100].index(row.step)
        assert row.weight == pytest.approx(float(weights[step, row.layer, row.head, row.query, row.key]), abs=0.5 / 255 + 1e-6)
        assert (row.query_token, row.key_token) == ("abcba"[row.query], "abcba"[row.key])
    assert (table.key <= table["query"]).all()


def test_the_lens_has_a_row_for_every_cell(views) -> None:
    table, packed = views["lens"].data, views["lens"].packed
    assert len(table) == len(packed.steps) * len(packed.layers) * len(packed.tokens)
    cell = table[(table.step == 100) & (table.read_at == packed.layers[-1]) & (table.position == 4)].iloc[0]
    assert cell["token"] == packed.tokens[4]
    assert cell["target"] == packed.tokens[5]
    assert cell["kl"] == packed.kl[-1][-1][4] == 0
    assert cell["rank"] == packed.rank[-1][-1][4]
    assert cell["top_1"] == packed.words[packed.top[-1][-1][4][0]]
    assert cell["top_1_probability"] == packed.top_probability[-1][-1][4][0] >= cell["top_2_probability"]
    assert table[table.position == len(packed.tokens) - 1].probability.isna().all()  # nothing to predict


def test_a_circuit_has_a_row_for_every_edge(views) -> None:
    assert views["circuit"].data.to_dict("records") == views["circuit"].packed.edges


def test_patching_and_tracing_have_their_results_own_tables(views) -> None:
    table = views["patching"].data
    assert table.groupby("layer").size().tolist() == [9, 9]
    shown = np.array(views["patching"].packed.values, dtype=float).ravel()
    np.testing.assert_allclose(table.normalised.to_numpy(dtype=float), shown, rtol=1e-3)
    traced = views["tracing"].data
    shares = np.array(views["tracing"].packed.values, dtype=float).ravel()
    np.testing.assert_allclose(traced.indirect_effect / traced.total_effect, shares, rtol=2e-3)


def test_sampling_has_a_row_for_every_way_and_token(views) -> None:
    table, packed = views["sampling"].data, views["sampling"].packed
    assert len(table) == 6 * 20
    found = table[table.way == "top-k 10"]
    assert found.probability.tolist() == packed.probability[packed.ways.index("top-k 10")]
    assert (found.probability > 0).sum() == found.n_kept.iloc[0] == 10


def test_a_neuron_has_a_row_for_every_number_of_its_page(views) -> None:
    table, history = views["neuron"].data, histories()[0]
    last = table[table.step == 100]
    assert last[last.part == "histogram"]["value"].tolist() == list(history.last.counts)
    promoted = last[(last.part == "effects") & (last.name == "promoted")]
    assert promoted["value"].tolist() == [size for _, size in history.last.effect.promoted]
    context = last[last.name == "top 1"]
    assert context["value"].tolist() == list(history.last.top[0].activations)
    assert context[context.peak].position.tolist() == [history.last.top[0].position]
    known = last[last.part == "statistics"].set_index("name")["value"]
    assert known["frequency"] == history.last.frequency
    assert sorted(table.step.unique()) == [0, 10, 100]


def test_a_large_view_is_cheap_until_it_is_looked_at() -> None:
    view = attention_view(["token"] * 128, draw(12, 12, 128, 128).abs().clamp(max=1))
    assert not {"data", "_still"} & set(vars(view))
    assert len(view.data) == 144 * 128 * 129 // 2
    assert view.data.memory_usage(deep=True).sum() < 70e6


def test_a_view_says_what_it_can_do(views) -> None:
    assert repr(views["lens"]) == "View('Title'); .save('view.html') writes it (.png .pdf .svg .csv too), .data is its table"
