"""Aligned columns of text, without boxes."""

import unicodedata
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns two spaces apart; the first `left` ones are words and stand left, the others are numbers and stand right."""
    widths = [max(shown_width(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [_pad(cell, width, on_left=i < left) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def shown_width(text: str) -> int:
    """Columns a terminal gives to `text`: two for wide characters, none for marks that sit on another."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` columns, ending in … where something is left out."""
    if shown_width(text) <= width:
        return text
    kept = ""
    for character in text:
        if shown_width(kept + character) > width - 1:
            break
        kept += character
    return kept + "…"


def in_bytes(n_bytes: int) -> str:
    """4.2 MB."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def _pad(text: str, width: int, on_left: bool) -> str:
    gap = " " * (width - shown_width(text))
    return text + gap if on_left else gap + text
