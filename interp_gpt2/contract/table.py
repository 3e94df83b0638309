"""What came of the checks: one result for each clause, model and hook point, and their summaries."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["holds", "fails", "not applicable"]


@dataclass(frozen=True)
class Result:
    """One check: `deviation` is what was measured and `allowed` the most that keeps the promise.

    `hook_point` is "" for promises about the whole model. Both numbers are None where the check does not apply or raised;
    the note says why.
    """

    case: str
    clause: str
    hook_point: str
    verdict: Verdict
    deviation: float | None = None
    allowed: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """A clause over all models and hook points. `worst` is the largest deviation among the checks that kept it."""

    clause: str
    holds: int
    fails: int
    not_applicable: int
    worst: float
    allowed: float | None


@dataclass(frozen=True)
class Table:
    """Everything that was checked on one instrument."""

    instrument: str
    results: tuple[Result, ...]

    @property
    def failed(self) -> tuple[Result, ...]:
        """The broken promises, to be asserted empty: `assert not check(MyInstrument).failed`."""
        return tuple(result for result in self.results if result.verdict == "fails")

    def of(self, clause: str) -> list[Result]:
        return [result for result in self.results if result.clause == clause]

    def summary(self) -> list[Summary]:
        """One for each clause, in their order."""
        return [_summary(clause, self.of(clause)) for clause in dict.fromkeys(result.clause for result in self.results)]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, which has no infinity: such a deviation is None beside what is allowed."""
        return {"instrument": self.instrument, "results": [_for_json(result) for result in self.results]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Table":
        """The table that `to_dict` gave."""
        return cls(values["instrument"], tuple(_from_json(result) for result in values["results"]))


def _for_json(result: Result) -> dict[str, Any]:
    values = asdict(result)
    return values | {"deviation": None} if values["deviation"] == float("inf") else values


def _from_json(values: dict[str, Any]) -> Result:
    measured = values["allowed"] is not None
    return Result(**(values | {"deviation": float("inf")} if measured and values["deviation"] is None else values))


def _summary(clause: str, results: Sequence[Result]) -> Summary:
    by = {verdict: [r for r in results if r.verdict == verdict] for verdict in ("holds", "fails", "not applicable")}
    worst = max((r.deviation for r in by["holds"] if r.deviation is not None), default=0.0)
    allowed = next((r.allowed for r in results if r.allowed is not None), None)
    return Summary(clause, len(by["holds"]), len(by["fails"]), len(by["not applicable"]), worst, allowed)


def kinds(results: Iterable[Result]) -> list[str]:
    """The kinds of hook point among results, without their layers: "blocks.1.attn.z" is "attn.z"."""
    return list(dict.fromkeys(kind_of(result.hook_point) for result in results))


def kind_of(hook_point: str) -> str:
    return hook_point.split(".", 2)[2] if hook_point.startswith("blocks.") else hook_point
