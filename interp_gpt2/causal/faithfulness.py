"""How much of a model a circuit is worth: faithfulness, completeness, minimality, and the curve over sizes.

    faithfulness(C) = (m(C) - m(empty)) / (m(model) - m(empty))

m is the metric's mean over pairs, m(empty) that of the empty circuit, in which every edge is ablated. 0 is what the ablated
model does anyway, 1 what the whole model does; a circuit that leaves out what works against the metric can have more than 1,
one that works against it less than 0. Ratios of means, not means of ratios, which pairs without an effect would rule.

Wang et al. 2022, "Interpretability in the Wild", name the three criteria; they ask of completeness and minimality that they
hold with any other part of the circuit taken out too, here it is asked of the circuit as it is: Marks et al. 2024, "Sparse
Feature Circuits" (the complement's faithfulness), and Hanna et al. 2024, "Have Faith in Faithfulness" (normalised between
the ablated and the whole model); Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark" (areas under the curve).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.causal.ablation import Ablation
from interp_gpt2.causal.circuit import Circuit, top_edges
from interp_gpt2.causal.circuit_pass import circuit_values
from interp_gpt2.causal.gradients import AnyMetric, reader_of
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.result import ratio_interval
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.prompts.pairs import PromptPairs

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How much of the metric a circuit keeps. 0: as the ablated model; 1: as the whole model.

    `low` and `high` are its 95 % confidence interval over pairs drawn like these, see `ratio_interval` (None of fewer than two
    pairs, or of a metric that gives one number). `complement` is the faithfulness of all edges that are not in the circuit: 0
    where the circuit is complete, since without it nothing is left; above 0 for what other paths still do.
    """

    value: float
    low: float | None
    high: float | None
    complement: float
    circuit: Float[Tensor, "pair"]
    model: Float[Tensor, "pair"]
    ablated: Float[Tensor, "pair"]
    n_edges: int
    n_edges_of_model: int
    metric: str
    ablation: str

    def __repr__(self) -> str:
        interval = "" if self.low is None else f" ({self.low:.3g} to {self.high:.3g})"
        return (
            f"Faithfulness({self.value:.3g}{interval} with {self.n_edges} of {self.n_edges_of_model} edges, the rest alone "
            f"{self.complement:.3g}; {self.metric}: model {self.model.mean():.4g}, circuit {self.circuit.mean():.4g}, "
            f"{self.ablation} {self.ablated.mean():.4g}; {len(self.model)} pairs)"
        )


@dataclass(frozen=True, eq=False)
class Minimality:
    """How much faithfulness a circuit loses with each of its edges, or nodes, alone: 0 is a part that it does not need.

    `effects` are faithfulness with it less without it, in the order of `labels`, that of the pass; negative: the circuit
    is more faithful without it. Redundant parts, either of which would do, both show 0.
    """

    labels: tuple[str, ...]
    effects: Float[Tensor, " part"]
    kind: Literal["edges", "nodes"]
    faithfulness: float
    metric: str
    ablation: str

    def to_frame(self) -> "DataFrame":
        """A row for each part, the largest effects in absolute value first."""
        import pandas

        order = self.effects.abs().argsort(descending=True, stable=True).tolist()
        return pandas.DataFrame([{"part": self.labels[i], "effect": float(self.effects[i])} for i in order])


@dataclass(frozen=True, eq=False)
class FaithfulnessCurve:
    """Faithfulness of the circuits of the n best edges, over n; `kept` are the edges that are left of them on paths.

    `area` is that under the curve, over the share of edges from 0 to 1 (MIB's CPR, where larger is better), `distance` that
    between the curve and 1 (MIB's CMD, where smaller is better; it is 0 for circuits that do as the model does). Both by
    the trapezoid rule, from the empty circuit (0) to the whole model (1).
    """

    n_edges: tuple[int, ...]
    kept: tuple[int, ...]
    faithfulness: Float[Tensor, " size"]
    low: Float[Tensor, " size"] | None
    high: Float[Tensor, " size"] | None
    n_edges_of_model: int
    metric: str
    ablation: str

    @property
    def area(self) -> float:
        return self._integral(self.faithfulness.tolist(), 0.0, 1.0)

    @property
    def distance(self) -> float:
        return self._integral((1 - self.faithfulness).abs().tolist(), 1.0, 0.0)

    def to_frame(self) -> "DataFrame":
        """A row for each size: n_edges, kept, faithfulness, and the ends of its interval where there is one."""
        import pandas

        columns = {"n_edges": self.n_edges, "kept": self.kept, "faithfulness": self.faithfulness}
        return pandas.DataFrame(columns | {"low": self.low, "high": self.high})

    def _integral(self, values: list[float], first: float, last: float) -> float:
        known = {0: first, self.n_edges_of_model: last} | dict(zip(self.n_edges, values, strict=True))
        at = sorted(known)
        x = torch.tensor(at, dtype=torch.float64) / self.n_edges_of_model
        return float(torch.trapezoid(torch.tensor([known[n] for n in at], dtype=torch.float64), x))


def faithfulness(
    model: GPT2,
    circuit: Circuit,
    pairs: PromptPairs,
    metric: AnyMetric = "logit_difference",
    ablation: str | Ablation = "resample",
) -> Faithfulness:
    """How much of the metric the circuit keeps, and how much the edges outside it would keep. See the module.

    Raises AnalysisError if the ablated model does as the whole one, so that there is nothing to keep.
    """
    circuits = [circuit, circuit.complement()]
    values = _Values.of(model, circuits, pairs, metric, ablation)
    low, high = values.interval()
    value, complement = values.normalised().tolist()
    return Faithfulness(
        value, None if low is None else float(low[0]), None if high is None else float(high[0]), complement,
        values.circuits[0], values.model, values.ablated, circuit.n_edges, circuit.graph.n_edges, values.metric, values.ablation,
    )  # fmt: skip


def minimality(
    model: GPT2,
    circuit: Circuit,
    pairs: PromptPairs,
    metric: AnyMetric = "logit_difference",
    ablation: str | Ablation = "resample",
    parts: Literal["edges", "nodes"] = "edges",
) -> Minimality:
    """What every edge of the circuit, or every head and MLP in it, adds to its faithfulness: with it less without it.

    All run side by side, one circuit a part. Raises AnalysisError as `faithfulness`, and for a circuit without parts.
    """
    if parts not in ("edges", "nodes"):
        raise AnalysisError(f"parts={parts!r} must be 'edges' or 'nodes'")
    nodes = [node for node in circuit.nodes if node.kind != "embed"]
    labels = circuit.labels if parts == "edges" else tuple(node.label for node in nodes)
    if not labels:
        raise AnalysisError(f"the circuit has no {parts} to leave out")
    without = [circuit.without(label) if parts == "edges" else circuit.without_node(label) for label in labels]
    values = _Values.of(model, [circuit, *without], pairs, metric, ablation)
    whole, *rest = values.normalised().tolist()
    effects = whole - torch.tensor(rest, dtype=torch.float64)
    return Minimality(labels, effects, parts, whole, values.metric, values.ablation)


def faithfulness_curve(
    model: GPT2,
    scores: Float[Tensor, "sender receiver"],
    pairs: PromptPairs,
    metric: AnyMetric = "logit_difference",
    ablation: str | Ablation = "resample",
    sizes: Sequence[int] | None = None,
    choose: Callable[[Graph, Tensor, int], Circuit] = top_edges,
) -> FaithfulnessCurve:
    """Faithfulness of the circuits that `choose` makes of the scores (`top_edges` or `greedy_edges`), over their size.

    `sizes` are numbers of edges; None: about twelve, each about twice the one before, up to a half of all, and then all.
    Raises AnalysisError as `faithfulness`, and for sizes that the graph does not have.
    """
    graph = Graph.of(model.config)
    sizes = _doubling(graph.n_edges) if sizes is None else sorted(set(sizes))
    circuits = [choose(graph, scores, size) for size in sizes]
    if not circuits:
        raise AnalysisError("there are no sizes to measure at; pass at least one number of edges")
    values = _Values.of(model, circuits, pairs, metric, ablation)
    low, high = values.interval()
    kept = tuple(circuit.n_edges for circuit in circuits)
    return FaithfulnessCurve(
        tuple(sizes), kept, values.normalised(), low, high, graph.n_edges, values.metric, values.ablation
    )  # fmt: skip


def _doubling(n_edges: int) -> list[int]:
    sizes = {max(1, round(n_edges / 2**power)) for power in range(1, 13)}
    return [*sorted(sizes), n_edges]


@dataclass(frozen=True, eq=False)
class _Values:
    """The metric of circuits and of the two ends, float64: (circuit, pair) and (pair,)."""

    circuits: Float[Tensor, "circuit pair"]
    model: Float[Tensor, "pair"]
    ablated: Float[Tensor, "pair"]
    metric: str
    ablation: str

    @classmethod
    def of(
        cls, model: GPT2, circuits: list[Circuit], pairs: PromptPairs, metric: AnyMetric, ablation: str | Ablation
    ) -> "_Values":
        graph = Graph.of(model.config)
        ends = [Circuit.full(graph), Circuit.empty(graph)]
        reader = reader_of(model, pairs, metric)
        name, metric = reader.name, reader.metric
        whole, empty = circuit_values(model, ends, pairs, metric, ablation).double().cpu()
        kind = ablation if isinstance(ablation, str) else ablation.kind
        if abs(float(whole.mean() - empty.mean())) <= 1e-6 * float(torch.cat([whole, empty]).abs().max()):
            raise AnalysisError(
                f"the {name} is {float(whole.mean()):.4g} with every edge and with none ({kind} ablation): there is nothing "
                "that a circuit could keep; use other prompts or another metric"
            )
        return cls(circuit_values(model, circuits, pairs, metric, ablation).double().cpu(), whole, empty, name, kind)

    def normalised(self) -> Float[Tensor, " circuit"]:
        return (self.circuits.mean(1) - self.ablated.mean()) / (self.model.mean() - self.ablated.mean())

    def interval(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Of `normalised`. Drawing so few pairs again would be too narrow: 85 % with 5 pairs, 90 % with 10, by simulation."""
        if len(self.model) < 2:
            return None, None
        return ratio_interval(self.circuits - self.ablated, self.model - self.ablated)
