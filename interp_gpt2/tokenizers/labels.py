"""Names for tokens that can be read and told apart, whatever bytes they stand for."""

import re
import unicodedata

_MARKS = {" ": "·", "\n": "↵", "\t": "→"}
_RESERVED = set(_MARKS.values()) | {"⟨", "⟩"}  # these characters themselves are spelled out, so that no two labels meet
_BLANK_LETTERS = set("\u115f\u1160\u2800\u3164\uffa0")  # letters and symbols by category, nothing to see
_INVISIBLE_CATEGORIES = "CZM"  # control, format and unassigned; separators; marks, which have no width of their own


def visible(raw: bytes) -> str:
    """`raw` as printable text that no other bytes share.

    A space is ·, a newline ↵, a tab →. Bytes that are not UTF-8 are in hex, ⟨e2 80⟩; whatever else could not be seen, or
    could be mistaken for one of these, is spelled out, ⟨U+200B⟩.
    """
    text = raw.decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]+|.", lambda found: _visible_piece(found.group()), text, flags=re.DOTALL)


def _visible_piece(piece: str) -> str:
    if "\udc80" <= piece[0] <= "\udcff":
        return "⟨" + " ".join(f"{ord(character) - 0xDC00:02x}" for character in piece) + "⟩"
    if piece in _MARKS:
        return _MARKS[piece]
    hidden = unicodedata.category(piece)[0] in _INVISIBLE_CATEGORIES or not piece.isprintable()
    return f"⟨U+{ord(piece):04X}⟩" if hidden or piece in _RESERVED or piece in _BLANK_LETTERS else piece
