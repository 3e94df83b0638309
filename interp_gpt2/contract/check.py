"""Holding an instrument to the contract.

    from interp_gpt2.contract.check import check
    from interp_gpt2.contract.instrument import Ours

    def test_the_contract_is_kept():
        assert not check(Ours, quick=True).failed

For another library, write an `Instrument` and pass its class, or any function from a GPT2 to it.
"""

import warnings
from collections.abc import Iterator, Sequence
from textwrap import shorten

import torch

from interp_gpt2.contract.clauses import CLAUSES, Clause
from interp_gpt2.contract.finding import RAISED
from interp_gpt2.contract.instrument import Build
from interp_gpt2.contract.subject import Case, Subject, small_cases
from interp_gpt2.contract.table import Result, Table
from interp_gpt2.errors import ConversionError


def check(build: Build, cases: Sequence[Case] | None = None, clauses: Sequence[Clause] = CLAUSES, quick: bool = False) -> Table:
    """Every clause at every hook point of every case; by default of the small models.

    `quick` leaves out the largest of these, compiles only the first, calls less from threads, and of a deep model takes the
    first and the last layer. A check that raises what a library raises when it cannot do something is a broken promise, with
    the error as its note. Resets torch.compile's caches.
    """
    name, results = "", []
    for i, case in enumerate(small_cases(quick) if cases is None else cases):
        chosen = [clause for clause in clauses if not (quick and clause.slow and i)]
        subject = Subject(case, build, calls=25 if quick or i else 150)
        try:
            name = subject.instrument().name
        except ConversionError as error:
            results += [Result(case.title, clause.name, "", "not applicable", note=str(error)) for clause in chosen]
            continue
        points = [point for point in subject.points if not quick or _layer(point) in (None, 0, case.model.config.n_layers - 1)]
        with torch.no_grad():
            results += _checked(subject, chosen, points)
    return Table(name, tuple(results))


def _layer(point: str) -> int | None:
    return int(point.split(".")[1]) if point.startswith("blocks.") else None


def _checked(subject: Subject, clauses: Sequence[Clause], points: Sequence[str]) -> Iterator[Result]:
    for clause in clauses:
        for point in ("",) if clause.at is None else filter(clause.at, points):
            yield _one(subject, clause, point)


def _one(subject: Subject, clause: Clause, point: str) -> Result:
    case, instrument = subject.case.title, subject.instrument()
    reason = instrument.missing.get(point) or instrument.exempt.get(clause.name)
    if reason:
        return Result(case, clause.name, point, "not applicable", note=reason)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found = clause.check(subject, point) if point else clause.check(subject)
        except RAISED as error:
            subject.renew()
            return Result(case, clause.name, point, "fails", note=f"{type(error).__name__}: {_short(error)}")
    if found.holds:
        return Result(case, clause.name, point, "holds", found.deviation, found.allowed, found.note)
    subject.renew()  # so that what one check broke is not counted by the next
    said = [f"it warns: {_short(warning.message)}" for warning in warned[:1]]
    note = "; ".join([found.note, *said] if found.note else said)
    return Result(case, clause.name, point, "fails", found.deviation, found.allowed, note)


def _short(message: object) -> str:
    return shorten((str(message).strip().splitlines() or [""])[0], 110, placeholder=" …")
