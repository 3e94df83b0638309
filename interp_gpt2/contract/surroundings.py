"""Checks of what surrounds a pass: what is refused, torch.compile, threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from interp_gpt2.contract.finding import RAISED, Finding, count, farthest, side_by_side
from interp_gpt2.contract.instrument import Instrument
from interp_gpt2.contract.reading import FLOAT32
from interp_gpt2.contract.subject import Subject, deviation, scaled
from interp_gpt2.hooks import default_hook_points

# Held wrong ----------------------------------------------------------------------------------------------------------


def refuses_none(subject: Subject, point: str) -> Finding:
    return _refuses(subject, point, lambda value: None)


def refuses_shape(subject: Subject, point: str) -> Finding:
    """One sequence for two: the shape that broadcasting hides."""
    return _refuses(subject, point, lambda value: value[:1])


def refuses_dtype(subject: Subject, point: str) -> Finding:
    """Double precision, into which arithmetic silently promotes."""
    return _refuses(subject, point, lambda value: value.double())


def refuses_device(subject: Subject, point: str) -> Finding:
    return _refuses(subject, point, lambda value: value.to("meta"))


def _refuses(subject: Subject, point: str, edit: Callable) -> Finding:
    try:
        subject.instrument().edit(subject.tokens, {point: edit})
    except RAISED:
        return Finding(0.0)
    return Finding(1, 0, "accepted")


def tokens(subject: Subject) -> Finding:
    """Ids that are negative, too large or fractions; too many of them; on another device."""
    d_vocab, n_ctx = subject.config.d_vocab, subject.config.n_ctx
    wrong = {
        "a negative id": torch.tensor([[1, -1]]),
        "an id beyond the vocabulary": torch.tensor([[1, d_vocab]]),
        "ids that are floats": torch.tensor([[1.0, 2.0]]),
        "more tokens than n_ctx": torch.zeros(1, n_ctx + 1, dtype=torch.long),
        "tokens on another device": torch.zeros(1, 2, dtype=torch.long, device="meta"),
    }
    accepted = []
    for what, bad in wrong.items():
        try:
            subject.instrument().run(bad)
        except RAISED:
            continue
        accepted.append(what)
    return count(accepted, "accepted ")


# Threads -------------------------------------------------------------------------------------------------------------


def threads_reading(subject: Subject) -> Finding:
    return _threads(subject, [{}, {}, {}, {}])


def threads_editing(subject: Subject) -> Finding:
    """Four threads, and in each its own edit of the same hook point."""
    if not subject.config.n_layers:
        return Finding(0.0)
    return _threads(subject, [{"blocks.0.attn.z": lambda value, i=i: value * i} for i in range(4)])


def _threads(subject: Subject, edits: list[dict]) -> Finding:
    """Four threads at once, each with its own tokens, beside one thread alone.

    Counts calls that fail, which is an error or an activation that is not there, and calls whose values are wrong.
    """
    instrument = subject.instrument()
    names = sorted(default_hook_points(subject.config) - set(instrument.missing))
    inputs = [(subject.tokens + shift) % subject.config.d_vocab for shift in range(4)]
    alone = [instrument.record(text, names, edit) for text, edit in zip(inputs, edits, strict=True)]

    @torch.no_grad()
    def work(index: int) -> tuple[int, int]:
        failed = wrong = 0
        for _ in range(subject.calls):
            try:
                logits, seen = instrument.record(inputs[index], names, edits[index])
                pairs = [("the logits", logits, alone[index][0]), *side_by_side(seen, alone[index][1])]
            except RAISED:
                failed += 1
            else:
                wrong += not all(deviation(value, expected) <= FLOAT32 for _, value, expected in pairs)
        return failed, wrong

    with ThreadPoolExecutor(4) as pool:
        failed, wrong = (sum(counts) for counts in zip(*pool.map(work, range(4)), strict=True))
    note = f"{failed} failed and {wrong} were wrong of {4 * subject.calls}" if failed or wrong else ""
    return Finding(failed + wrong, 0, note)


# torch.compile -------------------------------------------------------------------------------------------------------


class _Counting:
    """A backend that counts the graphs it is given. "aot_eager" traces forward and backward and needs no C++ compiler."""

    def __init__(self, name: str = "aot_eager") -> None:
        self.compile, self.graphs = torch._dynamo.lookup_backend(name), 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        self.graphs += 1
        return self.compile(graph, inputs)


def compiled(subject: Subject) -> Finding:
    """As one graph (fullgraph=True): plain, everything recorded, plain again; with gradients and without."""
    pairs = []
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            eager, instrument = subject.instrument(), _compiled(subject, _Counting())
            logits, seen = eager.record(subject.tokens)
            pairs.append(("the logits", instrument.run(subject.tokens), subject.plain))
            found_logits, found = instrument.record(subject.tokens)
            pairs.append(("the logits of a recorded pass", found_logits, logits))
            pairs += side_by_side(found, seen)
            pairs.append(("the logits after a recorded pass", instrument.run(subject.tokens), subject.plain))
    return farthest(pairs, FLOAT32)


def compiled_edits(subject: Subject) -> Finding:
    """Edits that come after compilation fire at every hook point, and everything recorded beside them is as in eager mode."""
    eager, instrument, pairs = subject.instrument(), _compiled(subject, _Counting()), []
    instrument.run(subject.tokens)
    for edited in _together(subject):
        logits, seen = eager.record(subject.tokens, None, dict.fromkeys(edited, scaled))
        found_logits, found = instrument.record(subject.tokens, None, dict.fromkeys(edited, scaled))
        pairs += side_by_side(found, seen)
        pairs.append(("the logits", found_logits, logits))
    return farthest(pairs, 10 * FLOAT32)  # edits of every scale at once multiply rounding


def _together(subject: Subject) -> list[list[str]]:
    """Hook points in groups that can be edited in one pass: the split inputs replace each other and the shared ln1."""
    default = default_hook_points(subject.config)
    there = [point for point in subject.points if point not in subject.instrument().missing]
    groups = [
        [point for point in there if point in default],
        [point for point in there if point.endswith((".q_input", ".k_input", ".v_input", ".mlp_in", ".result"))],
        [point for point in there if point.endswith(".attn_in")],
    ]
    return [group for group in groups if group]


def compilations(subject: Subject) -> Finding:
    """Counts those that are too many or too few, in the grad mode that has more of them."""
    counts = []
    for grad in (False, True):
        backend = _Counting()
        with torch.set_grad_enabled(grad):
            instrument = _compiled(subject, backend)
            for _ in range(2):
                instrument.run(subject.tokens)
                side_by_side(instrument.record(subject.tokens)[1], subject.instrument().record(subject.tokens)[1])
        counts.append(backend.graphs)
    return Finding(max(abs(n - 2) for n in counts), 0, f"{counts[0]} and {counts[1]} graphs" if counts != [2, 2] else "")


def _compiled(subject: Subject, backend: _Counting) -> Instrument:
    torch._dynamo.reset()
    instrument = subject.fresh()
    instrument.compile(backend)
    return instrument
