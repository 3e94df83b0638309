"""Still figures of attention and sampling views, for papers and for readers that show no pages."""

from typing import TYPE_CHECKING

import numpy as np

from interp_gpt2.errors import AnalysisError
from interp_gpt2.views.figures import draw_pattern
from interp_gpt2.views.sheet import COLOURS, PAGE, SMALL, cut, drawable, sheet, styled, token_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from interp_gpt2.views.attention import AttentionData
    from interp_gpt2.views.sampling import SamplingData

FEW_HEADS = 4  # beside so many, one can be enlarged
_GAP = 0.12  # between thumbnails, in parts of one


@styled
def attention_overview(data: "AttentionData", step: int | None = None, title: str = "Attention patterns") -> "Figure":
    """Every head of one step (default: the last), layers downwards and heads across; of up to 4 a layer, one enlarged.

    Rows are queries, columns keys, viridis from 0 to 1, the future left blank; two columns wide. The title carries the step
    and what the enlarged head's note says of it. `figures.attention_pattern` draws one head for one column. Raises
    AnalysisError for a step that is not there.
    """
    if step is not None and step not in data.steps:
        raise AnalysisError(f"no patterns at step {step}; there are some at {', '.join(map(str, data.steps))}")
    at = len(data.steps) - 1 if step is None else data.steps.index(step)
    patterns = data.patterns()[at]
    n_layers, n_heads, n = patterns.shape[:3]
    when = f", step {data.steps[at]:,}" if len(data.steps) > 1 or data.steps[0] else ""
    few = n_heads <= FEW_HEADS
    side = min(1.2, 2.9 / n_heads) if few else min(0.75, 5.0 / n_heads)  # inches of a thumbnail
    figure = sheet(PAGE, max(side * (1 + _GAP) * n_layers + 0.35, 3.3 if few else 0.0), f"{title}{when}")
    if not few:
        axes = figure.add_subplot()
        _thumbnails(axes, patterns)
        figure.colorbar(axes.get_images()[0], ax=axes, label="attention", shrink=min(1.0, 4 / n_layers), aspect=18)
        return figure
    left, right = figure.subplots(1, 2, width_ratios=[max(n_heads * side * (1 + _GAP), 1.2), 3.6])
    _thumbnails(left, patterns)
    layer, head = _first(data)
    draw_pattern(right, patterns[layer, head], data.tokens, 72 * 2.7 / n)
    name = f"L{layer}H{head}"
    said = cut(f"{name} {data.notes.get(name, '')}".strip(), 200, 7, "text")
    right.set_title(said, fontsize=7, parse_math=False)
    figure.colorbar(right.get_images()[0], ax=right, label="attention", shrink=0.8)
    left.set_anchor("N")
    return figure


def _first(data: "AttentionData") -> tuple[int, int]:
    """The head that the page enlarges first."""
    _, n_layers, n_heads = data.shape[:3]
    names = {f"L{layer}H{head}": (layer, head) for layer in range(n_layers) for head in range(n_heads)}
    return names.get(data.first, (0, 0))


def _thumbnails(axes: "Axes", patterns: np.ndarray) -> None:
    """All heads as one image: 144 axes would take seconds."""
    n_layers, n_heads, n = patterns.shape[:3]
    gap = max(1, round(_GAP * n))
    mosaic = np.full((n_layers * (n + gap) - gap, n_heads * (n + gap) - gap), np.nan)
    seen = np.tri(n, dtype=bool)
    for layer in range(n_layers):
        for head in range(n_heads):
            rows, columns = (slice(i * (n + gap), i * (n + gap) + n) for i in (layer, head))
            mosaic[rows, columns] = np.where(seen, patterns[layer, head], np.nan)
    axes.imshow(mosaic, vmin=0, vmax=1, label="_heads")  # the numbers are in the view's table
    middles = [np.arange(count) * (n + gap) + (n - 1) / 2 for count in (n_layers, n_heads)]
    axes.set_yticks(middles[0], [f"L{layer}" for layer in range(n_layers)], fontsize=SMALL)
    axes.set_xticks(middles[1], [f"H{head}" for head in range(n_heads)], fontsize=SMALL)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set(xlabel="head", ylabel="layer")


@styled
def sampling_bars(data: "SamplingData", title: str = "Ways to choose the next token") -> "Figure":
    """The most probable tokens from above, and what each way of choosing makes of them; two columns wide.

    Under each way's name, how many tokens of the vocabulary it keeps and the probability that these had before.
    """
    n = len(data.tokens)
    figure = sheet(PAGE, 0.125 * n + 0.75, title)
    grid = figure.subplots(1, len(data.ways), sharey=True)
    for axes, way, row, n_kept, kept in zip(grid, data.ways, data.probability, data.n_kept, data.kept, strict=True):
        axes.barh(range(n), row, color=COLOURS[1], height=0.75)
        cuts = [i for i, value in enumerate(row) if not value]
        axes.set_title(f"{drawable(way)}\nkeeps {n_kept:,}\nhad {kept:.3g}", fontsize=SMALL, parse_math=False)
        widest = max(max(row) * 1.05, 1e-9)
        axes.set_xlim(0, widest)
        axes.scatter([0.04 * widest] * len(cuts), cuts, marker="x", s=5, linewidth=0.5, color="#8a9098")
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=2)
        axes.tick_params(axis="x", labelsize=SMALL)
    grid[0].set_ylim(n - 0.5, -0.5)
    token_ticks(grid[0].yaxis, data.tokens, 0)
    figure.supxlabel("probability of being drawn (×: cannot be)", fontsize=7)
    return figure
