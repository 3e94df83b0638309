"""What ablation and steering do, for a paper; `views.figures.save_picture` writes a figure, the results have their tables.

Causal traces are drawn by `views.tracing`.
"""

from typing import TYPE_CHECKING

import numpy as np

from interp_gpt2.analysis.rows import reach_95
from interp_gpt2.views.arrays import as_array
from interp_gpt2.views.sheet import (
    COLOURS,
    COLUMN,
    GREY,
    PAGE,
    cut,
    label_ends,
    one_panel,
    sheet,
    styled,
    token_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from interp_gpt2.causal.ablation_effect import AblationEffects
    from interp_gpt2.causal.steering_sweep import SteeringSweep

MOST_ROWS = 40


@styled
def ablation_figure(effects: "AblationEffects", title: str = "") -> "Figure":
    """The change of the measure without each entry's parts: layers by heads where every head was taken out, else a row each.

    Rows have their 95 % interval over sequences, the largest effects first and at most 40 of them; the map is diverging and
    centred on no effect. The title carries the measure of the whole model.
    """
    n, clean = len(effects.clean), float(effects.clean.mean())
    sequences = "1 sequence" if n == 1 else f"{n:,} sequences"
    said = f"{effects.ablation.capitalize()} ablation: change of {effects.measure} (whole model {clean:.3g}; {sequences})"
    said = f"{title}\n{said}" if title else said
    grid = _grid_of_heads(effects)
    return _rows(effects, said) if grid is None else _map(grid, said)


def _grid_of_heads(effects: "AblationEffects") -> np.ndarray | None:
    """Mean effects, layers by heads, if each entry is one head and all heads of these layers are there."""
    places = {
        (entry[0].layer, entry[0].index): i
        for i, entry in enumerate(effects.components)
        if len(entry) == 1 and entry[0].kind == "head"
    }
    n_layers, n_heads = (1 + max((place[axis] for place in places), default=-1) for axis in (0, 1))
    if not len(places) == len(effects.components) == n_layers * n_heads or n_layers * n_heads < 4:
        return None
    means = as_array(effects.mean)
    return np.array([[means[places[layer, head]] for head in range(n_heads)] for layer in range(n_layers)])


def _map(means: np.ndarray, title: str) -> "Figure":
    n_layers, n_heads = means.shape
    width = min(PAGE, max(COLUMN, 0.17 * n_heads + 1.3))
    figure, axes = one_panel(width, 0.17 * n_layers + 0.7, title)
    most = max(float(np.abs(means).max()), 1e-9)
    image = axes.imshow(means, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", origin="lower", label="effect")
    token_ticks(axes.xaxis, [str(head) for head in range(n_heads)], 0, 72 * (width - 1.1) / n_heads)
    token_ticks(axes.yaxis, [str(layer) for layer in range(n_layers)], 0)
    axes.set(xlabel="head", ylabel="layer")
    figure.colorbar(image, ax=axes, label="without − with", aspect=18)
    return figure


def _rows(effects: "AblationEffects", title: str) -> "Figure":
    means, errors = as_array(effects.mean), as_array(effects.stderr)
    order = np.argsort(-np.abs(means), kind="stable")[:MOST_ROWS]
    left_out = len(means) - len(order)
    title += f"; {left_out} smaller are left out" if left_out else ""
    figure, axes = one_panel(COLUMN, 0.14 * len(order) + 0.6, title)
    half = np.nan_to_num(reach_95(len(effects.clean)) * errors[order])
    axes.hlines(range(len(order)), means[order] - half, means[order] + half, color=COLOURS[1], linewidth=0.8)
    axes.plot(means[order], range(len(order)), "o", markersize=3, color=COLOURS[1], label="effect")
    axes.axvline(0, color=GREY, linestyle="--", linewidth=0.6)
    axes.set_ylim(len(order) - 0.5, -0.5)
    token_ticks(axes.yaxis, [cut(effects.labels[i], 90) for i in order], 0)
    axes.set_xlabel("without − with, 95 % interval")
    return figure


@styled
def steering_figure(sweep: "SteeringSweep", title: str = "Steering") -> "Figure":
    """The wanted effect and the damage to neutral text, by coefficient, beside random vectors of the same length in grey.

    Bands are 95 % intervals over prompts, or over neutral sequences. Two columns wide; the title carries the unsteered values.
    """
    n, n_neutral = sweep.metric.shape[-1], sweep.loss.shape[-1]
    known = f"{sweep.measure} {float(sweep.clean_metric.mean()):.3g}, loss {float(sweep.clean_loss.mean()):.3g} nats per token"
    figure = sheet(
        PAGE, 2.0, f"{title} at {sweep.hook_point}; unsteered: {known} (n = {n:,} prompts, {n_neutral:,} neutral texts)"
    )
    left, middle, right = figure.subplots(1, 3)
    _by_coefficient(left, sweep, as_array(sweep.effect), f"change of {sweep.measure}")
    _by_coefficient(middle, sweep, as_array(sweep.loss - sweep.clean_loss), "change of neutral loss, nats")
    _by_coefficient(right, sweep, as_array(sweep.kl), "KL(unsteered || steered), nats")
    return figure


def _by_coefficient(axes: "Axes", sweep: "SteeringSweep", values: np.ndarray, name: str) -> None:
    order = np.argsort(sweep.coefficients, kind="stable")
    x, ends = np.array(sweep.coefficients)[order], {}
    for v, vector in reversed(list(enumerate(sweep.vectors))):
        steering = vector == "steering"
        mean, n = values[v][order].mean(-1), values.shape[-1]
        half = reach_95(n) * values[v][order].std(-1, ddof=1) / n**0.5 if n > 1 else 0 * mean
        colour = COLOURS[1] if steering else "#9aa0a7"
        axes.plot(x, mean, color=colour, marker=".", markersize=3, linewidth=1.3 if steering else 0.7, label=vector)
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)
        if steering or "random" not in ends:
            ends["steering" if steering else "random"] = (float(mean[-1]), colour)
    axes.axhline(0, color=GREY, linestyle="--", linewidth=0.6)
    axes.set_xlabel("coefficient")
    axes.set_title(cut(name, 140, 7, "text"), fontsize=7, parse_math=False)
    label_ends(axes, ends, gap=0.09)
