"""Patching edges one by one: the truth that edge attribution estimates."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.causal.circuit import Circuit
from interp_gpt2.causal.circuit_pass import circuit_values
from interp_gpt2.causal.correlation import Correlation, correlate
from interp_gpt2.causal.edge_attribution import EdgeAttribution
from interp_gpt2.causal.gradients import AnyMetric, reader_of
from interp_gpt2.causal.graph import Edge, Graph
from interp_gpt2.model import GPT2
from interp_gpt2.prompts.pairs import PromptPairs


def edge_patching(
    model: GPT2, pairs: PromptPairs, metric: AnyMetric = "logit_difference", edges: Sequence[Edge | str] | None = None
) -> Float[Tensor, "edge"]:
    """The metric of the clean run with one edge corrupted, less that of the clean run: a mean over pairs for each edge.

    The receiver reads what the sender writes in the corrupted run; all else reads the clean. `edges` None: all of them, as
    `Graph.edges` orders them, at one partial run each. Raises AnalysisError for what is no edge, else as `circuit_values`.
    """
    graph, reader = Graph.of(model.config), reader_of(model, pairs, metric)
    whole = Circuit.full(graph)
    chosen = list(graph.edges()) if edges is None else edges
    circuits = [whole, *(whole.without(edge) for edge in chosen)]
    values = circuit_values(model, circuits, reader.pairs, reader.metric).mean(1)
    return values[1:] - values[0]


def edge_correlation(
    attribution: EdgeAttribution, effects: Float[Tensor, "edge"], edges: Sequence[Edge | str] | None = None
) -> Correlation:
    """Of attributed scores with `edge_patching`'s effects of the same edges (None: all).

    Choose the edges before looking at scores, such as at random: among the top of either, the correlation is another one.
    """
    graph = attribution.graph
    at = graph.indices if edges is None else tuple(torch.tensor([graph.index(edge) for edge in edges]).T)
    return correlate(attribution.values.cpu()[at], effects)
