"""Where interventions enter a pass: the rows that a patch changes first.

Single patches at the common hook points take a short way, `enter`: only what follows them within their block is computed.
Everything else, and several patches at once, goes through `rerun`, which runs whole blocks with the patches as edits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp_gpt2.causal.base_run import BESIDE
from interp_gpt2.causal.patch import END, PlacedPatch
from interp_gpt2.causal.propagation import Propagation, Rows
from interp_gpt2.hooks import Hooks, Site
from interp_gpt2.model import refuse_unseen

Source = Mapping[str, Tensor] | None
STAGES = {
    "resid_pre": 0, "q": 1, "k": 1, "v": 1, "z": 1, "pattern": 1, "attn_out": 1, "resid_mid": 1,
    "pre": 2, "post": 2, "mlp_out": 2, "resid_post": 2,
}  # fmt: skip
PRE, MID, POST = range(3)
assert STAGES.keys() == BESIDE.keys()


@dataclass(frozen=True, eq=False)
class Case:
    """One intervention on one pair, the first position that it can change, and those that its only patch changes itself.

    `positions` is None where there are several patches, or one that takes the long way. The cases of a cell share `patches`.
    """

    cell: int
    pair: int
    patches: tuple[PlacedPatch, ...]
    first: int
    positions: Sequence[int] | None

    @property
    def start(self) -> tuple[int, int]:
        """Layer and stage at which it enters the pass."""
        layer = min(patch.layer for patch in self.patches)
        return layer, PRE if self.positions is None else STAGES[self.patches[0].leaf]


def takes_short_way(patches: Sequence[PlacedPatch]) -> bool:
    return len(patches) == 1 and patches[0].leaf in STAGES and patches[0].name.startswith("blocks.")


def enter(run: Propagation, ids: Sequence[int], cases: Sequence[Case], source: Source) -> Rows:
    """The rows that these cases change first: streams at the stage of their hook point, which they share."""
    name, leaf, layer = cases[0].patches[0].name, cases[0].patches[0].leaf, cases[0].patches[0].layer
    device = run.pair.device
    counts = torch.tensor([len(case.positions) for case in cases])
    of = torch.arange(len(cases)).repeat_interleave(counts).to(device)
    pos = torch.tensor([at for case in cases for at in case.positions], device=device)
    rows = Rows(torch.tensor(ids, device=device)[of], pos, of)
    pair = run.pair[rows.case]
    base = run.base.cache[name]
    patches = list({id(case.patches): case.patches[0] for case in cases}.values())
    number = {id(patch): at for at, patch in enumerate(patches)}
    which = torch.tensor([number[id(case.patches[0])] for case in cases], device=device)[of]
    rows = rows.with_value(_patched(base, pair, pos, which, patches, source))
    return _ENTRIES.get(leaf, _stream)(run, layer, leaf, rows, _heads(patches, base, which))


def _patched(base: Tensor, pair: Tensor, pos: Tensor, of: Tensor, patches: Sequence[PlacedPatch], source: Source) -> Tensor:
    """The activation at the rows, each with the piece of its patch, patches[of], replaced."""
    square = patches[0].keys is not None
    rows = base[pair, :, pos] if square else base[pair, pos]  # a square one: (row, head, key)
    wanted = torch.empty_like(rows)
    kinds = {id(patch.value): patch for patch in patches}
    order = {value: number for number, value in enumerate(kinds)}
    kind = torch.tensor([order[id(patch.value)] for patch in patches], device=of.device)[of]
    for number, patch in enumerate(kinds.values()):
        mine = slice(None) if len(kinds) == 1 else kind == number
        given = patch.source(base.shape, source).to(base.device)  # means and kept caches may be on the CPU
        wanted[mine] = (given[pair[mine], :, pos[mine]] if square else given[pair[mine], pos[mine]]).to(rows)
    chosen = _chosen(patches, base)
    return wanted if chosen is None else torch.where(chosen.to(of.device)[of], wanted, rows)


def _chosen(patches: Sequence[PlacedPatch], base: Tensor) -> Tensor | None:
    """What of a row each patch replaces, broadcasting to (patch, ...); None if all of it."""
    square = patches[0].keys is not None
    shape = (base.shape[1], base.shape[3]) if square else tuple(base.shape[2:])
    axes = [(0, [p.heads for p in patches]), (1, [p.keys for p in patches])] if square else []
    axes += [(0, [p.heads for p in patches])] if not square and patches[0].heads is not None else []
    axes += [(len(shape) - 1, [p.neurons for p in patches])] if not square else []
    chosen = None
    for axis, which in axes:
        if all(indices is None or len(indices) == shape[axis] for indices in which):
            continue
        mask = torch.zeros(len(patches), shape[axis], dtype=torch.bool)
        for number, indices in enumerate(which):
            mask[number, slice(None) if indices is None else indices] = True
        mask = mask.view(-1, *[shape[axis] if at == axis else 1 for at in range(len(shape))])
        chosen = mask if chosen is None else chosen & mask
    return chosen


def _heads(patches: Sequence[PlacedPatch], base: Tensor, of: Tensor) -> Tensor | None:
    """(row, head, 1), which heads patches[of] are of; None where there are no heads, or all are."""
    if patches[0].heads is None:
        return None
    n_heads = base.shape[1] if patches[0].keys is not None else base.shape[2]
    mask = torch.zeros(len(patches), n_heads, 1, dtype=torch.bool)
    for number, patch in enumerate(patches):
        mask[number, patch.heads] = True
    return None if bool(mask.all()) else mask.to(of.device)[of]


# What follows a patch within its block ----------------------------------------------------------------------------------


def _stream(run: Propagation, layer: int, leaf: str, rows: Rows, heads: Tensor | None) -> Rows:
    return rows


def _attn_out(run: Propagation, layer: int, leaf: str, rows: Rows, heads: Tensor | None) -> Rows:
    return rows.with_value(run.base.stream(layer)[run.pair[rows.case], rows.pos] + rows.value)


def _z(run: Propagation, layer: int, leaf: str, rows: Rows, heads: Tensor | None) -> Rows:
    return run.past_attention(layer, rows, rows.value)


def _qkv(run: Propagation, layer: int, leaf: str, rows: Rows, heads: Tensor | None) -> Rows:
    ids, local = torch.unique_consecutive(rows.case, return_inverse=True)
    if leaf == "q":
        out, of = rows, local
        if run.only_last and layer == len(run.base.model.blocks) - 1:
            seen = rows.pos == run.last[rows.case]
            out, of = rows.where(seen), local[seen]
        if not len(out.case):
            return out
    else:
        out, of = run.reached(layer, ids, local, rows.pos)
    parts = {name: rows.value if name == leaf else None for name in ("q", "k", "v")}
    z = run.attend(layer, ids, (of, out.pos), (local, rows.pos), **parts)
    return run.past_attention(layer, out, z)


def _pattern(run: Propagation, layer: int, leaf: str, rows: Rows, heads: Tensor | None) -> Rows:
    ids, local = torch.unique_consecutive(rows.case, return_inverse=True)
    start, stop = int(rows.pos.min()), int(rows.pos.max()) + 1
    seen = run.seen(rows)
    pattern = rows.value.new_zeros(len(ids), stop - start, *rows.value.shape[1:])
    pattern[local, rows.pos - start] = refuse_unseen(rows.value, seen, ~seen.any(-1, keepdim=True))
    values = run.base.at("v", layer)[run.pair[ids]]  # (case, key, head, d_head)
    z = torch.einsum("cqhk,ckhe->cqhe", pattern, values)[local, rows.pos - start]
    if heads is not None:  # the others attend as they did
        z = torch.where(heads, z, run.base.at("z", layer)[run.pair[rows.case], rows.pos])
    return run.past_attention(layer, rows, z)


def _pre(run: Propagation, layer: int, leaf: str, rows: Rows, heads: Tensor | None) -> Rows:
    mlp = run.base.model.blocks[layer].mlp
    post = mlp.act(rows.value) if leaf == "pre" else rows.value
    return _mlp_out(run, layer, leaf, rows.with_value(mlp.proj(post)), heads)


def _mlp_out(run: Propagation, layer: int, leaf: str, rows: Rows, heads: Tensor | None) -> Rows:
    return rows.with_value(run.base.at("resid_mid", layer)[run.pair[rows.case], rows.pos] + rows.value)


_ENTRIES: dict[str, Callable[[Propagation, int, str, Rows, Tensor | None], Rows]] = {
    "attn_out": _attn_out, "z": _z, "q": _qkv, "k": _qkv, "v": _qkv, "pattern": _pattern, "pre": _pre, "post": _pre,
    "mlp_out": _mlp_out,
}  # fmt: skip


# Whole blocks, with the patches as edits --------------------------------------------------------------------------------


def rerun(run: Propagation, layer: int, rows: Rows | None, ids: Sequence[int], cases: Sequence[Case], source: Source) -> Rows:
    """The streams after a layer (-1: the embeddings) of cases that have patches there, all their positions from the first on.

    `rows` are their streams before it, as far as they differ from the base run's.
    """
    model, pair = run.base.model, run.pair[ids]
    hooks = _hooks(run, [[p for p in case.patches if p.layer == layer] for case in cases], pair, source)
    if layer < 0:
        mask = None if run.base.attention_mask is None else run.base.attention_mask[pair]
        stream = model.embed(run.base.tokens[pair], hooks, mask)
    else:
        visible = None if run.base.visible is None else run.base.visible[pair]
        stream = model.blocks[layer](dense(run, layer, rows, ids), hooks.at(f"blocks.{layer}"), visible)
    n_pos = stream.shape[1]
    first = torch.tensor([case.first for case in cases], device=pair.device)
    at = torch.arange(n_pos, device=pair.device)
    of, pos = ((at >= first[:, None]) & (at <= run.last[ids][:, None])).nonzero(as_tuple=True)
    return Rows(torch.as_tensor(ids, device=pair.device)[of], pos, stream[of, pos])


def logits_with_edits(run: Propagation, rows: Rows | None, ids: Sequence[int], cases: Sequence[Case], source: Source) -> Tensor:
    """The whole logits (case, pos, d_vocab) of cases with patches behind the last layer."""
    model = run.base.model
    hooks = _hooks(run, [[p for p in case.patches if p.layer == END] for case in cases], run.pair[ids], source)
    return model.unembed(dense(run, len(model.blocks), rows, ids), hooks)


def dense(run: Propagation, layer: int, rows: Rows | None, ids: Sequence[int]) -> Tensor:
    """Whole streams (case, pos, d_model) before a layer: the base run's, with the rows put in."""
    stream = run.base.stream(layer)[run.pair[ids]]
    if rows is not None:
        where = torch.full((len(run.pair),), -1, device=run.pair.device)
        where[ids] = torch.arange(len(ids), device=run.pair.device)
        stream[where[rows.case], rows.pos] = rows.value
    return stream


def _hooks(run: Propagation, patches: Sequence[Sequence[PlacedPatch]], pair: Tensor, source: Source) -> Hooks:
    edits: dict[str, list[tuple[int, PlacedPatch]]] = {}
    for number, mine in enumerate(patches):
        for patch in mine:
            edits.setdefault(patch.name, []).append((number, patch))
    positions = run.base.positions
    hooks = Hooks(edits={name: (_EachCase(tuple(found), pair, len(run.base.tokens), source),) for name, found in edits.items()})
    return hooks.for_positions(positions if positions.ndim == 1 else positions[pair])


@dataclass(frozen=True, eq=False)
class _EachCase:
    """An edit of a batch of cases in which each has patches of its own."""

    patches: tuple[tuple[int, PlacedPatch], ...]
    pair: Tensor
    n_pairs: int
    source: Source

    def __call__(self, value: Tensor, site: Site) -> Tensor:
        shape = (self.n_pairs, *value.shape[1:])
        for number, patch in self.patches:
            pair = int(self.pair[number])
            value[number] = patch.applied(value[number : number + 1], patch.source(shape, self.source)[pair : pair + 1])[0]
        return value
