"""The numbers of a notebook: what its cells put out, what its prose says, and whether they agree.

Two outputs agree if everything but the numbers is the same, white space aside, and each number is the other's to 1 %, or to
one unit in the last decimal place that is printed, or both are below 1e-4: another machine rounds, and what is only rounding
has no other digits to agree in. So whole numbers below 100 agree if they are the same. In cells tagged "timing" numbers
are the machine's, and only the words around them are compared.

A number in the prose has to stand in an output of the same notebook, to the digits that the prose gives. Left aside are
code spans, years of citations, and NO_MEASUREMENTS, each with its reason.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

TIMING = "timing"

# Names such as L0H1 and GPT-2 are words; a comma or point belongs to a number only before a digit.
_NUMBER = re.compile(r"(?<![\w.])(?<![A-Za-z]-)[-−+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")
_NOT_PROSE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)", re.DOTALL)
_CITATION = re.compile(r"(?:[A-Z][\w'-]+|al\.),? \(?(?:19|20)\d\d\b")
_SMALLEST = 1e-4

NO_MEASUREMENTS = {
    "": {"95": "per cent, the level of every interval"},
    "02_logit_lens_and_direct_logit_attribution": {"16": "the states of the task, and so its tokens"},
}


@dataclass(frozen=True)
class Number:
    """A number as it was printed: its value, and how many decimal places it was given (of 1e-05: none)."""

    value: float
    decimals: int

    @classmethod
    def read(cls, text: str) -> "Number":
        text = text.replace(",", "").replace("−", "-")
        return cls(float(text), len(text.partition(".")[2]) if "e" not in text else 0)

    def agrees(self, other: "Number") -> bool:
        """The same but for rounding: see the head of this file."""
        apart, size = abs(self.value - other.value), max(abs(self.value), abs(other.value))
        unit = 10.0 ** -min(self.decimals, other.decimals) if self.decimals and other.decimals else 0.0
        return apart <= 0.01 * size + 1.001 * unit or size < _SMALLEST

    def says(self, shown: "Number") -> bool:
        """Whether prose may say this of that output: the same digits, or, where it has more decimals, the same once rounded.

        A whole number below 10 is not taken for a rounded one: it would be found almost anywhere.
        """
        rounds = shown.decimals > self.decimals and (self.decimals or self.value >= 10)
        return abs(abs(self.value) - abs(shown.value)) <= 1e-9 + 0.5 * 10.0**-self.decimals * bool(rounds)


def numbers(text: str) -> list[Number]:
    """Every number in a text, in order."""
    return [Number.read(found) for found in _NUMBER.findall(text)]


def words(text: str) -> list[str]:
    """What stands between and around the numbers. White space is left out: tables are as wide as their numbers."""
    return ["".join(part.split()) for part in _NUMBER.split(text)]


def cells(path: Path) -> Iterator[dict]:
    """The cells of an .ipynb file."""
    yield from json.loads(path.read_text(encoding="utf-8"))["cells"]


def output_text(cell: dict) -> str:
    """What a cell printed and showed, as text."""
    parts = []
    for output in cell.get("outputs", ()):
        shown = output.get("text") if output["output_type"] == "stream" else output.get("data", {}).get("text/plain", "")
        parts.append("".join(shown))
    return "\n".join(parts)


def prose(notebook: Iterable[dict]) -> str:
    """The text of a notebook without its code, the names in it, and the years of citations."""
    text = "\n\n".join("".join(cell["source"]) for cell in notebook if cell["cell_type"] == "markdown")
    return _CITATION.sub(" ", _NOT_PROSE.sub(" ", text))


def difference(committed: dict, fresh: dict) -> str | None:
    """How two executions of a cell disagree, in a line; None if they do not."""
    before, now = output_text(committed), output_text(fresh)
    if words(before) != words(now):
        return f"was {before.strip()[:300]!r}, is now {now.strip()[:300]!r}"
    if TIMING in fresh.get("metadata", {}).get("tags", ()):
        return None
    pairs = zip(numbers(before), numbers(now), strict=True)
    apart = [f"{one.value:g} is now {other.value:g}" for one, other in pairs if not one.agrees(other)]
    return "; ".join(apart[:5]) or None


def unsupported(name: str, notebook: Iterable[dict]) -> list[str]:
    """Numbers in the prose of a notebook that stand in none of its outputs and are not allowed for."""
    listed = list(notebook)
    shown = [number for cell in listed for number in numbers(output_text(cell))]
    shown += [Number(number.value * 100, number.decimals - 2) for number in shown if number.decimals >= 2]  # in per cent
    allowed = {Number.read(text) for of in ("", name) for text in NO_MEASUREMENTS.get(of, ())}
    said = [number for number in numbers(prose(listed)) if number not in allowed]
    return [f"{number.value:g}" for number in said if not any(number.says(other) for other in shown)]
