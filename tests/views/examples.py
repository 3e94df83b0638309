"""Every view, and every figure, with given texts wherever a text from outside can stand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from interp_gpt2.analysis.logit_lens import logit_lens
from interp_gpt2.analysis.neuron_history import NeuronHistory, neuron_histories
from interp_gpt2.analysis.windows import Windows
from interp_gpt2.causal.ablation import Component
from interp_gpt2.causal.ablation_effect import AblationEffects
from interp_gpt2.causal.circuit import Circuit, greedy_edges, writers
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.result import PatchingResult
from interp_gpt2.causal.steering_sweep import SteeringSweep
from interp_gpt2.causal.tracing import CausalTrace
from interp_gpt2.config import GPT2Config
from interp_gpt2.views import (
    View,
    attention_view,
    circuit_view,
    lens_view,
    neuron_view,
    patching_view,
    sampling_view,
    tracing_view,
)
from tests.conftest import random_gpt2

CONFIG = GPT2Config(n_layers=2, n_heads=4, d_model=32, d_vocab=50, n_ctx=32)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patterns(*shape: int, n: int) -> torch.Tensor:
    return (2 * draw(*shape, n, n)).masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def labels_of(texts: list[str], n: int = 50) -> list[str]:
    """A label for each token, no two the same."""
    return [texts[i % len(texts)] + str(i) for i in range(n)]


def patching_result(axes: dict[str, list[str]], metric: str = "logit difference", hook_point: str = "z") -> PatchingResult:
    """Random numbers of four pairs; the first position had nothing to patch, and one cell was not done."""
    sizes = [len(along) for along in axes.values()]
    values, clean, corrupted = draw(*sizes, 4), torch.full((4,), 3.1), torch.full((4,), -1.2)
    clean, corrupted = clean + torch.arange(4) / 10, corrupted - torch.arange(4) / 20
    skipped = torch.zeros_like(values, dtype=torch.bool)
    if "pos" in axes:
        first = (*[slice(None)] * list(axes).index("pos"), 0)
        values[first], skipped[first] = corrupted, True
    values[(-1,) * len(sizes)] = torch.nan
    along = {axis: tuple(labels) for axis, labels in axes.items()}
    return PatchingResult(values, tuple(axes), along, clean, corrupted, skipped, "denoising", metric, hook_point, 0, False)


def trace(n_layers: int, n: int, measure: str = "probability", n_pairs: int = 3) -> CausalTrace:
    clean, corrupted = torch.linspace(0.7, 0.9, n_pairs), torch.linspace(0.1, 0.2, n_pairs)[:, None] + torch.zeros(n_pairs, 4)
    share = draw(n_layers, n, n_pairs, 4).mul(0.2).sigmoid() - 0.4
    subject = torch.zeros(n_pairs, n, dtype=torch.bool)
    subject[:, 1:3] = True
    tokens = torch.arange(n).expand(n_pairs, n)
    restored = corrupted + share * (clean[:, None] - corrupted)
    return CausalTrace("resid_post", 1, clean, corrupted, restored, subject, tokens, 0.35, measure)


def circuit(n_layers: int = 3, n_heads: int = 4, n: int = 40) -> Circuit:
    """Where a few nodes have most of the strong edges, as in circuits that are found."""
    graph = Graph(n_layers, n_heads)
    hot = torch.rand(len(graph.senders) + 1, generator=torch.Generator().manual_seed(0)) ** 6
    hot[0] = hot[-1] = 1
    scores = draw(*graph.exists.shape) * hot[:-1, None] * hot[writers(graph)]
    return greedy_edges(graph, scores, n)


def histories(d_vocab: int = 50, steps: tuple[int, ...] = (0, 10, 100)) -> tuple[NeuronHistory, ...]:
    config = replace(CONFIG, d_vocab=d_vocab)
    models = {step: random_gpt2(config, seed) for seed, step in enumerate(steps)}
    tokens = torch.randint(0, d_vocab, (12, 32), generator=torch.Generator().manual_seed(0))
    tokens[0, : min(32, d_vocab)] = torch.arange(min(32, d_vocab))
    return neuron_histories(models.__getitem__, list(steps), Windows.of(tokens), [(1, 5), (0, 7), (0, 90)])


def ablated(n_layers: int, n_heads: int, measure: str = "loss", whole: bool = True) -> AblationEffects:
    parts = [(Component("head", layer, head),) for layer in range(n_layers) for head in range(n_heads)]
    if not whole:
        parts += [parts[0] + parts[1]]
    names = tuple(" + ".join(part.label for part in entry) for entry in parts)
    clean = 2.0 + 0.1 * draw(20).double()
    return AblationEffects(names, tuple(parts), clean + 0.2 * draw(len(parts), 20).double(), clean, measure, "mean")


def swept(measure: str = "logit", hook_point: str = "blocks.5.resid_post") -> SteeringSweep:
    vectors, coefficients = ("steering", "random 0", "random 1"), (-8.0, -4.0, 0.0, 4.0, 8.0)
    slope = torch.tensor([1.0, 0.05, -0.1])[:, None, None] * torch.tensor(coefficients)[None, :, None]
    damage = 0.02 * slope.abs().add(0.2 * torch.tensor(coefficients).abs()[None, :, None])
    clean, clean_loss = draw(16).double(), 3.2 + 0.1 * draw(12).double()
    metric = clean + slope + 0.3 * draw(3, 5, 16)
    return SteeringSweep(
        vectors, coefficients, metric, clean_loss + damage + 0.01 * draw(3, 5, 12), damage + 0 * clean_loss, clean, clean_loss,
        measure, hook_point,
    )  # fmt: skip


def every_view(texts: list[str], title: str) -> dict[str, View]:
    """Each view, its labels all of `texts`, its titles, notes and measures `title`."""
    labels, n = labels_of(texts), min(len(texts), 20)
    tokens = torch.arange(n)[None]
    models = [random_gpt2(CONFIG, seed) for seed in (0, 1)]
    seen = torch.stack([model.run_with_cache(tokens)[1].stack("pattern")[:, 0] for model in models])
    at = [f"{i} {labels[i]}" for i in range(n)]
    two = patching_result({"layer": ["0", "1"], "pos": at}, title, title)
    three = patching_result({"layer": ["0", "1"], "pos": at, "head": ["H0", "H1"]}, title, title)
    return {
        "attention": attention_view(labels[:n], seen, [0, 100], {"L0H1": title}, title),
        "attention, many heads": attention_view(labels[:n], patterns(2, 6, n=n), (), {"L0H1": title}, title),
        "lens": lens_view(tokens[0], labels, [logit_lens(model, tokens) for model in models], [0, 100], title),
        "circuit": circuit_view(circuit(), title, title),
        "patching": patching_view(two, title),
        "patching, three axes": patching_view(three, title),
        "tracing": tracing_view(trace(3, n, title), labels, title),
        "sampling": sampling_view(draw(50), labels, title=title),
        "neuron": neuron_view(histories()[0], labels, title),
    }


def every_figure(texts: list[str], title: str) -> dict[str, Callable[[], Any]]:
    """Each function that draws for a paper, on small data, with `texts` and `title` wherever one can stand."""
    from interp_gpt2.views import causal_figures, figures
    from interp_gpt2.views.patching_figures import patching_heat_map
    from interp_gpt2.views.tracing import tracing_heat_map

    labels, steps, rows = labels_of(texts), [0, 1, 10, 100], np.linspace(0, 1, 24).reshape(6, 4)
    references = dict(zip(labels[:4], (0.5, 1.0, 2.0, 3.0), strict=True))
    found = {name: view.figure for name, view in every_view(texts, title).items()}
    return found | {
        "loss curve": lambda: figures.loss_curve(steps, [4.0, 3.0, 2.0, 1.5], references, (5, 20), title),
        "curves": lambda: figures.curves(steps, rows, labels[:6], (title, 0.1), title, title),
        "head scores": lambda: figures.head_scores(steps, rows, labels[:6], 0.1, title, title),
        "ladder": lambda: figures.ladder({label: ([0, 1e6, 2e6], [4, 3, 2.5]) for label in labels[:4]}, references, title),
        "attention pattern": lambda: figures.attention_pattern(patterns(n=len(texts)), labels[: len(texts)], title),
        "probe heat map": lambda: figures.probe_heat_map(rows[:4, :3], steps, labels[:3], 0.5, title),
        "patching heat map": lambda: patching_heat_map(patching_result({title: labels[:3], "pos": labels[:4]}, title), title),
        "tracing heat map": lambda: tracing_heat_map(trace(3, len(texts), title), labels, title),
        "ablation, a map": lambda: causal_figures.ablation_figure(ablated(2, 3, title), title),
        "ablation, rows": lambda: causal_figures.ablation_figure(ablated(2, 3, title, whole=False), title),
        "steering": lambda: causal_figures.steering_figure(swept(title, title), title),
    }
