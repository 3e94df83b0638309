"""What every figure is made of: the widths of a paper's columns, one style, and text that can be drawn whatever it holds."""

import functools
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp_gpt2.views.svg import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font

COLUMN, PAGE = 3.4, 7.0  # inches: one column of a two-column paper, and both
COLOURS = ("#c4500b", "#0a4592", "#00825f", "#a85591")  # apart for dichromats too: tests/views/test_colours.py
GREY = "#6d737b"
TEXT, TOKENS = ["DejaVu Sans", "DejaVu Sans Mono"], ["DejaVu Sans Mono", "DejaVu Sans"]  # they come with matplotlib
TITLE_SIZE, SMALL = 8, 6  # points; nothing is smaller
STYLE = {
    "font.family": TEXT,
    "font.size": 8,
    "axes.titlesize": TITLE_SIZE,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "interp_gpt2",
    "pdf.fonttype": 42,
}


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """`draw` under STYLE, which is undone afterwards: a library must not restyle its user's figures."""

    @functools.wraps(draw)
    def under_style(*args: Any, **kwargs: Any) -> Any:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return under_style


# Text -----------------------------------------------------------------------------------------------------------------


@functools.cache
def _font(name: str) -> "FT2Font":
    """A font of matplotlib's own, at a size of 100: a font object of ours, whose size no renderer changes."""
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    font = FT2Font(findfont(name))
    font.set_size(100, 72)
    return font


@functools.cache
def _glyphs() -> dict[str, frozenset[int]]:
    return {name: frozenset(_font(name).get_charmap()) for name in TEXT}


def drawable(text: str) -> str:
    """`text` with every character spelled out, as in ⟨U+30C4⟩, that has no glyph or that reorders or hides others.

    The fonts are those that come with matplotlib, so that a figure is the same on every machine; they have no Chinese,
    Japanese, Korean, Thai or Indic letters. Two labels of a tokenizer stay two.
    """
    return "".join(char if _has_glyph(char) else f"⟨U+{ord(char):04X}⟩" for char in text)


@functools.cache
def _has_glyph(char: str) -> bool:
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return char == "\n"
    return any(ord(char) in known for known in _glyphs().values())


@functools.cache
def _advance(char: str, fonts: str) -> float:
    """How wide a character is, in parts of the font's size."""
    first, second = (TEXT, TOKENS)[fonts == "tokens"]
    name = first if ord(char) in _glyphs()[first] else second
    return _font(name).load_char(ord(char)).linearHoriAdvance / 65536 / 100


def width_of(text: str, size: float, fonts: str = "text") -> float:
    """How wide one line of `drawable` text is, in points. `fonts` is "text" or "tokens"."""
    return size * sum(_advance(char, fonts) for char in text)


def cut(text: str, most: float, size: float = SMALL, fonts: str = "tokens") -> str:
    """`text`, made drawable, on one line and no wider than `most` points: what does not fit becomes an ellipsis."""
    text = drawable(text.replace("\n", "↵"))
    if width_of(text, size, fonts) <= most:
        return text
    room = most - width_of("…", size, fonts)
    kept = 0
    while kept < len(text) and (room := room - width_of(text[kept], size, fonts)) >= 0:
        kept += 1
    return text[:kept] + "…"


def wrapped(text: str, inches: float, size: float = TITLE_SIZE, most: int = 5) -> str:
    """`text`, made drawable, in at most `most` lines no wider than `inches`; a word that is wider by itself is broken."""
    room, lines = 72 * inches, []
    for paragraph in drawable(text).split("\n"):
        line = ""
        for word in paragraph.split(" "):
            joined = f"{line} {word}" if line else word
            if width_of(joined, size) <= room:
                line = joined
                continue
            if line:
                lines.append(line)
            while width_of(word, size) > room:
                fits = next(n for n in range(len(word), 0, -1) if width_of(word[:n], size) <= room)
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        lines.append(line)
    return "\n".join(lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][:-1] + "…"])


# Parts of a figure ----------------------------------------------------------------------------------------------------


def sheet(width: float, height: float, title: str) -> "Figure":
    """An empty figure, its title over its whole width; `height` is of what stands below the title."""
    from matplotlib.figure import Figure

    head = wrapped(title, width - 0.1) if title else ""
    figure = Figure(figsize=(width, height + 0.145 * (head.count("\n") + 1) * bool(head)), layout="constrained")
    if head:
        figure.suptitle(head, x=0.05 / width, ha="left", fontsize=TITLE_SIZE, parse_math=False)
    return figure


def one_panel(width: float, height: float, title: str) -> tuple["Figure", "Axes"]:
    figure = sheet(width, height, title)
    return figure, figure.add_subplot()


def steps_axis(axes: "Axes", steps: Sequence[int], window: tuple[float, float] | None = None) -> None:
    """Step 0 and powers of ten; `window` is shaded."""
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, max(max(steps), 1))
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if window:
        axes.axvspan(*window, color="#d69e14", alpha=0.17, linewidth=0)


def label_ends(axes: "Axes", labels: Mapping[str, tuple[float, str]], gap: float = 0.075) -> None:
    """Names at the right of the axes, at the height of what they name, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    ordered = sorted(labels.items(), key=lambda item: item[1][0])
    heights = spread([(value - low) / (high - low) for _, (value, _) in ordered], 0.0, 1.0, gap=gap)
    for (name, (_, colour)), height in zip(ordered, heights, strict=True):
        where = {"transform": axes.transAxes, "va": "center", "fontsize": 7, "color": colour}
        axes.text(1.02, height, cut(name, 90, 7, "text"), parse_math=False, **where)


def token_ticks(axis: Any, labels: Sequence[str], rotation: float, room: float = math.inf, start: int = 0) -> None:
    """A label at each place from `start` on, or at every n-th where `room`, the points from one to the next, is too little.

    Long labels are cut; all of them, whole, are kept for the numbers that `save` writes.
    """
    flat = not rotation and axis.axis_name == "x"  # side by side, where a label may be cut to its place
    most = min(44.0, room - 2) if flat and room >= 14 else 44.0
    needed = 2 + max(width_of(cut(label, most), SMALL, "tokens") for label in labels) if flat else 1.15 * SMALL
    every = max(1, math.ceil(needed / room)) if room > 0 else len(labels)
    shown = [cut(label, most) if i % every == 0 else "" for i, label in enumerate(labels)]
    axis.set_ticks(range(start, start + len(labels)))
    axis.set_ticklabels(shown, rotation=rotation, family=TOKENS, fontsize=SMALL, parse_math=False)
    axis.set_tick_params(length=0)
    axis.get_major_formatter().whole = [drawable(label) for label in labels]


def upright(labels: Sequence[str]) -> int:
    """The rotation of labels below an axis: none where each is a character or two."""
    return 0 if max(map(len, labels), default=0) <= 2 else 90
