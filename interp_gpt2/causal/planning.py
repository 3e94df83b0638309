"""What a sweep has to run: the interventions that change something on which the metric depends."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp_gpt2.causal.base_run import BaseRun
from interp_gpt2.causal.entries import Case, takes_short_way
from interp_gpt2.causal.patch import END, PlacedPatch


@dataclass(frozen=True, eq=False)
class Planning:
    """Compares what patches put in with what the base run has there; `last` (pair,) is the last position that matters."""

    base: BaseRun
    source: Mapping[str, Tensor] | None
    last: Int[Tensor, "pair"]
    _differs: dict[tuple[str, int, bool], Tensor] = field(default_factory=dict, init=False)

    def cases(self, cells: Sequence[Sequence[PlacedPatch]]) -> tuple[list[Case], Bool[Tensor, "cell pair"]]:
        """A case for each cell and pair in which something differs that the metric depends on; and where nothing does."""
        found = []
        skipped = torch.ones(len(cells), len(self.last), dtype=torch.bool)
        for number, cell in enumerate(map(tuple, cells)):
            if not cell:
                continue
            changes = [self.changes(patch) for patch in cell]
            skipped[number] = ~torch.stack([change.any(1) for change in changes]).any(0)
            pairs = (~skipped[number]).nonzero()[:, 0]
            if takes_short_way(cell):
                change, positions = changes[0][pairs], cell[0].positions
                first = positions[change.int().argmax(1)].tolist()
                each = _split(positions.expand(change.shape)[change].tolist(), change.sum(1).tolist())
            else:
                first = [min(int(patch.positions[0]) for patch in cell)] * len(pairs)
                each = [None] * len(pairs)
            found += [Case(number, pair, cell, at, where) for pair, at, where in zip(pairs.tolist(), first, each, strict=True)]
        return found, skipped

    def changes(self, patch: PlacedPatch) -> Bool[Tensor, "pair n"]:
        """At which of its positions the patch puts in something else than the base run has, as far as the metric goes."""
        whole = patch.keys is None and patch.neurons is None  # of a row, or of a head's row
        key = (patch.name, id(patch.value), whole)
        if key not in self._differs:
            base = self.base.cache[patch.name]
            differs = patch.source(base.shape, self.source).to(base) != base
            self._differs[key] = (differs.any(-1) if whole and differs.ndim > 2 else differs).cpu()
        differs = self._differs[key][(slice(None), *patch.index)]
        if patch.keys is not None:
            differs = differs.transpose(1, 2)  # (pair, head, query, key) to positions first
        differs = differs.reshape(*differs.shape[:2], -1).any(-1)
        return differs if patch.layer == END else differs & (patch.positions <= self.last[:, None])


def _split(positions: list[int], counts: list[int]) -> list[list[int]]:
    ends = list(itertools.accumulate(counts))
    return [positions[end - count : end] for end, count in zip(ends, counts, strict=True)]
