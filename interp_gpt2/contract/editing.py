"""Checks of what an edit does, and of what it leaves alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from interp_gpt2.contract.finding import RAISED, Finding, count, farthest, unequal
from interp_gpt2.contract.reading import FLOAT32, FLOAT64
from interp_gpt2.contract.subject import Subject, deviation, identity, moved, nudged, scaled, scaled_in_place, zero

VISIBLE = 1e-4  # of 1 + magnitude: a change that float32 cannot hide


def identity_edit(subject: Subject, point: str) -> Finding:
    return farthest([("the logits", subject.instrument().edit(subject.tokens, {point: identity}), subject.plain)], FLOAT32)


def edited_then_recorded(subject: Subject, point: str) -> Finding:
    """An edit is given what a plain pass records there; what is recorded is what the edit returned, to the bit."""
    instrument, given, returned = subject.instrument(), [], []

    def edit(value: Tensor) -> Tensor:
        given.append(value.clone())
        returned.append(scaled(value))
        return returned[-1].clone()

    _, plain = instrument.record(subject.tokens, [point])
    _, seen = instrument.record(subject.tokens, [point], {point: edit})
    if len(given) != 1:
        return Finding(len(given) - 1 if given else 1, 0, f"the edit was called {len(given)} times")
    if not seen[point].equal(returned[0]):
        return Finding(deviation(seen[point], returned[0]), 0, "recorded is not what the edit returned")
    return farthest([("what the edit was given", given[0], plain[point])], FLOAT32)


def causal(subject: Subject, point: str) -> Finding:
    """Against identity edits at the same point, to the bit: what by definition does not depend on the edited entry."""
    before, after = _nudged(subject, point)
    wrong = []
    for name, may in _by_definition(subject, point, least=0.0).items():
        if name in before and (moved(name, before[name], after[name]) & ~may).any():
            wrong.append(name)
    return count(wrong, "changed ")


def effective(subject: Subject, point: str) -> Finding:
    """Everything that by definition changes visibly does change, at the positions where it does."""
    before, after = _nudged(subject, point)
    wrong = []
    for name, must in _by_definition(subject, point, least=VISIBLE).items():
        if name in before and (must & ~moved(name, before[name], after[name])).any():
            wrong.append(name)
    return count(wrong, "did not change ")


def _nudged(subject: Subject, point: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was recorded, and the logits, with an identity edit and with one entry changed."""
    found = []
    for edit in (identity, nudged(point, subject.here)):
        logits, seen = subject.instrument().record(subject.tokens, None, {point: edit})
        found.append(seen | {"the logits": logits})
    return found[0], found[1]


def _by_definition(subject: Subject, point: str, least: float) -> dict[str, Tensor]:
    """Where each activation differs, (batch, pos), when the definition is edited so."""
    same, changed = subject.by_hand({point: identity}), subject.by_hand({point: nudged(point, subject.here)})
    found = {name: moved(name, same[name], changed[name], least) for name in same}
    return found | {"the logits": found["unembed.out"]}


def as_by_hand(subject: Subject, point: str) -> Finding:
    """In float64. Points that differ from the definition without any edit are left out: another clause has them."""
    logits, seen = subject.instrument(torch.float64).record(subject.tokens, None, {point: scaled})
    expected, known = subject.by_hand({point: scaled}), _known(subject)
    pairs = [(name, seen[name], expected[name]) for name in expected if name in seen and name not in known]
    return farthest([*pairs, ("the logits", logits, expected["unembed.out"])], FLOAT64)


def _known(subject: Subject) -> set[str]:
    _, seen = subject.instrument(torch.float64).record(subject.tokens)
    expected = subject.by_hand_in(torch.float64)
    return {name for name, value in seen.items() if not deviation(value, expected[name]) <= FLOAT64}


def zeroing_removes(subject: Subject, point: str) -> Finding:
    """In float64, beside the definition with the part's weights at zero."""
    logits = subject.instrument(torch.float64).edit(subject.tokens, {point: zero})
    return farthest([("the logits", logits, subject.by_hand(removed=point)["unembed.out"])], FLOAT64)


def in_place(subject: Subject, point: str) -> Finding:
    """To the bit, with gradients and without."""
    instrument, pairs = subject.instrument(), []
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            returned = instrument.edit(subject.tokens, {point: scaled})
            changed = instrument.edit(subject.tokens, {point: scaled_in_place})
        pairs.append(("the logits with gradients" if grad else "the logits", changed, returned))
    return farthest(pairs, 0)


def contained(subject: Subject, point: str) -> Finding:
    """An edit in place changes no weight, nothing recorded earlier, and upstream of itself nothing in its own pass."""
    instrument = subject.instrument()
    weights = {str(i): weight.clone() for i, weight in enumerate(instrument.weights())}
    _, earlier = instrument.record(subject.tokens)
    kept = {name: value.clone() for name, value in earlier.items()}
    _, returned = instrument.record(subject.tokens, None, {point: scaled})
    _, changed = instrument.record(subject.tokens, None, {point: scaled_in_place})
    wrong = [f"the weights ({name})" for name in unequal(weights, {str(i): w for i, w in enumerate(instrument.weights())})]
    wrong += [f"{name} of an earlier pass" for name in unequal(kept, earlier)]
    wrong += [f"{name} in the same pass" for name in unequal(returned, changed)]
    return count(wrong, "changed ")


def no_future(subject: Subject, point: str) -> Finding:
    """Everything attends to everything, by an edit; then the last token changes. The edit may also be refused."""
    changed = subject.tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % subject.config.d_vocab

    def look_ahead(value: Tensor) -> Tensor:
        return torch.full_like(value, 0.0 if point.endswith(".attn_scores") else 1 / value.shape[-1])

    try:
        one, other = (subject.instrument().edit(tokens, {point: look_ahead}) for tokens in (subject.tokens, changed))
    except RAISED:
        return Finding(0.0)
    return farthest([("logits before the last token", other[:, :-1], one[:, :-1])], 0)


# What is left behind -------------------------------------------------------------------------------------------------


class _Planted(BaseException):
    """Raised inside an edit. Not an Exception: Ctrl-C is not one either."""


def one_call(subject: Subject, point: str) -> Finding:
    def edited() -> None:
        subject.instrument().edit(subject.tokens, {point: scaled})
        subject.instrument().record(subject.tokens, [point], {point: scaled})

    return _leaves_nothing(subject, edited)


def exceptions(subject: Subject, point: str) -> Finding:
    """Also one that is raised after the value has been overwritten."""

    def fail(value: Tensor) -> Tensor:
        value.zero_()
        raise _Planted

    def failing() -> None:
        for attempt in (
            lambda: subject.instrument().edit(subject.tokens, {point: fail}),
            lambda: subject.instrument().record(subject.tokens, None, {point: fail}),
        ):
            try:
                attempt()
            except _Planted:
                continue
            raise RuntimeError("an exception inside an edit did not come out")

    return _leaves_nothing(subject, failing)


def _leaves_nothing(subject: Subject, action: Callable[[], None]) -> Finding:
    """Logits, records, weights and hooks are the same to the bit before and after."""
    before = _state(subject)
    action()
    return count(unequal(before, _state(subject)), "other than before: ")


def _state(subject: Subject) -> dict[str, Tensor]:
    instrument = subject.instrument()
    logits, seen = instrument.record(subject.tokens)
    state = {"the logits": instrument.run(subject.tokens), "the logits of a recorded pass": logits, **seen}
    state |= {f"weight {i}": weight.clone() for i, weight in enumerate(instrument.weights())}
    return state | {"the number of hooks": torch.tensor(instrument.n_hooks())}
