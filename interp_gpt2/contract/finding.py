"""What a check found, and how checks say it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from interp_gpt2.contract.subject import deviation

# What a library raises when it refuses or cannot do something. Interrupts are nobody's refusal.
RAISED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
BEGAN = "first at "


@dataclass(frozen=True)
class Finding:
    """A measured number beside the largest that keeps the promise. Where they count something, the note says what."""

    deviation: float
    allowed: float = 0.0
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.deviation <= self.allowed


def farthest(pairs: Iterable[tuple[str, Tensor, Tensor]], allowed: float) -> Finding:
    """The largest deviation among (name, value, expected); where there are several, the note names the first too large.

    In the order of the pass the first is where things went wrong, the others follow from it.
    """
    found = [(deviation(value, expected), name) for name, value, expected in pairs]
    worst = max((size for size, _ in found), default=0.0)
    first = next((name for size, name in found if not size <= allowed), None)
    return Finding(worst, allowed, "" if first is None or len(found) == 1 else f"{BEGAN}{first}")


def side_by_side(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[tuple[str, Tensor, Tensor]]:
    """Names with both values. Raises LookupError when something expected was not recorded at all."""
    lacking = [name for name in expected if name not in found]
    if lacking:
        raise LookupError(f"{len(lacking)} of {len(expected)} activations were not recorded, {lacking[0]} among them")
    return [(name, found[name], value) for name, value in expected.items()]


def unequal(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names whose tensors are not the same to the bit, in the order of the pass."""
    return [name for name in before if name not in after or not before[name].equal(after[name])]


def count(wrong: list[str], what: str = "") -> Finding:
    """How many went wrong, where none may; the note names the first few."""
    named = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    return Finding(len(wrong), 0, f"{what}{named}" if wrong else "")
