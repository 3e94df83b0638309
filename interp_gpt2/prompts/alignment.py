"""Two lists of tokens, one under the other."""

from collections.abc import Sequence
from difflib import SequenceMatcher

GAP = "—"
_BEFORE, _SHOWN = 4, 14  # columns shown before the first difference, and in all


def aligned(clean: Sequence[str], corrupted: Sequence[str]) -> str:
    """The labels of two prompts' tokens in three lines: clean, corrupted, and ^ under every difference.

    A token that the other prompt has no counterpart of stands over a gap, —, by the longest common runs. Of long prompts
    the columns around the first difference are shown, and … with the number of those left out.
    """
    columns = _columns(clean, corrupted)
    first = next((at for at, (above, below) in enumerate(columns) if above != below), 0)
    begin = max(0, first - _BEFORE) if len(columns) > _SHOWN else 0
    shown = columns[begin : begin + _SHOWN]
    after = len(columns) - begin - len(shown)
    rows = [["clean", "corrupted", ""]]
    rows += [[f"…{begin}…"] * 2 + [""]] if begin else []
    rows += [[above, below, "" if above == below else "^" * max(len(above), len(below))] for above, below in shown]
    rows += [[f"…{after}…"] * 2 + [""]] if after else []
    widths = [max(map(len, row)) for row in rows]
    lines = ["  ".join(row[line].ljust(width) for row, width in zip(rows, widths, strict=True)) for line in range(3)]
    return "\n".join(line.rstrip() for line in lines)


def first_difference(clean: Sequence[object], corrupted: Sequence[object]) -> int:
    """The first position at which two lists are not the same: the length of the shorter where it begins the longer."""
    pairs = enumerate(zip(clean, corrupted, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(clean), len(corrupted)))


def _columns(clean: Sequence[str], corrupted: Sequence[str]) -> list[tuple[str, str]]:
    columns: list[tuple[str, str]] = []
    for _, begin, end, other_begin, other_end in SequenceMatcher(None, clean, corrupted, autojunk=False).get_opcodes():
        above, below = list(clean[begin:end]), list(corrupted[other_begin:other_end])
        n = max(len(above), len(below))
        columns += zip(above + [GAP] * (n - len(above)), below + [GAP] * (n - len(below)), strict=True)
    return columns
