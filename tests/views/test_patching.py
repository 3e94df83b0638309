"""Patching results as a page and as a figure: the numbers of the result, what was not computed visibly so, any token text."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from interp_gpt2.causal.result import PatchingResult
from interp_gpt2.errors import AnalysisError
from interp_gpt2.views import figures, pack_patching, patching_view
from interp_gpt2.views.patching_figures import patching_heat_map


def result(axes: dict[str, int], direction: str = "denoising", n_pairs: int = 4, token: str = "·a") -> PatchingResult:
    """Random numbers along these axes; the first position has nothing to patch."""
    values = torch.randn(*axes.values(), n_pairs, generator=torch.Generator().manual_seed(0))
    clean, corrupted = 3.0 + torch.arange(n_pairs) / 10, -1.0 - torch.arange(n_pairs) / 20
    skipped = torch.zeros_like(values, dtype=torch.bool)
    if "pos" in axes:
        first = (*[slice(None)] * list(axes).index("pos"), 0)
        values[first], skipped[first] = corrupted if direction == "denoising" else clean, True
    labels = {
        axis: tuple(f"{i} {token}{i}" if "pos" in axis else f"H{i}" if axis == "head" else str(i) for i in range(n))
        for axis, n in axes.items()
    }
    return PatchingResult(values, tuple(axes), labels, clean, corrupted, skipped, direction, "logit difference", "z", 0)


def undone(full: PatchingResult, *at: int) -> PatchingResult:
    values = full.values.clone()
    values[at] = torch.nan
    return replace(full, values=values, complete=False)


TWO, THREE = {"layer": 3, "pos": 5}, {"layer": 3, "pos": 5, "head": 2}


# The numbers ----------------------------------------------------------------------------------------------------------


def test_panels_are_layers_rows_heads_and_columns_positions() -> None:
    full = result(THREE)
    data = pack_patching(full)
    assert data.axes == ["layer", "head", "pos"]
    assert [len(along) for along in data.labels] == [3, 2, 5]
    low, high = full.interval
    for found, wanted in ((data.values, full.normalised), (data.low, low), (data.high, high)):
        np.testing.assert_allclose(np.array(found, dtype=float), wanted.permute(0, 2, 1), rtol=1e-3, atol=1e-6)
    assert data.skipped == full.skipped.all(-1).permute(0, 2, 1).tolist()


@pytest.mark.parametrize(
    ("axes", "placed"),
    [
        ({"layer": 2, "head": 3}, ["", "layer", "head"]),
        ({"layer": 2, "head": 3, "dest_pos": 4}, ["layer", "head", "dest_pos"]),
        ({"dest_pos": 4, "src_pos": 4}, ["", "dest_pos", "src_pos"]),
        ({"type": 2, "layer": 3, "head": 4}, ["type", "layer", "head"]),
        ({"sender": 3}, ["", "sender", ""]),
        ({}, ["", "", ""]),
    ],
)
def test_every_shape_of_result_finds_its_place(axes: dict[str, int], placed: list[str]) -> None:
    full = result(axes)
    assert pack_patching(full).axes == placed
    assert np.sort(pack_patching(full).values, axis=None) == pytest.approx(full.normalised.flatten().sort()[0].numpy(), rel=1e-3)
    assert patching_heat_map(full).axes


def test_a_cell_that_was_not_done_is_none_and_a_single_pair_has_no_interval() -> None:
    data = pack_patching(undone(result(TWO, n_pairs=1), 2, 3))
    assert data.values[0][2][3] is None
    assert data.low is None
    assert not data.complete


@pytest.mark.parametrize(("direction", "base"), [("denoising", 0.0), ("noising", 1.0)])
def test_no_effect_is_the_middle_of_the_colours(direction: str, base: float) -> None:
    full = result(TWO, direction)
    image = patching_heat_map(full).axes[0].get_images()[0]
    low, high = image.get_clim()
    assert (low + high) / 2 == pytest.approx(base)
    assert image.get_cmap()(0.5)[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.01)
    data = pack_patching(full)
    assert data.base == base
    assert data.limit == pytest.approx(float((full.normalised - base).abs().max()), rel=1e-4)


def test_small_effects_are_drawn_pale() -> None:
    full = result(TWO)
    faint = replace(full, values=full.corrupted + (full.values - full.corrupted) / 1000)
    assert pack_patching(faint).limit == 0.1


def test_four_axes_are_refused_with_what_to_draw_instead() -> None:
    full = result({"layer": 2, "head": 3, "dest_pos": 4, "src_pos": 4})
    for draw in (patching_heat_map, patching_view):
        with pytest.raises(AnalysisError, match=r"result\.at\('layer', 0\)\.at\('head', 0\)"):
            draw(full)
    part = full.at("layer", 1).at("head", "H2")
    assert torch.equal(part.normalised, full.normalised[1, 2])
    assert part.hook_point == "z, layer 1, head H2"
    assert pack_patching(part).axes == ["", "dest_pos", "src_pos"]


def test_a_part_that_is_not_there_is_refused() -> None:
    with pytest.raises(AnalysisError, match="no axis 'head'"):
        result(TWO).at("head", 0)
    with pytest.raises(AnalysisError, match="no layer '3'; there are 3, '0' to '2'"):
        result(TWO).at("layer", "3")
    with pytest.raises(AnalysisError, match="no layer 3"):
        result(TWO).at("layer", 3)


# The figure -----------------------------------------------------------------------------------------------------------


def saved(figure, path: Path) -> list[dict[str, str]]:
    _, numbers = figures.save(figure, path)
    with open(numbers, encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["series"].startswith("normalised")]


def test_the_csv_beside_a_figure_holds_every_cell_that_was_done(tmp_path: Path) -> None:
    full = undone(result(THREE), 1, 4, 0)
    rows = saved(patching_heat_map(full), tmp_path / "z.svg")
    assert len(rows) == 3 * 5 * 2 - 1
    for row in rows:
        layer, head, pos = int(row["series"].split()[-1]), int(row["y"].split()[0]), int(row["x"].split()[0])
        assert row["y"].split()[1] == f"H{head}"
        assert row["x"].split(maxsplit=1)[1] == f"{pos} ·a{pos}"
        assert float(row["value"]) == pytest.approx(float(full.normalised[layer, pos, head]), rel=1e-3)


def test_a_title_says_what_lies_between_which_runs() -> None:
    title = patching_heat_map(result(TWO, "noising"), "IOI").get_suptitle().replace("\n", " ")
    assert title == "IOI z, noising (corrupted pieces into the clean run) logit difference: 3.15 clean, -1.08 corrupted; 4 pairs"
    assert patching_heat_map(result(TWO)).axes[-1].get_ylabel() == "0 corrupted\n1 clean"


def test_layers_stand_from_below_and_heads_from_above() -> None:
    assert patching_heat_map(result(TWO)).axes[0].get_ylim() == (-0.5, 2.5)
    assert patching_heat_map(result(THREE)).axes[0].get_ylim() == (1.5, -0.5)


def test_cells_without_a_patch_are_hatched_and_cells_not_done_crossed() -> None:
    axes = patching_heat_map(undone(result(TWO), 2, 3)).axes[0]
    squares, crosses = axes.collections
    assert squares.get_hatch()
    assert sorted(tuple(path.vertices[:4].mean(0)) for path in squares.get_paths()) == [(0, 0), (0, 1), (0, 2)]
    assert crosses.get_offsets().tolist() == [[3, 2]]
    assert "hatched: nothing to patch (3 cells); ×: not done (1 cells)" in axes.figure.get_supxlabel()


def test_a_sweep_of_nothing_finished_is_drawn_as_crosses(tmp_path: Path) -> None:
    assert saved(patching_heat_map(undone(result(TWO))), tmp_path / "empty.png") == []


# The page, in a browser -----------------------------------------------------------------------------------------------


class Page:
    """A view as a page, its cells and what it says of one."""

    def __init__(self, watch, view, tmp_path: Path, **options) -> None:
        self.page = watch(view.save(tmp_path / "view.html"), **options).page

    def cell(self, row: int, column: int):
        return self.page.locator(f'td[data-row="{row}"][data-column="{column}"]')

    def said(self) -> str:
        return self.page.locator(".said").inner_text()


def shown(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def test_a_cell_says_its_value_with_its_interval_and_the_two_runs(watch, tmp_path: Path) -> None:
    full = undone(result(TWO), 0, 4)
    opened = Page(watch, patching_view(full), tmp_path)
    opened.cell(2, 3).hover()
    low, high = full.interval
    assert opened.said().startswith(
        f"layer 2, position 3 ‘·a3’: {shown(full.normalised[2, 3])} (95 % interval over pairs: {shown(low[2, 3])} to "
        f"{shown(high[2, 3])}), where 0 is the corrupted run and 1 the clean one.\nlogit difference {shown(full.mean[2, 3])}; "
    )
    assert opened.cell(2, 3).inner_text() == shown(full.normalised[2, 3], 2)
    opened.cell(1, 0).hover()
    assert "Nothing to patch here" in opened.said()
    opened.cell(0, 4).hover()
    assert opened.said().strip() == "layer 0, position 4 ‘·a4’: not done; the sweep was interrupted."
    assert opened.cell(0, 4).inner_text() == "×"


def test_the_keyboard_reaches_every_cell_and_every_panel(watch, tmp_path: Path) -> None:
    full = result(THREE)
    opened = Page(watch, patching_view(full), tmp_path)
    opened.page.locator('.thumb[data-panel="1"]').focus()
    opened.page.keyboard.press("Enter")
    opened.cell(0, 3).focus()
    assert opened.said().startswith(f"layer 1, head H0, position 3 ‘·a3’: {shown(full.normalised[1, 3, 0])} ")
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("ArrowRight")
    assert opened.said().startswith(f"layer 1, head H1, position 4 ‘·a4’: {shown(full.normalised[1, 4, 1])} ")
    assert opened.cell(1, 4).get_attribute("aria-label").startswith("layer 1, head H1, position 4")


def test_a_panel_for_each_head_shows_layers_from_below(watch, tmp_path: Path) -> None:
    full = result(THREE)
    opened = Page(watch, patching_view(full), tmp_path)
    opened.page.get_by_label("a panel for each").select_option("head")
    opened.page.locator('.thumb[data-panel="0"]').click()
    rows = opened.page.locator("tbody tr").all()
    assert [row.locator("th").inner_text() for row in rows] == ["2", "1", "0"]
    for layer, row in zip((2, 1, 0), rows, strict=True):
        texts = [shown(value, 2) for value in full.normalised[layer, 1:, 0].tolist()]
        assert row.locator("td").all_inner_texts() == ["", *texts]


def test_the_strongest_cell_is_the_one_shown_first(watch, tmp_path: Path) -> None:
    full = result(THREE)
    layer, pos, head = np.unravel_index(int(full.normalised.abs().argmax()), full.normalised.shape)
    opened = Page(watch, patching_view(full), tmp_path)
    assert opened.said().startswith(f"layer {layer}, head H{head}, position {pos} ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_can_be_read_on_their_colours(watch, tmp_path: Path, scheme: str) -> None:
    full = result({"layer": 1, "head": 21})
    spread = torch.linspace(-1, 1, 21)[None, :, None] * (full.clean - full.corrupted) + full.corrupted
    opened = Page(watch, patching_view(replace(full, values=spread)), tmp_path, color_scheme=scheme)
    paper = _numbers(opened.page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))[:3]
    for cell in opened.page.locator("tbody td").all():
        ink, ground = cell.evaluate("n => [getComputedStyle(n).color, getComputedStyle(n).backgroundColor]")
        *colour, opacity = (*_numbers(ground), 1.0)[:4]
        behind = [opacity * top + (1 - opacity) * below for top, below in zip(colour, paper, strict=True)]
        light, dark = sorted((_luminance(behind), _luminance(_numbers(ink)[:3])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def _numbers(colour: str) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+", colour)]


def _luminance(colour: list[float]) -> float:
    linear = [(c / 255 + 0.055) ** 2.4 / 1.055**2.4 if c > 10 else c / 255 / 12.92 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_narrow_page_scrolls_the_table_and_not_itself(watch, tmp_path: Path) -> None:
    opened = Page(watch, patching_view(result({"layer": 3, "pos": 40})), tmp_path, viewport={"width": 400, "height": 700})
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
