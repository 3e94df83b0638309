"""All 50,257 labels of GPT-2's tokens can be drawn: by matplotlib in the fonts it brings, and by a browser."""

import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from interp_gpt2.tokenizers import GPT2Tokenizer
from interp_gpt2.views.html import document, tag
from interp_gpt2.views.sheet import TOKENS, drawable, width_of

PER_LINE, PER_FIGURE = 128, 40  # labels


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


def test_every_label_is_drawn_by_matplotlib_with_a_glyph_for_each_character(gpt2: GPT2Tokenizer) -> None:
    labels = [drawable(label) for label in gpt2.labels]
    assert len(set(labels)) == len(labels) == 50_257
    lines = [" ".join(labels[i : i + PER_LINE]) for i in range(0, len(labels), PER_LINE)]
    for i in range(0, len(lines), PER_FIGURE):
        assert min(ink_of(lines[i : i + PER_FIGURE])) > 100


def test_every_character_of_the_labels_leaves_ink_by_itself(gpt2: GPT2Tokenizer) -> None:
    characters = sorted(set("".join(map(drawable, gpt2.labels))))
    assert len(characters) > 500
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
