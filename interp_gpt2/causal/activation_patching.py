"""Activation patching: copy one piece of a run into another, and see how far the answer follows.

Denoising puts pieces of the clean run into the corrupted one: what is enough to restore the answer. Noising puts corrupted
pieces into the clean run: what is needed for it. The sweeps have TransformerLens's names, and its axes in its order.

    result = get_act_patch_resid_pre(model, pairs)                       # (layer, pos), logit difference, denoising
    result = get_act_patch_attn_head_out_all_pos(model, pairs, "probability", "noising")
    result.normalised, result.interval, result.top(5), result.to_frame()

Each of them is a Sweep; others are made as easily: `Sweep("post", ("layer", "pos"), layers=[5, 6])`.

Meng et al. 2022, "Locating and Editing Factual Associations in GPT"; Heimersheim & Nanda 2024, "How to use and interpret
activation patching".
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from interp_gpt2.causal.base_run import BaseRun
from interp_gpt2.causal.engine import BUDGET, metric_of, run_patches
from interp_gpt2.causal.metrics import (
    Function,
    Metric,
    kl_divergence,
    log_probability,
    logit,
    logit_difference,
    metric_name,
    probability,
    rank,
)
from interp_gpt2.causal.patch import Patch
from interp_gpt2.causal.result import PatchingResult, stacked
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.prompts.pairs import PromptPairs

Direction = Literal["denoising", "noising"]
MetricName = Literal["logit_difference", "logit", "probability", "log_probability", "rank", "kl_divergence"]
AXES = {"layer": "layer", "pos": "positions", "head": "heads", "dest_pos": "positions", "src_pos": "keys", "neuron": "neurons"}


@dataclass(frozen=True)
class Sweep:
    """What is patched: every combination along `axes` of one hook point, or of the layers, positions and heads given.

    Axes are "layer", "pos", "head"; at "pattern", "dest_pos" (the query's) and "src_pos" (the key's); at "pre" and "post",
    "neuron". What is not an axis is patched whole: without "pos", all positions at once. Raises AnalysisError for an axis that
    does not exist or comes twice, and for layers, positions, heads or neurons along which there is no axis.
    """

    point: str
    axes: tuple[str, ...]
    layers: Sequence[int] | None = None
    positions: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    neurons: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if unknown := [axis for axis in self.axes if axis not in AXES]:
            raise AnalysisError(f"{unknown[0]!r} is not an axis to patch along; those are {', '.join(AXES)}")
        along = [AXES[axis] for axis in self.axes]
        if len(set(along)) < len(along):
            raise AnalysisError(f"axes {', '.join(self.axes)} name one axis twice")
        for axis in ("layers", "positions", "heads", "neurons"):
            given, is_axis = getattr(self, axis), ("layer" if axis == "layers" else axis) in along
            if given is not None and (not is_axis or isinstance(given, int)):
                raise AnalysisError(
                    f"{axis}={given!r} is not a list of indices along an axis of the sweep, which has "
                    f"{', '.join(self.axes) or 'none'}; what is not an axis is patched whole"
                )

    def ranges(self, model: GPT2, n_pos: int) -> list[Sequence[int]]:
        """The indices along each axis."""
        positions = range(n_pos) if self.positions is None else self.positions
        known = {"pos": positions, "dest_pos": positions, "src_pos": range(n_pos)}
        known["layer"] = range(model.config.n_layers) if self.layers is None else self.layers
        known["head"] = range(model.config.n_heads) if self.heads is None else self.heads
        known["neuron"] = range(model.config.d_mlp) if self.neurons is None else self.neurons
        if empty := [axis for axis in self.axes if not len(known[axis])]:
            raise AnalysisError(f"there is nothing to patch along {empty[0]!r}")
        return [known[axis] for axis in self.axes]

    def labels(self, model: GPT2, pairs: PromptPairs) -> dict[str, tuple[str, ...]]:
        """What stands along each axis."""
        ranges = self.ranges(model, pairs.clean.shape[1])
        return {axis: axis_labels(axis, indices, pairs) for axis, indices in zip(self.axes, ranges, strict=True)}

    def cells(self, model: GPT2, n_pos: int) -> list[tuple[Patch]]:
        """A patch for each combination, the last axis running fastest."""
        names = [AXES[axis] for axis in self.axes]
        return [(Patch(self.point, **dict(zip(names, at, strict=True))),) for at in itertools.product(*self.ranges(model, n_pos))]

    def __call__(
        self,
        model: GPT2,
        pairs: PromptPairs,
        metric: Metric | Function | MetricName = "logit_difference",
        direction: Direction = "denoising",
        *,
        budget: int = BUDGET,
        naive: bool = False,
        progress: bool = False,
    ) -> PatchingResult:
        """`activation_patching` of this sweep."""
        return activation_patching(model, pairs, self, metric, direction, budget=budget, naive=naive, progress=progress)


def activation_patching(
    model: GPT2,
    pairs: PromptPairs,
    sweep: Sweep,
    metric: Metric | Function | MetricName = "logit_difference",
    direction: Direction = "denoising",
    *,
    budget: int = BUDGET,
    naive: bool = False,
    progress: bool = False,
) -> PatchingResult:
    """The metric for every cell of a sweep, on every pair, with the clean and the corrupted run's own.

    `metric`: a Metric, a function of whole logits, or the name of one, of the pairs' answers at their last token (the KL is
    from the clean run's prediction). `budget`, `naive` and `progress` are those of `run_patches`.

    Raises AnalysisError, before the sweep, for a metric that is not finite or has a wrong shape, that is the same for the
    clean and the corrupted run (there is nothing to normalise), or that no cell can change; and for a hook point, layer,
    position or head that does not exist (HookNameError where it is a name).
    """
    if direction not in ("denoising", "noising"):
        raise AnalysisError(f"direction={direction!r} is neither 'denoising' (clean pieces into the corrupted run) nor 'noising'")
    pairs.check(model.config)
    pairs = pairs.to(model.device)
    n_pos, mask = pairs.clean.shape[1], pairs.attention_mask
    cells = sweep.cells(model, n_pos)
    names = sorted({patch.placed(model.config, n_pos).name for cell in cells for patch in cell})
    base, other = (pairs.corrupted, pairs.clean) if direction == "denoising" else (pairs.clean, pairs.corrupted)
    with torch.no_grad():
        logits, source = model.run_with_cache(other, names, attention_mask=mask)
        run = BaseRun.of(model, base, mask, names, names)
    base_logits = run.logits
    clean_logits = logits if direction == "denoising" else base_logits
    chosen = metric_named(metric, pairs, clean_logits) if isinstance(metric, str) else metric
    ends = metric_of(chosen, base_logits, mask), metric_of(chosen, logits, mask)
    corrupted, clean = ends if direction == "denoising" else ends[::-1]
    refuse_equal(clean, corrupted, chosen)
    found = run_patches(model, base, cells, chosen, source, mask, budget=budget, naive=naive, progress=progress, base=run)
    refuse_unreachable(found.skipped, sweep, pairs)
    labels = sweep.labels(model, pairs)
    shape = [len(along) for along in labels.values()]
    return PatchingResult(
        found.values.reshape(*shape, -1).cpu(),
        sweep.axes,
        labels,
        clean.cpu(),
        corrupted.cpu(),
        found.skipped.reshape(*shape, -1),
        direction,
        metric_name(chosen),
        sweep.point,
        found.bytes_used,
        found.complete,
    )


def metric_named(name: MetricName, pairs: PromptPairs, clean_logits: Tensor) -> Metric:
    """A metric of the pairs' own answers at the last token of each prompt. Raises AnalysisError for what they do not have."""
    if name == "logit_difference":
        if not pairs.incorrect.shape[1]:
            raise AnalysisError("a logit difference needs incorrect answers, which the pairs lack; use metric='log_probability'")
        return logit_difference(pairs.correct, pairs.incorrect)
    if name == "kl_divergence":
        return kl_divergence(clean_logits, attention_mask=pairs.attention_mask)
    known = {"logit": logit, "probability": probability, "log_probability": log_probability, "rank": rank}
    if name not in known:
        raise AnalysisError(f"there is no metric {name!r}; known are logit_difference, kl_divergence, {', '.join(known)}")
    return known[name](pairs.correct)


def refuse_equal(clean: Tensor, corrupted: Tensor, metric: Metric | Function) -> None:
    """Raises AnalysisError if the metric does not tell the clean run from the corrupted one."""
    low, high = corrupted.mean().item(), clean.mean().item()
    if abs(high - low) <= 1e-6 * max(abs(high), abs(low), 1e-6):
        raise AnalysisError(
            f"the {metric_name(metric)} is {high:.6g} on the clean prompts and {low:.6g} on the corrupted ones: there is nothing "
            "to normalise by, and nothing to explain; choose prompts or answers on which they differ"
        )


def refuse_unreachable(skipped: Tensor, sweep: Sweep, pairs: PromptPairs) -> None:
    """Raises AnalysisError if no cell of a sweep could change anything."""
    if skipped.all():
        first = int(pairs.first_difference.min())
        raise AnalysisError(
            f"no cell of the sweep over {sweep.point!r} can change the metric: the prompts first differ at position {first}, and "
            "only what lies between that and the metric's position, in the layers before the logits, matters"
        )


def axis_labels(axis: str, indices: Sequence[int], pairs: PromptPairs) -> tuple[str, ...]:
    """Position with its token for positions, else the index."""
    if axis in ("layer", "head", "neuron"):
        return tuple(str(index) if axis == "layer" else f"{axis[0].upper()}{index}" for index in indices)
    names = pairs.position_labels
    return tuple(f"{index} {names[index]}" for index in indices)


# The sweeps by TransformerLens's names ----------------------------------------------------------------------------------

get_act_patch_resid_pre = Sweep("resid_pre", ("layer", "pos"))
get_act_patch_resid_mid = Sweep("resid_mid", ("layer", "pos"))
get_act_patch_attn_out = Sweep("attn_out", ("layer", "pos"))
get_act_patch_mlp_out = Sweep("mlp_out", ("layer", "pos"))

get_act_patch_attn_head_out_by_pos = Sweep("z", ("layer", "pos", "head"))
get_act_patch_attn_head_q_by_pos = Sweep("q", ("layer", "pos", "head"))
get_act_patch_attn_head_k_by_pos = Sweep("k", ("layer", "pos", "head"))
get_act_patch_attn_head_v_by_pos = Sweep("v", ("layer", "pos", "head"))
get_act_patch_attn_head_pattern_by_pos = Sweep("pattern", ("layer", "head", "dest_pos"))
get_act_patch_attn_head_pattern_dest_src_pos = Sweep("pattern", ("layer", "head", "dest_pos", "src_pos"))

get_act_patch_attn_head_out_all_pos = Sweep("z", ("layer", "head"))
get_act_patch_attn_head_q_all_pos = Sweep("q", ("layer", "head"))
get_act_patch_attn_head_k_all_pos = Sweep("k", ("layer", "head"))
get_act_patch_attn_head_v_all_pos = Sweep("v", ("layer", "head"))
get_act_patch_attn_head_pattern_all_pos = Sweep("pattern", ("layer", "head"))


@dataclass(frozen=True)
class Sweeps:
    """Sweeps along the same axes, called as one is: their results stand along a first axis, "type"."""

    parts: tuple[tuple[str, Sweep], ...]

    def __call__(
        self,
        model: GPT2,
        pairs: PromptPairs,
        metric: Metric | Function | MetricName = "logit_difference",
        direction: Direction = "denoising",
        *,
        budget: int = BUDGET,
        naive: bool = False,
        progress: bool = False,
    ) -> PatchingResult:
        options = {"budget": budget, "naive": naive, "progress": progress}
        found: dict[str, PatchingResult] = {}
        for name, sweep in self.parts:
            last = next(reversed(found.values()), None)
            if last is None or last.complete:
                found[name] = sweep(model, pairs, metric, direction, **options)
            else:  # Ctrl-C ends them all
                nothing = torch.full_like(last.values, torch.nan)
                found[name] = replace(last, values=nothing, skipped=torch.zeros_like(last.skipped), hook_point=sweep.point)
        return stacked(found, "type")


def _of_heads(axes: tuple[str, ...]) -> Sweeps:
    parts = {"out": "z", "q": "q", "k": "k", "v": "v", "pattern": "pattern"}
    return Sweeps(tuple((name, Sweep(point, axes)) for name, point in parts.items()))


get_act_patch_attn_head_all_pos_every = _of_heads(("layer", "head"))
get_act_patch_attn_head_by_pos_every = _of_heads(("layer", "pos", "head"))
get_act_patch_block_every = Sweeps(
    tuple((point, Sweep(point, ("layer", "pos"))) for point in ("resid_pre", "attn_out", "mlp_out"))
)
