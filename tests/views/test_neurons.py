"""Pages of neurons: the numbers of their histories, links among them, any token text, the keyboard, the same bytes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp_gpt2.analysis.neuron_history import NeuronHistory, neuron_histories
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError
from interp_gpt2.views import neuron_view, save_neuron_pages
from interp_gpt2.views import neurons as pages
from interp_gpt2.views.neuron_charts import number, share

LABELS = [f"t{token}" for token in range(50)]
TOKENS = torch.randint(0, 50, (8, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def histories(make_gpt2, config: GPT2Config) -> tuple[NeuronHistory, ...]:
    models = {step: make_gpt2(config, seed) for seed, step in enumerate((0, 10, 100))}
    return neuron_histories(models.__getitem__, list(models), Windows.of(TOKENS), [(1, 5), (0, 7), (0, 90)])


def test_pages_link_to_their_neighbours_and_the_index_to_all(histories, tmp_path: Path) -> None:
    index = save_neuron_pages(histories, LABELS, tmp_path / "made", "a run")
    assert sorted(path.name for path in index.parent.iterdir()) == ["L0N7.html", "L0N90.html", "L1N5.html", "index.html"]
    links = {path.name: re.findall(r'<a href="([^"]*)"', path.read_text("utf-8")) for path in index.parent.iterdir()}
    assert links["index.html"] == ["L0N7.html", "L0N90.html", "L1N5.html"]
    assert links["L0N7.html"] == ["index.html", "L0N90.html"]
    assert links["L0N90.html"] == ["L0N7.html", "index.html", "L1N5.html"]
    assert links["L1N5.html"] == ["L0N90.html", "index.html"]


def test_a_page_holds_the_numbers_of_its_history(histories, tmp_path: Path) -> None:
    save_neuron_pages(histories, LABELS, tmp_path, "a run", "made-up text")
    page = (tmp_path / "L1N5.html").read_text("utf-8")
    (history,) = [one for one in histories if one.label == "L1N5"]
    last = history.last
    assert f"At step 100, on {last.n} tokens of made-up text." in page
    assert f"on {share(last.frequency)} of them" in page
    for token, size in last.effect.promoted[:8]:
        assert f">t{token}</th><td>{number(size)}</td>" in page
    for context in last.top:
        assert f">{number(context.activations[context.peak])}</span>" in page
    bars = re.findall(r"<rect [^>]*><title>[^<]*: ([\d,]+) tokens</title>", page)
    assert [int(bar) for bar in bars] == [count for count in last.counts if count]
    for record in history.records:
        assert f'<th scope="row">{record.step}</th><td>{share(record.frequency)}</td>' in page


def test_tokens_are_coloured_by_their_share_of_the_highest_and_the_peak_is_underlined(histories) -> None:
    record = histories[0].last
    highest = max(a for context in record.top for a in context.activations)
    fragment = str(neuron_view(histories[0], LABELS).fragment)
    first = re.search(r"<code>(.*?)</code>", fragment)[1]
    shown = re.findall(r'<span(?: class="([^"]*)")?(?: title="[^"]*")?>([^<]*)</span>', first)
    context = record.top[0]
    assert [text for _, text in shown] == [LABELS[token] for token in context.tokens]
    for i, ((css, _), activation) in enumerate(zip(shown, context.activations, strict=True)):
        level = int(8 * max(activation, 0) / highest)
        assert css.split() == [f"a{level}"] * (level > 0) + ["peak"] * (i == context.peak)


def test_dead_and_always_on_neurons_say_so(histories) -> None:
    for frequency, said in ((0.0, "Dead here"), (1.0, "Always on")):
        records = (*histories[0].records[:-1], replace(histories[0].last, frequency=frequency))
        assert said in str(neuron_view(replace(histories[0], records=records), LABELS).fragment)


def test_a_neuron_that_never_changes_and_one_of_a_single_step_have_pages(make_gpt2, config: GPT2Config) -> None:
    model = make_gpt2(replace(config, act_fn="relu"))
    with torch.no_grad():
        model.blocks[0].mlp.fc.bias[3] = -1e3
        model.blocks[0].mlp.proj.weight[:, 3] = 0
    (history,) = neuron_histories(lambda step: model, [5], Windows.of(TOKENS), [(0, 3)])
    fragment = str(neuron_view(history, LABELS).fragment)
    assert "Dead here: it fires (is above 0) on none of them, so on fewer than 2.3 % of such tokens" in fragment
    assert "How it came to be so" not in fragment


def test_of_many_neurons_each_layer_has_its_own_index(histories, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pages, "_LISTED", 2)
    index = save_neuron_pages(histories, LABELS, tmp_path, "a run")
    links = re.findall(r'<a href="([^"]*)"', index.read_text("utf-8"))
    assert links == ["layer-0.html", "layer-1.html"]
    assert re.findall(r'<a href="([^"]*)"', (tmp_path / "layer-0.html").read_text("utf-8")) == [
        "index.html",
        "L0N7.html",
        "L0N90.html",
    ]


def test_the_same_histories_give_the_same_bytes_below_ten_megabytes(histories, tmp_path: Path) -> None:
    for name in ("one", "other"):
        save_neuron_pages(histories, LABELS, tmp_path / name, "a run")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()
        assert path.stat().st_size < 10e6


def test_numbers_keep_two_digits_and_shares_never_round_to_none_or_all() -> None:
    assert [number(x) for x in (0, 1.234, -0.5, 1234.5, 0.00123, -3e-7, float("nan"))] == [
        "0.00", "1.23", "−0.50", "1,234.50", "0.0012", "−3.0e-07", "–"
    ]  # fmt: skip
    assert [share(x) for x in (0, 1e-5, 0.123, 0.99999, 1)] == ["0 %", "<0.1 %", "12.3 %", ">99.9 %", "100 %"]


def test_what_has_no_page_is_refused(histories, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="another tokenizer's"):
        save_neuron_pages(histories, LABELS[:10], tmp_path, "a run")
    with pytest.raises(AnalysisError, match="2 histories of 1 neurons"):
        save_neuron_pages(histories[:1] * 2, LABELS, tmp_path, "a run")
    with pytest.raises(AnalysisError, match="0 histories"):
        save_neuron_pages([], LABELS, tmp_path, "a run")
    assert list(tmp_path.iterdir()) == []


# In a browser ---------------------------------------------------------------------------------------------------------


def test_the_arrow_keys_turn_the_pages(watch, histories, tmp_path: Path) -> None:
    watched = watch(save_neuron_pages(histories, LABELS, tmp_path, "a run"))
    watched.page.get_by_role("link", name="L0N90").click()
    watched.page.keyboard.press("ArrowRight")
    watched.page.wait_for_url("**/L1N5.html")
    watched.page.keyboard.press("ArrowRight")
    watched.page.keyboard.press("ArrowLeft")
    watched.page.wait_for_url("**/L0N90.html")
    watched.page.keyboard.press("Tab")
    assert watched.page.evaluate("document.activeElement.textContent") == "← previous"


def test_the_index_sorts_by_a_column(watch, histories, tmp_path: Path) -> None:
    watched = watch(save_neuron_pages(histories, LABELS, tmp_path, "a run"))
    section = watched.page.locator("section").first
    wanted = sorted((one for one in histories if one.layer == 0), key=lambda one: -one.last.highest)
    section.get_by_role("button", name="highest").focus()
    for order in (wanted, wanted[::-1]):
        watched.page.keyboard.press("Enter")
        assert section.locator("tbody a").all_inner_texts() == [one.label for one in order]


def test_a_narrow_page_scrolls_its_tables_and_not_itself(watch, histories, tmp_path: Path) -> None:
    save_neuron_pages(histories, LABELS, tmp_path, "a run")
    for name in ("L1N5.html", "index.html"):
        watched = watch(tmp_path / name, viewport={"width": 400, "height": 700})
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
