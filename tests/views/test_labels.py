"""All 50,257 labels of GPT-2's tokens can be drawn: by matplotlib in the fonts it brings, and by a browser."""

import numpy as np
import pytest
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ft2font import LoadFlags

from interp_gpt2.tokenizers import GPT2Tokenizer
from interp_gpt2.views.html import document, tag
from interp_gpt2.views.sheet import TOKENS, drawable, width_of

pytestmark = pytest.mark.slow

PER_LINE = 128  # labels


def ink_of(lines: list[str]) -> list[float]:
    """How dark each line comes out. Raises for a character without a glyph: in these tests a warning is an error."""
    size, pixels = 6, 8
    wide = max(width_of(line, size, "tokens") for line in lines) + 20
    figure = Figure(figsize=(wide / 72, pixels * len(lines) / 72), dpi=72)
    canvas = FigureCanvasAgg(figure)
    for i, line in enumerate(lines):
        y = 1 - (i + 0.5) / len(lines)
        figure.text(5 / wide, y, line, fontsize=size, family=TOKENS, va="center", parse_math=False)
    canvas.draw()
    dark = 1 - np.asarray(canvas.buffer_rgba())[..., 0] / 255
    return dark.reshape(len(lines), pixels, -1).sum((1, 2)).tolist()


def test_matplotlib_has_a_glyph_for_every_character_of_every_label(gpt2: GPT2Tokenizer) -> None:
    """Its own layout, which warns of a missing glyph, and in these tests a warning is an error."""
    labels = [drawable(label) for label in gpt2.labels]
    assert len(set(labels)) == len(labels) == 50_257
    font = get_font([findfont(name) for name in TOKENS])
    font.set_size(6, 72)
    for i in range(0, len(labels), PER_LINE):
        font.set_text(" ".join(labels[i : i + PER_LINE]), flags=LoadFlags.NO_HINTING)
        assert font.get_width_height()[0] / 64 > 6 * PER_LINE / 2 * (len(labels[i : i + PER_LINE]) / PER_LINE)


def test_labels_leave_ink(gpt2: GPT2Tokenizer) -> None:
    """Every 40th; and below, each character that any has."""
    labels = [drawable(label) for label in gpt2.labels[::40]]
    lines = [" ".join(labels[i : i + PER_LINE]) for i in range(0, len(labels), PER_LINE)]
    assert min(ink_of(lines)) > 100


def test_every_character_of_the_labels_leaves_ink_by_itself(gpt2: GPT2Tokenizer) -> None:
    characters = sorted(set("".join(map(drawable, gpt2.labels))))
    characters.remove(" ")  # between the bytes of ⟨e2 80⟩
    assert len(characters) > 200
    for i in range(0, len(characters), 200):
        faint = [char for char, ink in zip(characters[i : i + 200], ink_of(characters[i : i + 200]), strict=True) if ink < 0.3]
        assert faint == []


def test_most_labels_are_drawn_as_they_are(gpt2: GPT2Tokenizer) -> None:
    """Spelled out are Chinese, Japanese, Korean, Thai and a few other letters that matplotlib's fonts lack."""
    changed = [label for label in gpt2.labels if drawable(label) != label]
    assert len(changed) < 0.01 * len(gpt2.labels)
    assert "·Washington" not in changed


def test_every_label_has_a_box_of_its_own_in_a_browser(gpt2: GPT2Tokenizer, watch, tmp_path) -> None:
    labels = gpt2.labels
    path = tmp_path / "labels.html"
    spans = Markup("\n").join(tag("code", {}, label) for label in labels)
    path.write_text(document("labels", tag("main", {}, spans)), "utf-8")
    page = watch(path).page
    widths = page.evaluate("[...document.querySelectorAll('code')].map((node) => node.getBoundingClientRect().width)")
    shown = page.evaluate("[...document.querySelectorAll('code')].map((node) => node.textContent)")
    assert shown == labels
    assert len(widths) == 50_257
    assert min(widths) > 2
