"""Figures of realistic size fit a paper: one column or two, text of 6 points or more, nothing clipped and nothing overlapping."""

import itertools
from unittest.mock import patch

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from interp_gpt2.views import LensData, attention_view, causal_figures, figures, sampling_view
from interp_gpt2.views.circuit_figures import circuit_figure
from interp_gpt2.views.neuron_figures import neuron_figure
from interp_gpt2.views.patching_figures import patching_heat_map
from interp_gpt2.views.sheet import COLUMN, PAGE, SMALL, width_of, wrapped
from interp_gpt2.views.tracing import tracing_heat_map
from tests.views.examples import ablated, circuit, draw, histories, labels_of, patching_result, patterns, swept, trace

pytestmark = pytest.mark.slow

WORDS = [
    "When", "·Mary", "·and", "·John", "·went", "·to", "·the", "·store", ",", "·John", "·gave", "·a", "·drink", "·to",
    "·Washington", "↵", "·1984", "('", "·induction", "·Schwarzenegger",
]  # fmt: skip
STEPS = [0, *(2**k for k in range(12)), *range(5000, 60001, 5000)]
CURVES = np.sort(draw(144, len(STEPS)).abs().numpy(), axis=1)
CONSTANT = {"bigram": 2.44, "trigram": 2.02, "unigram": 3.31, "Bayes bigram": 1.98}
WRAPPED = "Attention paid by the heads of every layer of GPT-2 small to the token before, mean over 512 sequences of WebText"


def tokens(n: int) -> list[str]:
    return [WORDS[i % len(WORDS)] for i in range(n)]


def lens(n: int, n_layers: int) -> LensData:
    """Made-up numbers of the lens at one step."""
    words, index = labels_of(WORDS, 30), draw(n_layers, n).argsort(1) % 30
    values = draw(n_layers, n).sigmoid().tolist()
    ranks = [[int(5000 * (1 - value) ** 6) for value in line] for line in values]
    tops = [[[int(i), (int(i) + 1) % 30] for i in line] for line in index]
    shares = [[[value, (1 - value) / 2] for value in line] for line in values]
    names = ["embed", *(f"L{i}" for i in range(n_layers - 1))]
    return LensData(
        tokens(n), tokens(n + 1)[1:], [60000], names, 50257, words, [tops], [shares], [values], [ranks], [values], [values]
    )


def positions(n: int) -> list[str]:
    return [f"{i} {word}" for i, word in enumerate(tokens(n))]


LAYERS, HEADS = [str(i) for i in range(12)], [f"H{i}" for i in range(12)]
ONE_COLUMN = {
    "loss curve": lambda: figures.loss_curve(STEPS, np.linspace(4.2, 2.1, len(STEPS)), CONSTANT, (1000, 4000)),
    "loss curve of levels that meet": lambda: figures.loss_curve(STEPS, np.full(len(STEPS), 2.0), dict.fromkeys("abcd", 2.0)),
    "head scores": lambda: figures.head_scores(STEPS, CURVES, [f"L{i // 12}H{i % 12}" for i in range(144)], 0.04),
    "a long title": lambda: figures.curves(STEPS, CURVES[:8], labels_of(HEADS, 8), ("random weights", 0.1), WRAPPED, "attention"),
    "ladder": lambda: figures.ladder(
        {name: ([0, 1e6, 5e6, 9e6], [4.2, 3 - i / 5, 2.6 - i / 4, 2.4 - i / 4]) for i, name in enumerate(CONSTANT)}, CONSTANT
    ),
    "attention of 20 tokens": lambda: figures.attention_pattern(patterns(n=20), tokens(20)),
    "lens of 4 tokens": lambda: figures.lens_table(lens(4, 3)),
    "probes at 5 steps": lambda: figures.probe_heat_map(CURVES[:5, :13] / 4, STEPS[:5], ["embed", *LAYERS], 0.5, "inside quotes"),
    "patching of 12 layers by 12 positions": lambda: patching_heat_map(patching_result({"layer": LAYERS, "pos": positions(12)})),
    "patching of 12 layers by 12 heads": lambda: patching_heat_map(patching_result({"layer": LAYERS, "head": HEADS})),
    "ablation of 12 layers by 12 heads": lambda: causal_figures.ablation_figure(ablated(12, 12)),
    "ablation of 13 entries": lambda: causal_figures.ablation_figure(ablated(2, 6, "logit difference", whole=False), "IOI"),
    "a circuit of 12 edges": lambda: circuit_figure(circuit(2, 2, 12), "Induction", "EAP-IG, logit difference"),
}  # fmt: skip
TWO_COLUMNS = {
    "lens of 8 tokens": lambda: figures.lens_table(lens(8, 3)),
    "attention of 60 tokens": lambda: figures.attention_pattern(patterns(n=60), tokens(60)),
    "attention of 128 tokens": lambda: figures.attention_pattern(patterns(n=128), tokens(128)),
    "attention of 2 by 4 heads": lambda: attention_view(tokens(24), patterns(2, 4, n=24), (), {"L1H2": "copying 0.71"}).figure(),
    "attention of 12 by 12 heads": lambda: attention_view(tokens(128), patterns(12, 12, n=128)).figure(),
    "lens of 15 tokens, 13 layers": lambda: figures.lens_table(lens(15, 13), statistic="rank"),
    "lens of 48 tokens, 5 layers": lambda: figures.lens_table(lens(48, 5), statistic="kl"),
    "lens of 128 tokens, 13 layers": lambda: figures.lens_table(lens(128, 13)),
    "probes at all steps": lambda: figures.probe_heat_map(CURVES[: len(STEPS), :13] / 4, STEPS, ["embed", *LAYERS], 0.5),
    "patching of 12 layers by 40 positions": lambda: patching_heat_map(patching_result({"layer": LAYERS, "pos": positions(40)})),
    "patching of 128 positions": lambda: patching_heat_map(patching_result({"layer": LAYERS, "pos": positions(128)})),
    "patching of heads by 15 positions": lambda: patching_heat_map(
        patching_result({"layer": LAYERS, "pos": positions(15), "head": HEADS}), "IOI"
    ),
    "tracing": lambda: tracing_heat_map(trace(12, 15), tokens(15)),
    "steering": lambda: causal_figures.steering_figure(swept("logit difference")),
    "sampling": lambda: sampling_view(draw(50), labels_of(WORDS)).figure(),
    "a neuron": lambda: neuron_figure(histories()[0], labels_of(WORDS)),
    "a neuron of one step": lambda: neuron_figure(histories(steps=(7,))[0], labels_of(WORDS)),
    "a circuit of 40 edges": lambda: circuit_figure(circuit(), "Made up", "EAP"),
}  # fmt: skip


def drawn(figure: Figure) -> list[tuple[Text, Bbox]]:
    """Every text that is drawn, with its place in pixels."""
    found: list[Text] = []
    draw_text = Text.draw

    def remembering(text: Text, renderer: object) -> None:
        if text.get_visible() and text.get_text().strip():
            found.append(text)
        draw_text(text, renderer)

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the layout settles at the first drawing
    with patch.object(Text, "draw", remembering):
        canvas.draw()
    return [(text, text.get_window_extent(canvas.get_renderer())) for text in found]


def overlaps(placed: list[tuple[Text, Bbox]]) -> list[tuple[str, str]]:
    """Texts that touch each other, less the blank that a line has above and below its letters."""
    inner = []
    for text, box in placed:
        blank = 0.15 * text.get_fontsize() * text.figure.dpi / 72
        across, along = (blank, 0.5) if text.get_rotation() == 90 else (0.5, blank)
        inner.append(Bbox([[box.x0 + across, box.y0 + along], [box.x1 - across, box.y1 - along]]))
    return [
        (placed[i][0].get_text(), placed[j][0].get_text())
        for i, j in itertools.combinations(range(len(placed)), 2)
        if inner[i].overlaps(inner[j])
    ]


@pytest.mark.parametrize(
    ("name", "make", "width"),
    [(name, make, COLUMN) for name, make in ONE_COLUMN.items()] + [(name, make, PAGE) for name, make in TWO_COLUMNS.items()],
    ids=[*ONE_COLUMN, *TWO_COLUMNS],
)
def test_a_figure_fits_its_columns_and_its_text_is_legible_whole_and_apart(name: str, make, width: float) -> None:
    figure = make()
    placed = drawn(figure)
    assert figure.get_figwidth() <= width + 1e-6
    assert figure.get_figheight() <= 11
    assert min(text.get_fontsize() for text, _ in placed) >= SMALL
    right, top = figure.bbox.size
    outside = [
        text.get_text() for text, box in placed if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > right + 0.5 or box.y1 > top + 0.5
    ]
    assert outside == []
    assert overlaps(placed) == []


def test_overlapping_text_would_be_noticed() -> None:
    figure = Figure(figsize=(3, 2))
    for x in (0.1, 0.12):
        figure.text(x, 0.5, "text")
    assert overlaps(drawn(figure)) == [("text", "text")]


def test_a_title_is_broken_where_the_figure_ends() -> None:
    lines = wrapped(WRAPPED, 3.3).split("\n")
    assert " ".join(lines) == WRAPPED
    assert max(width_of(line, 8) for line in lines) <= 72 * 3.3
    assert wrapped("x" * 500, 1.0, most=3).endswith("…")


def test_a_long_sequence_goes_on_in_the_next_row_and_its_positions_count_on() -> None:
    figure = figures.lens_table(lens(48, 5))
    panels = [axes for axes in figure.axes if axes.get_images()]
    assert len(panels) > 1
    assert [int(at) for axes in panels for at in axes.xaxis.get_majorticklocs()] == list(range(48))
