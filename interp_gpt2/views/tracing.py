"""A causal trace to look at: what restoring each state brings back of what noise on the subject has taken away."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from interp_gpt2.errors import AnalysisError
from interp_gpt2.views.arrays import storable
from interp_gpt2.views.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interp_gpt2.causal.result import PatchingResult
    from interp_gpt2.causal.tracing import CausalTrace


def tracing_view(trace: "CausalTrace", labels: Sequence[str], title: str = "") -> View:
    """Layers by positions, each coloured by its share of the total effect: 0 as the corrupted run, 1 as the clean one.

    The page of `patching_view`. `labels` are the printable tokens of the vocabulary; a position of the subject, whose tokens
    were corrupted, is marked *. `.data` is the trace's own table, with effects in the metric's unit and their intervals.
    Raises AnalysisError if the labels are too few.
    """
    from interp_gpt2.views.patching import patching_view

    view = patching_view(as_patching(trace, labels), title or f"Causal tracing, {trace.point}")
    return replace(view, to_frame=replace(trace, measure=storable(trace.measure)).to_frame)


def tracing_heat_map(trace: "CausalTrace", labels: Sequence[str], title: str = "") -> "Figure":
    """The same for a paper: see `views.patching_figures.patching_heat_map`. Raises AnalysisError if the labels are too few."""
    from interp_gpt2.views.patching_figures import patching_heat_map

    return patching_heat_map(as_patching(trace, labels), title or f"Causal tracing, {trace.point}")


def as_patching(trace: "CausalTrace", labels: Sequence[str]) -> "PatchingResult":
    """A trace as a sweep of patches: each pair's values are means over its samples of noise."""
    import torch

    from interp_gpt2.causal.result import PatchingResult

    if int(trace.tokens.max()) >= len(labels):
        raise AnalysisError(f"token {int(trace.tokens.max())} has no label; {len(labels)} labels are another tokenizer's")
    values = trace.restored.mean(-1)
    named = tuple(_position(trace, labels, position) for position in range(trace.tokens.shape[1]))
    together = f"{trace.window} layers at once, " if trace.window > 1 else ""
    n_samples = trace.corrupted.shape[1]
    return PatchingResult(
        values=values,
        axes=("layer", "pos"),
        labels={"layer": tuple(map(str, range(len(values)))), "pos": named},
        clean=trace.clean,
        corrupted=trace.corrupted.mean(-1),
        skipped=torch.zeros_like(values, dtype=torch.bool),
        direction="denoising",
        metric=trace.measure,
        hook_point=f"{trace.point}, {together}noise of std {trace.noise_std:.3g} at *, mean of {n_samples} samples",
        bytes_used=0,
    )


def _position(trace: "CausalTrace", labels: Sequence[str], position: int) -> str:
    """The number of a position with its token, if all prompts have the same one there."""
    tokens = set(trace.tokens[:, position].tolist())
    mark = "*" if trace.subject[:, position].any() else ""
    return f"{position} {mark}{labels[tokens.pop()] if len(tokens) == 1 else '…'}"
