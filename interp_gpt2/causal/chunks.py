"""Cases in batches that fit in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from interp_gpt2.causal.base_run import BaseRun
from interp_gpt2.causal.entries import Case
from interp_gpt2.causal.patch import END, SQUARE_POINTS, PlacedPatch
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError

ROWS_ON_CPU = 2048  # in larger batches, what a layer computes no longer stays in the processor's cache
ROWS_UNEMBEDDED = 128  # of several cells at once, where whole logits are computed: reading W_U is most of a few rows' time
BY_HEAD_AND_WIDE = ("attn_in", "q_input", "k_input", "v_input", "result")  # (pos, head, d_model)


@dataclass(eq=False)
class Chunk:
    """Cases to be run together, how many rows they change, and the bytes that takes, as estimated."""

    cases: list[Case]
    n_rows: int
    n_bytes: int


def chunks(cases: Sequence[Case], base: BaseRun, budget: int, *, whole_vocabulary: bool, whole_cells: bool) -> list[Chunk]:
    """The cases in order of where they start, in batches of at most `budget` bytes; with `whole_cells`, of whole cells.

    `whole_vocabulary`: every case ends in all logits of one position; with `whole_cells`, of all positions of all pairs.
    Raises AnalysisError for a budget that does not hold the largest of them.
    """
    most_rows = ROWS_ON_CPU if base.tokens.device.type == "cpu" else 2**31
    size_of = _sizes(base, whole_vocabulary and not whole_cells)
    found: list[Chunk] = []
    for unit in _units(cases, whole_cells):
        n_rows = sum(base.tokens.shape[1] - case.first for case in unit)
        n_bytes = sum(size_of(case.patches, case.first, case.positions is None) for case in unit)
        together = found[-1] if found else Chunk([], 0, 0)
        grown = together.n_bytes + n_bytes + _bytes_of_logits(base, together.n_rows + n_rows, whole_cells)
        if not found or together.n_rows + n_rows > most_rows or grown > budget:
            _require(n_bytes + _bytes_of_logits(base, n_rows, whole_cells), budget)
            found.append(Chunk([], 0, 0))
        found[-1].cases.extend(unit)
        found[-1].n_rows += n_rows
        found[-1].n_bytes += n_bytes
    for chunk in found:
        chunk.n_bytes += _bytes_of_logits(base, chunk.n_rows, whole_cells)
    return found


def _require(n_bytes: int, budget: int) -> None:
    if n_bytes > budget:
        raise AnalysisError(
            f"one intervention takes about {n_bytes / 2**20:.1f} MiB, which the budget of {budget / 2**20:.1f} MiB "
            "does not hold; give more, or fewer pairs at once"
        )


def _units(cases: Sequence[Case], whole_cells: bool) -> list[list[Case]]:
    """What must not be divided, in order of where it starts."""
    starts: dict[tuple[PlacedPatch, ...], tuple[int, int]] = {}
    for case in cases:
        if case.patches not in starts:
            starts[case.patches] = case.start
    ordered = sorted(cases, key=lambda case: (*starts[case.patches], case.cell, case.pair))
    return [list(unit) for _, unit in groupby(ordered, key=lambda case: (case.cell, None if whole_cells else case.pair))]


def _bytes_of_logits(base: BaseRun, n_rows: int, whole_cells: bool) -> int:
    """Whole logits of all pairs, once more for the metric's own use, and those of rows that are put into them."""
    if not whole_cells:
        return 0
    all_rows = base.tokens.numel()
    return (3 * all_rows + max(all_rows, min(n_rows, ROWS_UNEMBEDDED))) * base.model.config.d_vocab * base.logits.element_size()


def _sizes(base: BaseRun, whole_vocabulary: bool) -> Callable[[tuple[PlacedPatch, ...], int, bool], int]:
    """What a case takes at most, in bytes, by its patches, the first position that they change and whether whole blocks run."""
    config, n_pos = base.model.config, base.tokens.shape[1]
    width = config.n_heads * config.d_head

    @cache
    def size(patches: tuple[PlacedPatch, ...], first: int, whole_blocks: bool) -> int:
        n_rows = n_pos - first
        # Attention holds keys, values and queries of all positions, the MLP what it computes of the rows that change.
        attention = n_pos * (3 * width + config.d_model) + n_rows * (3 * config.d_model + 6 * width)
        carried = max(attention, n_rows * (4 * config.d_model + 2 * config.d_mlp))
        if whole_blocks:
            again = max(_rerun(patch, config, n_pos) for patch in patches)
            elements = again if all(patch.layer == END for patch in patches) else max(carried, again)
        else:
            elements = carried + (4 * n_rows * config.n_heads * n_pos if patches[0].keys is not None else 0)
        logits = 4 * config.d_model + 3 * config.d_vocab if whole_vocabulary else 0  # when everything else is done
        return max(elements, logits) * base.logits.element_size()

    return size


def _rerun(patch: PlacedPatch, config: GPT2Config, n_pos: int) -> int:
    """How many numbers a pass with this edit takes: through a block, the embeddings, or what follows the last block."""
    stream, width = n_pos * config.d_model, n_pos * config.n_heads * config.d_head
    if patch.layer == END:
        return 4 * stream + n_pos * config.d_vocab * (4 if patch.leaf == "out" else 1)
    if patch.layer < 0:
        return 4 * stream
    pattern = 4 * config.n_heads * n_pos**2 if patch.leaf in SQUARE_POINTS else 0
    by_head = 4 * stream * config.n_heads if patch.leaf in BY_HEAD_AND_WIDE else 0
    return 6 * stream + 5 * width + 2 * n_pos * config.d_mlp + pattern + by_head
