"""Several instruments' tables as one page: what each keeps, and what fails where."""

from collections.abc import Sequence

from interp_gpt2.contract.clauses import CLAUSES
from interp_gpt2.contract.finding import BEGAN
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
    for clause in dict.fromkeys(result.clause for result in table.failed):
        failed = [result for result in table.of(clause) if result.verdict == "fails"]
        lines.append(f"- **{clause}**: {_where(failed, table.of(clause))}")
    return "\n".join(lines)


def _where(failed: list[Result], checked: list[Result]) -> str:
    kinds = list(dict.fromkeys(kind_of(result.hook_point) for result in failed))
    kept = [kind for kind in dict.fromkeys(kind_of(result.hook_point) for result in checked) if kind not in kinds]
    if len(kinds) > 3 and len(kinds) > 2 * len(kept):
        spared = f" but {', '.join(f'`{kind}`' for kind in kept if kind)}" if kept else ""
        return f"at every hook point{spared} ({_worst(failed)})"
    same = [(_worst([r for r in failed if kind_of(r.hook_point) == kind]), kind) for kind in kinds]
    told: dict[str, list[str]] = {}
    for how, kind in same:
        told.setdefault(how, []).append(f"`{kind}`" if kind else "")
    return "; ".join(f"{', '.join(names)} ({how})" if names != [""] else how for how, names in told.items())


def _worst(results: list[Result]) -> str:
    """The largest number, and where it began; what was counted and what raised say so in their note."""
    worst = max(results, key=lambda result: -1.0 if result.deviation is None else result.deviation)
    if worst.note and not (worst.allowed or worst.note.startswith(BEGAN)):
        return worst.note
    return f"up to {number(worst.deviation)}" + (f", {worst.note}" if worst.note else "")


def number(value: float | None) -> str:
    """0.65, 3e-07, infinite."""
    return "infinite" if value in (None, float("inf")) else f"{value:.2g}"
