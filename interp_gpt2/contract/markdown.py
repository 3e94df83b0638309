"""Several instruments' tables as one page: what each keeps, and what fails where."""

from collections.abc import Sequence
from itertools import groupby

from interp_gpt2.contract.clauses import CLAUSES
from interp_gpt2.contract.table import Result, Summary, Table, kind_of


def promises(tables: Sequence[Table]) -> str:
    """A row for each promise and a column for each instrument: how many checks kept it, or how many of them did not."""
    lines = [f"| promise | {' | '.join(table.instrument for table in tables)} |", f"|---|{'---|' * len(tables)}"]
    summaries = [{summary.clause: summary for summary in table.summary()} for table in tables]
    for clause in CLAUSES:
        cells = [_cell(found.get(clause.name)) for found in summaries]
        lines.append(f"| **{clause.name}**: {clause.promise} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(summary: Summary | None) -> str:
    if summary is None or not summary.holds + summary.fails:
        return "not applicable"
    if summary.fails:
        return f"**fails** {summary.fails} of {summary.holds + summary.fails}"
    return f"{summary.holds} hold" + (f", worst {number(summary.worst)}" if summary.allowed else "")


def failures(table: Table) -> str:
    """For each broken promise the kinds of hook point, with the largest number measured and how the worst came about."""
    lines = []
    for clause, results in groupby(table.failed, key=lambda result: result.clause):
        lines.append(f"- **{clause}**: {_where(list(results), table.of(clause))}")
    return "\n".join(lines)


def _where(failed: list[Result], checked: list[Result]) -> str:
    kinds = list(dict.fromkeys(kind_of(result.hook_point) for result in failed))
    possible = {kind_of(result.hook_point) for result in checked if result.verdict != "not applicable"}
    if kinds != [""] and len(kinds) == len(possible) > 3:
        return f"at every hook point ({_worst(failed)})"
    same = [(_worst([r for r in failed if kind_of(r.hook_point) == kind]), kind) for kind in kinds]
    told: dict[str, list[str]] = {}
    for how, kind in same:
        told.setdefault(how, []).append(f"`{kind}`" if kind else "")
    return "; ".join(f"{', '.join(names)} ({how})" if names != [""] else how for how, names in told.items())


def _worst(results: list[Result]) -> str:
    """The largest number; what was counted and what raised say so in their note."""
    worst = max(results, key=lambda result: -1.0 if result.deviation is None else result.deviation)
    if worst.deviation is None or not worst.allowed:
        return worst.note or f"up to {number(worst.deviation)}"
    return f"up to {number(worst.deviation)}" + (f", {worst.note}" if worst.note else "")


def number(value: float | None) -> str:
    """0.65, 3e-07, infinite."""
    return "infinite" if value in (None, float("inf")) else f"{value:.2g}"
