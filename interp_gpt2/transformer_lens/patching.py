"""Activation patching by TransformerLens's names: copy one piece of a clean run into a corrupted one, and measure.

`get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, metric)` and its kin: the metric of the logits for every
layer and position, head, or both.

These sweeps run on `causal.engine`, which computes only what each patch changes; the metric is called for the corrupted run
and for each patch that changes something. Where only whole passes are exact (hooks on the model, a setter of your own, a
cache of another shape), there is one pass for each number, as in TransformerLens.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.causal.engine import run_patches
from interp_gpt2.causal.patch import HEAD_POINTS, SQUARE_POINTS, Patch
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import canonical
from interp_gpt2.model import GPT2
from interp_gpt2.transformer_lens.activation_cache import ActivationCache
from interp_gpt2.transformer_lens.hook_points import HookPoint
from interp_gpt2.transformer_lens.hooked_transformer import HookedTransformer
from interp_gpt2.transformer_lens.utils import USE_DEFAULT_VALUE, get_act_name

if TYPE_CHECKING:
    import pandas as pd

Metric = Callable[[Tensor], Tensor]
PatchSetter = Callable[[Tensor, Sequence[int], Tensor], Tensor]  # (corrupted, index, clean) -> corrupted with the piece


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> "pd.DataFrame":
    """Every combination of 0 .. range - 1, the last column running fastest."""
    import pandas as pd

    return pd.DataFrame(list(itertools.product(*map(range, column_max_ranges))), columns=list(column_names))


def generic_activation_patch(
    model: HookedTransformer,
    corrupted_tokens: Int[Tensor, "batch pos"],
    clean_cache: ActivationCache,
    patching_metric: Metric,
    patch_setter: PatchSetter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: "pd.DataFrame | None" = None,
    return_index_df: bool = False,
) -> "Tensor | tuple[Tensor, pd.DataFrame]":
    """The metric after each patch: an axis for each of `index_axis_names`, or a number for each row of `index_df`.

    Axes are "layer" (always first), "pos", "src_pos", "dest_pos", "head" and "head_index".
    """
    if (index_axis_names is None) == (index_df is None):
        raise AnalysisError("pass either index_axis_names or index_df, which say what is patched")
    shape: tuple[int, ...] = (len(index_df),) if index_df is not None else ()
    if index_df is None:
        n_pos, n_heads = corrupted_tokens.shape[-1], model.cfg.n_heads
        sizes = {"layer": model.cfg.n_layers, "head": n_heads, "head_index": n_heads}
        sizes |= dict.fromkeys(("pos", "src_pos", "dest_pos"), n_pos)
        if unknown := [name for name in index_axis_names if name not in sizes]:
            raise AnalysisError(f"{unknown[0]!r} is not an axis to patch along; those are {', '.join(sizes)}")
        shape = tuple(sizes[name] for name in index_axis_names)
        index_df = make_df_from_ranges(shape, index_axis_names)
    indices = index_df.to_numpy().tolist()
    results = _by_the_engine(model, corrupted_tokens, clean_cache, patching_metric, patch_setter, activation_name, indices)
    if results is None:
        results = [
            _patched(model, corrupted_tokens, clean_cache, patching_metric, partial(patch_setter, index=index), activation_name)
            for index in indices
        ]
    output = torch.tensor(results, device=model.cfg.device).reshape(shape)
    return (output, index_df) if return_index_df else output


def _by_the_engine(
    model: HookedTransformer,
    tokens: Tensor,
    clean_cache: ActivationCache,
    metric: Metric,
    setter: PatchSetter,
    name: str,
    indices: Sequence[Sequence[int]],
) -> list[float] | None:
    """The metric after each patch; None where the engine would not give what whole passes give."""
    if not indices or not _is_plain(model):
        return None
    tokens, mask = model._read(tokens, USE_DEFAULT_VALUE)
    if not _copies(setter, name, clean_cache, tokens, indices):
        return None
    names = {layer: get_act_name(name, layer) for layer, *_ in indices}
    source = {canonical(full): clean_cache[full].to(tokens.device) for full in names.values()}
    cells = [[Patch(names[layer], **dict(zip(_PIECES[setter][0], piece, strict=True)))] for layer, *piece in indices]
    try:
        found = run_patches(model.model, tokens, cells, partial(_finite, metric), source, mask)
    except _NotFiniteError:
        return None
    if not found.complete:
        raise KeyboardInterrupt
    return found.values[:, 0].tolist()


def _is_plain(model: HookedTransformer) -> bool:
    """Nobody listens or drops anything in a pass of this model, and it is ours."""
    if type(model) is not HookedTransformer or type(model.model) is not GPT2:
        return False
    hooked = any(point.has_hooks() for point in model.hook_points())
    listening = any(part._forward_hooks or part._forward_pre_hooks for part in model.model.modules())
    dropping = model.model.training and model.model.config.dropout > 0
    return not (hooked or listening or dropping)


def _copies(setter: PatchSetter, name: str, cache: ActivationCache, tokens: Tensor, indices: Sequence[Sequence[int]]) -> bool:
    """Does the setter copy the same piece as a Patch of this hook point, from activations of these tokens?"""
    leaf = canonical(get_act_name(name, 0)).rpartition(".")[2]
    kind = SQUARE_POINTS if leaf in SQUARE_POINTS else HEAD_POINTS if leaf in HEAD_POINTS else ()
    axes, kinds = _PIECES.get(setter, ((), ()))
    if kind not in kinds or any(type(at) is not int for index in indices for at in index):
        return False
    found = [cache[get_act_name(name, layer)] for layer in {index[0] for index in indices}]
    n_pairs, n_pos = tokens.shape
    places = (2, 3) if kind is SQUARE_POINTS else (1,)
    return all(len(index) == 1 + len(axes) for index in indices) and all(
        value.ndim == (3 if not kind else 4) and len(value) in (1, n_pairs) and all(value.shape[at] == n_pos for at in places)
        for value in found
    )


class _NotFiniteError(AnalysisError):
    pass


def _finite(metric: Metric, logits: Tensor) -> float:
    value = float(metric(logits))
    if not math.isfinite(value):
        raise _NotFiniteError(f"the metric is {value}, which the engine refuses and TransformerLens does not")
    return value


def _patched(
    model: HookedTransformer, tokens: Tensor, clean_cache: ActivationCache, metric: Metric, setter: partial, name: str
) -> float:
    full_name = get_act_name(name, setter.keywords["index"][0])
    clean = clean_cache[full_name]

    def patch(value: Tensor, hook: HookPoint) -> Tensor:
        return setter(value, clean_activation=clean)

    return float(metric(model.run_with_hooks(tokens, fwd_hooks=[(full_name, patch)])))


# What is copied, by the index; the value is the hook's own copy and may be changed.


def layer_pos_patch_setter(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
    """index = (layer, pos), of activations (batch, pos, ...)."""
    _, pos = index
    corrupted_activation[:, pos] = clean_activation[:, pos]
    return corrupted_activation


def layer_pos_head_vector_patch_setter(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
    """index = (layer, pos, head), of q, k, v, z and result."""
    _, pos, head = index
    corrupted_activation[:, pos, head] = clean_activation[:, pos, head]
    return corrupted_activation


def layer_head_vector_patch_setter(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
    """index = (layer, head), of q, k, v, z and result at every position."""
    _, head = index
    corrupted_activation[:, :, head] = clean_activation[:, :, head]
    return corrupted_activation


def layer_head_pattern_patch_setter(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
    """index = (layer, head), of patterns and scores."""
    _, head = index
    corrupted_activation[:, head] = clean_activation[:, head]
    return corrupted_activation


def layer_head_pos_pattern_patch_setter(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
    """index = (layer, head, query), of patterns and scores."""
    _, head, query = index
    corrupted_activation[:, head, query] = clean_activation[:, head, query]
    return corrupted_activation


def layer_head_dest_src_pos_pattern_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """index = (layer, head, query, key), of patterns and scores."""
    _, head, query, key = index
    corrupted_activation[:, head, query, key] = clean_activation[:, head, query, key]
    return corrupted_activation


# Which piece each of them copies, as a Patch says it, and of which hook points: (batch, pos, ...), those with heads, squares.
_PIECES: dict[PatchSetter, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    layer_pos_patch_setter: (("positions",), ((), HEAD_POINTS)),
    layer_pos_head_vector_patch_setter: (("positions", "heads"), (HEAD_POINTS,)),
    layer_head_vector_patch_setter: (("heads",), (HEAD_POINTS,)),
    layer_head_pattern_patch_setter: (("heads",), (SQUARE_POINTS,)),
    layer_head_pos_pattern_patch_setter: (("heads", "positions"), (SQUARE_POINTS,)),
    layer_head_dest_src_pos_pattern_patch_setter: (("heads", "positions", "keys"), (SQUARE_POINTS,)),
}


def _patching(setter: PatchSetter, name: str, *axes: str) -> partial:
    return partial(generic_activation_patch, patch_setter=setter, activation_name=name, index_axis_names=axes)


get_act_patch_resid_pre = _patching(layer_pos_patch_setter, "resid_pre", "layer", "pos")
get_act_patch_resid_mid = _patching(layer_pos_patch_setter, "resid_mid", "layer", "pos")
get_act_patch_attn_out = _patching(layer_pos_patch_setter, "attn_out", "layer", "pos")
get_act_patch_mlp_out = _patching(layer_pos_patch_setter, "mlp_out", "layer", "pos")

get_act_patch_attn_head_out_by_pos = _patching(layer_pos_head_vector_patch_setter, "z", "layer", "pos", "head")
get_act_patch_attn_head_q_by_pos = _patching(layer_pos_head_vector_patch_setter, "q", "layer", "pos", "head")
get_act_patch_attn_head_k_by_pos = _patching(layer_pos_head_vector_patch_setter, "k", "layer", "pos", "head")
get_act_patch_attn_head_v_by_pos = _patching(layer_pos_head_vector_patch_setter, "v", "layer", "pos", "head")
get_act_patch_attn_head_pattern_by_pos = _patching(
    layer_head_pos_pattern_patch_setter, "pattern", "layer", "head_index", "dest_pos"
)
get_act_patch_attn_head_pattern_dest_src_pos = _patching(
    layer_head_dest_src_pos_pattern_patch_setter, "pattern", "layer", "head_index", "dest_pos", "src_pos"
)

get_act_patch_attn_head_out_all_pos = _patching(layer_head_vector_patch_setter, "z", "layer", "head")
get_act_patch_attn_head_q_all_pos = _patching(layer_head_vector_patch_setter, "q", "layer", "head")
get_act_patch_attn_head_k_all_pos = _patching(layer_head_vector_patch_setter, "k", "layer", "head")
get_act_patch_attn_head_v_all_pos = _patching(layer_head_vector_patch_setter, "v", "layer", "head")
get_act_patch_attn_head_pattern_all_pos = _patching(layer_head_pattern_patch_setter, "pattern", "layer", "head_index")


def get_act_patch_attn_head_all_pos_every(
    model: HookedTransformer, corrupted_tokens: Tensor, clean_cache: ActivationCache, metric: Metric
) -> Tensor:
    """(5, layer, head): outputs, queries, keys, values and patterns of every head, at all positions at once."""
    patches = (
        get_act_patch_attn_head_out_all_pos, get_act_patch_attn_head_q_all_pos, get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos, get_act_patch_attn_head_pattern_all_pos,
    )  # fmt: skip
    return torch.stack([patch(model, corrupted_tokens, clean_cache, metric) for patch in patches])


def get_act_patch_attn_head_by_pos_every(
    model: HookedTransformer, corrupted_tokens: Tensor, clean_cache: ActivationCache, metric: Metric
) -> Tensor:
    """(5, layer, pos, head): the same by position; of a pattern, the query's."""
    patches = (
        get_act_patch_attn_head_out_by_pos, get_act_patch_attn_head_q_by_pos, get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos,
    )  # fmt: skip
    found = [patch(model, corrupted_tokens, clean_cache, metric) for patch in patches]
    pattern = get_act_patch_attn_head_pattern_by_pos(model, corrupted_tokens, clean_cache, metric)
    return torch.stack([*found, pattern.transpose(1, 2)])


def get_act_patch_block_every(
    model: HookedTransformer, corrupted_tokens: Tensor, clean_cache: ActivationCache, metric: Metric
) -> Tensor:
    """(3, layer, pos): the stream before each block, and what its attention and its MLP add."""
    patches = (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)
    return torch.stack([patch(model, corrupted_tokens, clean_cache, metric) for patch in patches])
