"""Analyses that read an activation store, where a model would compute what is there already.

What reads neurons reads `store.layers("mlp.post")` as it reads `neuron_layers(model, windows)`: `layer_probes`, AUROCs,
`layer_activity`; and `neuron_histories` takes a store in the place of windows. Here are the others: grids for linear and sparse
probes, top activations of whatever is stored, and a tuned lens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.activations.store import ActivationStore
from interp_gpt2.analysis.logit_lens import stream_hook_points
from interp_gpt2.analysis.neuron_probing import NeuronContexts, top_contexts
from interp_gpt2.analysis.tuned_lens import STANDARD, LensTraining, TunedLens, batches_of, fit_lens
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2

if TYPE_CHECKING:
    from interp_gpt2.analysis.probe_sets import ProbeSet


def probe_grid(
    store: ActivationStore, data: "ProbeSet", name: str | tuple, step: int | None = None
) -> Float[Tensor, "window pos ..."]:
    """A hook point's activations at a probe set's tokens, as `linear_probe` and `sparse_probes` take them; 0 at padding.

    Of a store of the set's own windows, `Texts.of(data.tokens, data.lengths, data.documents)`; float32, all in memory.
    Raises AnalysisError for a store of other tokens, and as `store.rows`.
    """
    windows = Windows.of_probe_set(data)
    if not torch.equal(store.columns["tokens"].long(), windows.tokens[windows.real].long()):
        raise AnalysisError(
            f"{store.path} holds activations of other tokens than the probe set's; store those: "
            "Texts.of(data.tokens, data.lengths, data.documents)"
        )
    rows = store.rows(name, step)
    grid = torch.zeros(*windows.tokens.shape, *rows.row_shape)
    grid[windows.real] = rows[:].float()
    return grid


def top_activations(
    store: ActivationStore, name: str | tuple, units: Sequence[int], step: int | None = None, k: int = 5, width: int = 32
) -> tuple[NeuronContexts, ...]:
    """The `k` windows of the store's texts on which each unit of a hook point is most active, with `width` tokens of each.

    `units` are places in the flattened row: neurons of mlp.post, directions of a stream, head * d_head + i of z. One reading of
    the hook point, a batch in memory and a number a token for each unit. Raises AnalysisError for a unit that is not there.
    """
    name, chosen = store.full_name(name), list(dict.fromkeys(units))
    n_units = torch.Size(store.hook_points[name]).numel()
    if not chosen or not 0 <= min(chosen) <= max(chosen) < n_units:
        raise AnalysisError(f"units {chosen[:8]} are not among those of {name}: it has {n_units}, from 0")
    windows = Windows.of_store(store)
    found, at = torch.empty(len(chosen), windows.n_tokens), 0
    for _, activations in store.batches(name, step):
        found[:, at : at + len(activations)] = activations.flatten(1)[:, chosen].float().T
        at += len(activations)
    if at < windows.n_tokens:
        raise AnalysisError(f"{store.path} is not finished: {at:,} of {windows.n_tokens:,} rows of {name} are there")
    return tuple(_contexts(name, unit, values, windows, (k, width)) for unit, values in zip(chosen, found, strict=True))


def _contexts(name: str, unit: int, values: Float[Tensor, "token"], windows: Windows, shown: tuple[int, int]) -> NeuronContexts:
    placed = torch.zeros(windows.tokens.shape)
    placed[windows.real] = values
    label = f"L{name.split('.')[1]}N{unit}" if name.endswith("mlp.post") else f"{name}[{unit}]"
    double = values.double()
    return NeuronContexts(label, top_contexts(placed, windows, *shown), float(double.mean()), float(double.std()), len(values))


def tuned_lens_of_store(
    store: ActivationStore, model: GPT2, step: int | None = None, training: LensTraining = STANDARD
) -> TunedLens:
    """`fit_tuned_lens` on a store's texts, with the streams read from disk: blocks.0.resid_pre and every resid_post.

    `model` is the one that was stored, for its final layer norm and unembedding. The lens is `fit_tuned_lens`'s but for the
    store's rounding. Judge it on other text than the store's. Raises StoreError for another model, HookNameError for a
    stream that is not stored, AnalysisError as `fit_tuned_lens`.
    """
    store.check(model, step)
    streams = [store.rows(name, step) for name in stream_hook_points(model.config.n_layers)]
    lengths = store.columns["lengths"].long()
    first = lengths.cumsum(0) - lengths

    def read(sequences: Tensor) -> Float[Tensor, "layer+1 pos d_model"]:
        rows = torch.cat([torch.arange(int(length)) + start for start, length in zip(first[sequences], lengths[sequences],
                                                                                      strict=True)])  # fmt: skip
        return torch.stack([stream[rows[: training.n_positions]].float() for stream in streams]).to(model.device)

    parts = batches_of(len(lengths), int(lengths.max()), training)
    return fit_lens(model, (read(part) for part in parts), training)
