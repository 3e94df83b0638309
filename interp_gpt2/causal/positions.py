"""Where an edit acts: at one hook point, and at absolute positions, the same in one pass and while text is generated."""

import operator
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from interp_gpt2.causal.patch import HEAD_POINTS, SQUARE_POINTS
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, EditError
from interp_gpt2.hooks import Names, Site, resolve

Where = int | slice | Sequence[int] | Tensor | None  # None: everywhere


def checked_positions(positions: Where, n_pos: int) -> slice | tuple[int, ...] | None:
    """The same positions, none negative, for texts of at most `n_pos` tokens; a slice may be open at its end.

    Raises AnalysisError for positions that no such text has, and for none at all. Negative ones are refused: where a text
    ends is not known before it has, and differs between the texts of a batch.
    """
    if positions is None:
        return None
    if isinstance(positions, slice):
        start, stop, step = positions.start or 0, positions.stop, positions.step or 1
        whole = all(type(part) is int for part in (start, step)) and (stop is None or type(stop) is int)
        if not whole or start < 0 or step < 1 or start >= n_pos or (stop is not None and stop <= start):
            raise AnalysisError(f"{positions} holds none of the positions 0 to {n_pos - 1}; count from the start of the text")
        return slice(start, stop, step)
    given = positions.tolist() if isinstance(positions, Tensor) else positions
    given = given if isinstance(given, Sequence) else [given]
    try:
        found = tuple(operator.index(pos) for pos in given)
    except TypeError:
        found, given = (), [True]
    if any(isinstance(pos, bool) for pos in given):  # a mask would be read as positions 0 and 1
        raise AnalysisError(f"positions are whole numbers, a slice of them, or None for all; got {positions!r}")
    if not found:
        raise AnalysisError("no positions were named; None means all of them")
    if wrong := [pos for pos in found if not 0 <= pos < n_pos]:
        hint = f"; the last of {n_pos} tokens is {n_pos - 1}" if wrong[0] < 0 else ""
        raise AnalysisError(f"there is no position {wrong[0]}: positions are 0 to {n_pos - 1}{hint}")
    return tuple(sorted(set(found)))


def chosen_positions(positions: slice | tuple[int, ...] | None, site: Site) -> Bool[Tensor, "*batch pos"] | None:
    """Which tokens of this pass stand at checked positions; None for all of them.

    Raises EditError if a pass that begins at the start of the texts lacks a position that was named: such an edit would
    do nothing without a word. (A slice takes what there is of it.)
    """
    if positions is None:
        return None
    at = site.positions
    if isinstance(positions, slice):
        stop = int(at.max()) + 1 if positions.stop is None else positions.stop
        return (at >= positions.start) & (at < stop) & ((at - positions.start) % positions.step == 0)
    shortest = int(at.amax(-1).min())
    if int(at.min()) == 0 and positions[-1] > shortest:
        raise EditError(
            f"the edit at {site.name!r} is for position {positions[-1]}, and a text of this pass ends at {shortest}; "
            f"slice({positions[-1]}, None) acts there once there are such tokens"
        )
    return torch.isin(at, torch.tensor(positions, device=at.device))


def stream_point(config: GPT2Config, names: Names) -> str:
    """The one hook point that `names` stands for, of shape (batch, pos, d). Raises AnalysisError for others."""
    found = resolve(names, config)
    if len(found) != 1:
        raise AnalysisError(f"{names!r} stands for {len(found)} hook points; name one, such as ('resid_post', 6)")
    (name,) = found
    leaf = name.rpartition(".")[2]
    if leaf in (*HEAD_POINTS, *SQUARE_POINTS, "scale", "out"):
        raise AnalysisError(f"{name!r} is not (batch, pos, d); take a stream, 'attn_out', 'mlp_out' or a layer's 'post'")
    return name
