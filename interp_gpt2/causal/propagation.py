"""From the place of an intervention to the logits, computing only what it changed.

An intervention leaves earlier positions and earlier layers as they were. What it changed travels as `Rows`: the streams at
some positions of some cases, one case for each intervention on each pair. A layer computes queries, keys and values of the
rows that changed, takes all other keys and values from the base run, and gives the rows that they reach.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.causal.base_run import BaseRun
from interp_gpt2.hooks import NO_HOOKS


@dataclass(frozen=True, eq=False)
class Rows:
    """Values of cases at positions; the rows of a case stand together, in the order of positions."""

    case: Int[Tensor, "row"]
    pos: Int[Tensor, "row"]
    value: Float[Tensor, "row ..."]

    @classmethod
    def of(cls, parts: Iterable["Rows"]) -> "Rows | None":
        """All of them, one after the other; None if there are none."""
        parts = [part for part in parts if part is not None and len(part.case)]
        if len(parts) < 2:
            return parts[0] if parts else None
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("case", "pos", "value")))

    def where(self, keep: Tensor) -> "Rows":
        return self if bool(keep.all()) else Rows(self.case[keep], self.pos[keep], self.value[keep])

    def with_value(self, value: Tensor) -> "Rows":
        return Rows(self.case, self.pos, value)


@dataclass(frozen=True, eq=False)
class Propagation:
    """Carries the rows of some cases through the layers of a base run.

    `pair` (case,) is whose prompt a case is, `last` (case,) the last position that the metric depends on. With `only_last`
    it depends on that position alone, and the last layer computes nothing else.
    """

    base: BaseRun
    pair: Int[Tensor, "case"]
    last: Int[Tensor, "case"]
    only_last: bool

    def attention(self, layer: int, rows: Rows) -> Rows:
        """The streams after attention, from those before a layer."""
        block = self.base.model.blocks[layer]
        ids, local = torch.unique_consecutive(rows.case, return_inverse=True)
        q, k, v = (part[0] for part in block.attn.project(block.ln1(rows.value)[None]))
        out, of = self.reached(layer, ids, local, rows.pos)
        z = self.attend(layer, ids, (of, out.pos), (local, rows.pos), q, k, v)
        if torch.equal(of, local) and torch.equal(out.pos, rows.pos):  # what is reached is what had changed
            before = rows.value
        else:
            start = int(out.pos.min())
            dense = self.base.stream(layer)[self.pair[ids], start:]
            inside = rows.pos >= start
            dense[local[inside], rows.pos[inside] - start] = rows.value[inside]
            before = dense[of, out.pos - start]
        return self.past_attention(layer, out, z, before)

    def past_attention(self, layer: int, rows: Rows, z: Tensor, before: Tensor | None = None) -> Rows:
        """The streams after attention at these rows, from the heads' outputs z (row, head, d_head)."""
        if before is None:
            before = self.base.stream(layer)[self.pair[rows.case], rows.pos]
        return rows.with_value(before + self.base.model.blocks[layer].attn.proj(z.flatten(1)))

    def mlp(self, layer: int, rows: Rows) -> Rows:
        """The streams after a layer, from those after its attention."""
        block = self.base.model.blocks[layer]
        if block.attn_only:
            return rows
        return rows.with_value(rows.value + block.mlp(block.ln2(rows.value), NO_HOOKS))

    def reached(self, layer: int, ids: Tensor, local: Tensor, pos: Tensor) -> tuple[Rows, Tensor]:
        """The rows (without values) of cases `ids` that a change at (local, pos) reaches through attention, and whose they are.

        They are all from the first changed position on, as far as the metric depends on them.
        """
        last = self.last[ids]
        if self.only_last and layer == len(self.base.model.blocks) - 1:
            of = torch.arange(len(ids), device=ids.device)
            return Rows(ids, last, ids), of
        n_pos = int(last.max()) + 1
        first = torch.full_like(last, n_pos).scatter_reduce_(0, local, pos, "amin")
        at = torch.arange(n_pos, device=pos.device)
        of, out = ((at >= first[:, None]) & (at <= last[:, None])).nonzero(as_tuple=True)
        return Rows(ids[of], out, of), of

    def attend(
        self,
        layer: int,
        ids: Tensor,
        out: tuple[Tensor, Tensor],
        changed: tuple[Tensor, Tensor],
        q: Tensor | None,
        k: Tensor | None,
        v: Tensor | None,
    ) -> Float[Tensor, "row head d_head"]:
        """z at the rows `out` = (case among ids, position), where rows `changed` have these queries, keys and values.

        None of q, k or v: as in the base run, as are all that have not changed.
        """
        (of, pos), (local, at), pair = out, changed, self.pair[ids]
        start, stop = int(pos.min()), int(pos.max()) + 1
        queries = self.base.at("q", layer)[pair, start:stop]
        if q is not None:
            inside = (at >= start) & (at < stop)
            queries[local[inside], at[inside] - start] = q[inside]
        shared = self._shared_keys(pair, int(at.min()), start, stop)
        keys, values = (
            self._replaced(self.base.at(name, layer), pair, shared, stop, local, at, new) for name, new in (("k", k), ("v", v))
        )
        if shared:
            before = (self.base.at(name, layer)[pair[0], :shared] for name in "kv")
            z = attend_in_two(self.base.model.blocks[layer].attn.scale, queries, *before, keys, values)
        else:
            visible = self.visible(pair, start, stop)
            z = self.base.model.blocks[layer].attn.attend_fused(queries, keys, values, NO_HOOKS, visible)
        return z[of, pos - start]

    def _replaced(
        self, base: Tensor, pair: Tensor, first: int, stop: int, local: Tensor, at: Tensor, new: Tensor | None
    ) -> Tensor:
        """What stands at the positions from `first` to `stop`, with the changed put in."""
        dense = base[pair, first:stop]
        if new is not None:
            inside = at < stop
            dense[local[inside], at[inside] - first] = new[inside]
        return dense

    def _shared_keys(self, pair: Tensor, changed: int, start: int, stop: int) -> int:
        """How many keys, from the first on, all cases read as they are in the base run; 0 where copying them is cheaper.

        A copy for each case is most of the work where few queries look back on a long prompt. Without it there are scores to
        be kept, which are smaller than keys and values only for few queries.
        """
        shared = min(changed, start)
        few = 3 * (stop - start) < 2 * self.base.model.config.d_head
        one_prompt = self.base.visible is None and bool((pair == pair[0]).all())
        return shared if few and one_prompt and 2 * shared > stop else 0

    def visible(self, pair: Tensor, start: int, stop: int) -> Tensor | None:
        """Which of the keys before `stop` the queries from `start` on see; None where plain causal attention says so."""
        if self.base.visible is not None:
            return self.base.visible[pair, :, start:stop, :stop]
        if start == 0 or start == stop - 1:
            return None
        return torch.ones(stop - start, stop, dtype=torch.bool, device=pair.device).tril(start)

    def seen(self, rows: Rows) -> Bool[Tensor, "row 1 key"]:
        """Which keys the queries at these rows see."""
        if self.base.visible is not None:
            return self.base.visible[self.pair[rows.case], :, rows.pos]
        return (torch.arange(self.base.tokens.shape[1], device=rows.pos.device) <= rows.pos[:, None])[:, None]


def attend_in_two(
    scale: float,
    q: Float[Tensor, "case query head d_head"],
    k_before: Float[Tensor, "shared head d_head"],
    v_before: Float[Tensor, "shared head d_head"],
    k: Float[Tensor, "case key head d_head"],
    v: Float[Tensor, "case key head d_head"],
) -> Float[Tensor, "case query head d_head"]:
    """Causal attention over keys that all cases share, and behind them each case's own, up to that of the last query."""
    n_shared, (n_cases, n_queries), n_keys = len(k_before), q.shape[:2], k.shape[1]
    q = q.permute(2, 0, 1, 3) * scale  # (head, case, query, d_head)
    before = (q.flatten(1, 2) @ k_before.permute(1, 2, 0)).unflatten(1, (n_cases, n_queries))
    own = q @ k.permute(2, 0, 3, 1)  # (head, case, query, key)
    unseen = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device).triu(n_keys - n_queries + 1)
    pattern = torch.cat([before, own.masked_fill_(unseen, -torch.inf)], -1).softmax(-1)
    z = (pattern[..., :n_shared].flatten(1, 2) @ v_before.transpose(0, 1)).unflatten(1, (n_cases, n_queries))
    return (z + pattern[..., n_shared:] @ v.permute(2, 0, 1, 3)).permute(1, 2, 0, 3)
