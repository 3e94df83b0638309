"""Tables of the comparison with other libraries, taken from what the benchmark scripts wrote: no figure is typed.

Raises LookupError, naming the file, where a table or a row is not there any more.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pages.markdown import table

OURS = "interp_gpt2"


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, begins: str) -> int:
        """The first column whose name begins so. Raises LookupError."""
        for index, name in enumerate(self.head):
            if name.startswith(begins):
                return index
        raise LookupError(f"no column {begins!r} among {', '.join(self.head)}")

    def part(self, columns: Sequence[str]) -> "Table":
        """Some of the columns, each by the beginning of its name."""
        chosen = [self.column(name) for name in columns]
        return Table(tuple(self.head[i] for i in chosen), tuple(tuple(row[i] for i in chosen) for row in self.rows))

    def where(self, column: str, value: str) -> "Table":
        at = self.column(column)
        return Table(self.head, tuple(row for row in self.rows if row[at] == value))

    def to_markdown(self) -> str:
        return table(self.head, self.rows)


def tables(path: Path) -> list[Table]:
    """Every table of a Markdown file."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", path.read_text("utf-8"), re.MULTILINE):
        rows = [tuple(cell.strip() for cell in line.strip().strip("|").split("|")) for line in block.strip().splitlines()]
        found.append(Table(rows[0], tuple(rows[2:])))
    return found


def table_with(path: Path, *columns: str) -> Table:
    """The first table that has columns whose names begin so. Raises LookupError."""
    for one in tables(path):
        if all(any(name.startswith(column) for name in one.head) for column in columns):
            return one
    raise LookupError(f"{path.name} has no table with the columns {', '.join(columns)}")


def measured_on(path: Path) -> str:
    """The lines that say when, on what machine, and with which versions, as they stand. Raises LookupError."""
    text = path.read_text("utf-8")
    lines = re.findall(r"^(- date .*|Measured with .*|\d{4}-\d\d-\d\d.*)$", text, re.MULTILINE)
    if not lines:
        raise LookupError(f"{path.name} does not say when it was measured")
    whole = (re.sub(r"\.\s[A-Z][^.]*$", ".", line.removeprefix("- ")) for line in lines[:2])  # without a sentence cut in two
    said = "\n".join(f"- {line}" for line in whole)
    return f"From {{doc}}`/reference/measured/{path.stem.lower()}`:\n\n{said}\n\n"


# ---------------------------------------------------------------------------------------------------------------------


def instrument(folder: Path) -> str:
    """Passes, and looking inside them: milliseconds."""
    path = folder / "RESULTS.md"
    found = table_with(path, "work", OURS, "Hugging Face", "TransformerLens 3", "TransformerLens 4", "nnsight")
    columns = ["work", OURS, "Hugging Face", "TransformerLens 3", "TransformerLens 4", "nnsight"]
    return measured_on(path) + found.part(columns).to_markdown()


def patching(folder: Path) -> str:
    """Whole sweeps of activation patching: seconds."""
    path, parts = folder / "PATCHING.md", []
    for peer in ("TransformerLens 3", "TransformerLens 4"):
        found = table_with(path, "sweep", OURS, peer).where("differ at", "0")
        if not found.rows:
            raise LookupError(f"{path.name} has no sweeps against {peer} whose prompts differ at 0")
        parts.append(found.part(["sweep", "cells", OURS, "function", peer, "apart"]).to_markdown())
    return measured_on(path) + "\n".join(parts)


def training(folder: Path) -> str:
    """Updates and the preparation of data, beside nanoGPT's."""
    path = folder / "TRAINING.md"
    updates, data = table_with(path, "recipe", "who", "tokens/s"), table_with(path, "corpus", "ours", "nanoGPT's way")
    return measured_on(path) + updates.to_markdown() + "\n" + data.to_markdown()


def contract(folder: Path) -> str:
    """Which promises about hook points each library keeps: a line of counts, then promise by promise."""
    path = folder / "CONTRACT.md"
    found = table_with(path, "promise", OURS, "HookedTransformer", "TransformerBridge")
    kept = ["**kept, of all that apply**"]
    for index in range(1, len(found.head)):
        kept.append(f"**{tally([row[index] for row in found.rows])}**")
    rows = [kept, *([row[0], *map(verdict, row[1:])] for row in found.rows)]
    return measured_on(path) + table(found.head, rows)


def tally(cells: Sequence[str]) -> str:
    """How many promises hold, of those that apply."""
    verdicts = [verdict(cell) for cell in cells]
    applies = [each for each in verdicts if each != "not applicable"]
    return f"{applies.count('holds')} of {len(applies)}"


def verdict(cell: str) -> str:
    """A cell of the contract in a few words. Raises LookupError for one that says something else."""
    if found := re.fullmatch(r"\*\*fails\*\* (\d+ of \d+).*", cell):
        return f"fails {found[1]}"
    if re.fullmatch(r"\d+ hold.*", cell):
        return "holds"
    if cell == "not applicable":
        return cell
    raise LookupError(f"CONTRACT.md says {cell!r}, which is neither holds, fails nor not applicable")
