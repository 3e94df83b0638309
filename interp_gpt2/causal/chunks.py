"""Cases in batches that fit in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from interp_gpt2.causal.base_run import BaseRun
from interp_gpt2.causal.entries import Case
from interp_gpt2.errors import AnalysisError

ROWS_ON_CPU = 2048  # in larger batches, what a layer computes no longer stays in the processor's cache


@dataclass(frozen=True, eq=False)
class Chunk:
    """Cases to be run together, and the bytes that takes, as estimated."""

    cases: list[Case]
    n_bytes: int


def chunks(cases: Sequence[Case], base: BaseRun, budget: int, *, whole_vocabulary: bool, whole_cells: bool) -> list[Chunk]:
    """The cases in order of where they start, in batches of at most `budget` bytes; with `whole_cells`, of whole cells.

    Raises AnalysisError for a budget that does not hold the largest of them.
    """
    most_rows = ROWS_ON_CPU if base.tokens.device.type == "cpu" else 2**31
    units: list[list[Case]] = []
    for case in sorted(cases, key=lambda case: (case.start, case.cell, case.pair)):
        if whole_cells and units and units[-1][0].cell == case.cell:
            units[-1].append(case)
        else:
            units.append([case])
    found: list[Chunk] = []
    n_rows = 0
    for unit in units:
        rows = sum(base.tokens.shape[1] - case.first for case in unit)
        n_bytes = sum(bytes_of(case, base, whole_vocabulary and not whole_cells) for case in unit)
        fixed = len(base.tokens) * base.tokens.shape[1] * base.model.config.d_vocab * 8 if whole_cells else 0
        if n_bytes + fixed > budget:
            raise AnalysisError(
                f"one intervention takes about {(n_bytes + fixed) / 2**20:.0f} MiB, which the budget of {budget / 2**20:.0f} MiB "
                "does not hold; give more, or fewer pairs at once"
            )
        if not found or n_rows + rows > most_rows or found[-1].n_bytes + n_bytes > budget:
            found.append(Chunk([], fixed))
            n_rows = 0
        n_rows += rows
        found[-1] = Chunk([*found[-1].cases, *unit], found[-1].n_bytes + n_bytes)
    return found


def bytes_of(case: Case, base: BaseRun, whole_vocabulary: bool) -> int:
    """What a case takes at most: keys, values and queries of all positions, and the rows that it changes in one layer."""
    config, n_pos = base.model.config, base.tokens.shape[1]
    width = config.n_heads * config.d_head
    square = config.n_heads * n_pos**2
    n_rows = n_pos - case.first
    elements = n_pos * (5 * width + config.d_model) + n_rows * (7 * config.d_model + 6 * width + 2 * config.d_mlp)
    if case.positions is None:  # a whole block with its pattern
        elements += 4 * square + n_pos * (6 * config.d_model + 4 * width + 2 * config.d_mlp)
    elif case.patches[0].keys is not None:
        elements += 3 * square
    if whole_vocabulary:
        elements += 4 * config.d_vocab
    return elements * base.logits.element_size()
