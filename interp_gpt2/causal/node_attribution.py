"""Attribution patching: what activation patching would find in every cell of a sweep, to first order, in two passes.

    effect of a cell = sum over its entries of (source activation - base activation) . d metric / d activation, in the base run

The base is the run that is patched, the source where the pieces come from: the corrupted and the clean run when denoising,
the reverse when noising. The answer is a `PatchingResult` with base metric + effect where activation patching has the metric
itself, along the same axes, so that the two can be held against each other: `correlation(attribution, patching)`. First
order fails where the metric is not nearly straight between the two runs: at large streams (resid_pre of early layers),
whose layer norms it takes for linear, and through saturated attention patterns.

Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"; Kramár et al. 2024, "AtP*".
"""

import torch
from torch import Tensor

from interp_gpt2.causal.activation_patching import AXES, Direction, Sweep
from interp_gpt2.causal.correlation import Correlation, correlate
from interp_gpt2.causal.engine import BUDGET
from interp_gpt2.causal.gradients import AnyMetric, Reader, reader_of
from interp_gpt2.causal.patch import HEAD_POINTS, SQUARE_POINTS, Patch
from interp_gpt2.causal.result import PatchingResult
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.prompts.pairs import PromptPairs


def attribution_patching(
    model: GPT2,
    pairs: PromptPairs,
    sweep: Sweep,
    metric: AnyMetric = "logit_difference",
    direction: Direction = "denoising",
    *,
    budget: int = BUDGET,
) -> PatchingResult:
    """The first-order estimate of `activation_patching` with the same arguments, for every cell and pair.

    `values` are the base run's metric plus the effect; a cell is `skipped` where the effect is exactly 0. A sweep of
    attributions can be as fine as there are entries: Sweep("post", ("layer", "pos", "neuron")). Standing edits act in both
    runs. `budget` is how many bytes of activations are held at once, by splitting the pairs; a plain function of whole
    logits cannot be split, and if it gives one number, that has the effects of all pairs.

    Raises AnalysisError for another direction, scores (their masked entries have no difference; take "pattern"), places
    that the model does not have, a metric that is not finite or has no derivative, and a model with active dropout.
    """
    if direction not in ("denoising", "noising"):
        raise AnalysisError(f"direction={direction!r} is neither 'denoising' (clean pieces into the corrupted run) nor 'noising'")
    names = _names(model, sweep, pairs.clean.shape[1])
    reader = reader_of(model, pairs, metric)
    size = max(1, budget // _bytes_per_pair(reader)) if reader.divisible else len(pairs)
    found = [_effects(reader, sweep, names, direction, pair) for pair in torch.arange(len(pairs)).split(size)]
    effects, base, other = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    if len(base) != len(pairs):  # one number for all of them
        effects = effects.sum(-1, keepdim=True)
    if not effects.any():
        raise AnalysisError(
            f"there is nothing to attribute: at no cell of the sweep over {sweep.point!r} do the two runs differ and the metric "
            "depend on it to first order"
        )
    return PatchingResult(
        base + effects,
        sweep.axes,
        sweep.labels(model, pairs),
        other if direction == "denoising" else base,
        base if direction == "denoising" else other,
        effects == 0,
        direction,
        f"{reader.name}, attributed",
        sweep.point,
        size * _bytes_per_pair(reader),
    )


def correlation(attribution: PatchingResult, patching: PatchingResult) -> Correlation:
    """Of two results over the same cells, as attributed and as patched, the means of their effects over pairs.

    Cells that patching skipped are left out: nothing could happen there, and the two agree on it without merit. Raises
    AnalysisError for results of other cells or another direction, and for fewer than three cells or effects all equal.
    """
    if (attribution.axes, attribution.labels, attribution.hook_point, attribution.direction) != (
        patching.axes, patching.labels, patching.hook_point, patching.direction,
    ):  # fmt: skip
        raise AnalysisError(f"these are results of different sweeps: {attribution!r} and {patching!r}")
    chosen = ~patching.skipped.all(-1)
    return correlate(*((result.mean - _base(result).mean())[chosen] for result in (attribution, patching)))


def _base(result: PatchingResult) -> Tensor:
    return result.corrupted if result.direction == "denoising" else result.clean


def _names(model: GPT2, sweep: Sweep, n_pos: int) -> list[str]:
    """The sweep's hook point in each of its layers. Raises as a patch there would."""
    chosen = dict(zip(sweep.axes, sweep.ranges(model, n_pos), strict=True))
    where = {AXES[axis]: list(which) for axis, which in chosen.items() if axis != "layer"}
    names = [Patch(sweep.point, layer, **where).placed(model.config, n_pos).name for layer in chosen.get("layer", [None])]
    if names[0].endswith("attn_scores"):
        raise AnalysisError("masked scores are -inf in both runs and have no difference; attribute 'pattern' instead")
    if missing := set(sweep.axes) - {"layer", *_axes(names[0])}:
        raise AnalysisError(f"{sweep.point!r} has no axis {missing.pop()!r}; its axes are layer, {', '.join(_axes(names[0]))}")
    return names


def _axes(name: str) -> tuple[str, ...]:
    """Of an activation, without its batch."""
    leaf = name.rpartition(".")[2]
    if leaf in SQUARE_POINTS:
        return "head", "dest_pos", "src_pos"
    return ("pos", "head", "neuron") if leaf in HEAD_POINTS else ("pos", "neuron")


def _effects(reader: Reader, sweep: Sweep, names: list[str], direction: Direction, pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The effects (*axes, pair) for some of the pairs, and the metric of their base and source runs: (pair,), or (1,)."""
    model, pairs = reader.model, reader.pairs
    mask = None if pairs.attention_mask is None else pairs.attention_mask[pair]
    clean, corrupted = pairs.clean[pair], pairs.corrupted[pair]
    base, other = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    pair = pair.to(model.device)
    with torch.no_grad():
        logits, source = model.run_with_cache(other, names, attention_mask=mask)
        end = reader.of_logits(logits, pair)
    at: list[Tensor] = []

    def total(logits: Tensor) -> Tensor:
        at.append(reader.of_logits(logits, pair))
        return at[0].sum()

    _, activations, gradients = model.run_with_gradients(base, total, names, attention_mask=mask)
    layers = [_reduced((source[name] - activations[name]) * gradients[name], name, sweep, model, base.shape[1]) for name in names]
    effects = torch.stack(layers).movedim(0, sweep.axes.index("layer")) if "layer" in sweep.axes else layers[0]
    return effects.cpu(), at[0].detach().reshape(-1).cpu(), end.reshape(-1).cpu()


def _reduced(product: Tensor, name: str, sweep: Sweep, model: GPT2, n_pos: int) -> Tensor:
    """From (pair, ...) to the sweep's axes without "layer", and the pair last; what is no axis is summed over."""
    chosen = dict(zip(sweep.axes, sweep.ranges(model, n_pos), strict=True))
    kept = []
    for axis in reversed(_axes(name)):  # from behind, so that the axes in front keep their numbers
        number = 1 + _axes(name).index(axis)
        if axis in chosen:
            which = torch.tensor(list(chosen[axis]), device=product.device) % product.shape[number]
            product = product.index_select(number, which)
            kept.insert(0, axis)
        else:
            product = product.sum(number)
    order = [1 + kept.index(axis) for axis in sweep.axes if axis != "layer"]
    return product.permute(*order, 0)


def _bytes_per_pair(reader: Reader) -> int:
    """What a pair takes at the most: the pass with its graph, the source's activations, the derivatives, and the logits."""
    config, n_pos = reader.model.config, reader.pairs.clean.shape[1]
    width = config.n_heads * config.d_head
    layer = 12 * width + 12 * config.d_model + 6 * config.d_mlp + 6 * config.n_heads * n_pos
    return reader.model.wte.weight.element_size() * n_pos * (config.n_layers * layer + 3 * config.d_vocab)
