"""Circuits: some of a model's edges, chosen by hand, by nodes or by scores.

A circuit says which edges of the `Graph` stay. What it computes is `circuit_pass`, how much of the model it is worth
`faithfulness`, how to search for one `acdc`.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.causal.graph import Edge, Graph, Node
from interp_gpt2.errors import AnalysisError

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of edges of the graph. Every edge that it lacks carries something else than what its sender writes.

    `scores` are what it was chosen by, if it was; `dropped` are edges that were chosen and then left out, because they
    reach no logits or come from nowhere.
    """

    graph: Graph
    kept: Bool[Tensor, "sender receiver"]
    scores: Float[Tensor, "sender receiver"] | None = None
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        exists = self.graph.exists
        for name, value in (("kept", self.kept), ("scores", self.scores)):
            if value is not None and value.shape != exists.shape:
                raise AnalysisError(f"{name} has shape {tuple(value.shape)}; expected (sender, receiver) {tuple(exists.shape)}")
        if self.kept.dtype != torch.bool:
            raise AnalysisError(f"kept holds {self.kept.dtype}; expected True and False for every edge")
        object.__setattr__(self, "kept", self.kept.cpu() & exists)

    # Ways to get one -------------------------------------------------------------------------------------------------

    @classmethod
    def full(cls, graph: Graph) -> "Circuit":
        """Every edge: the model itself."""
        return cls(graph, graph.exists)

    @classmethod
    def empty(cls, graph: Graph) -> "Circuit":
        """No edge: everything that reads reads what was put in the senders' place."""
        return cls(graph, torch.zeros_like(graph.exists))

    @classmethod
    def of_edges(cls, graph: Graph, edges: Iterable[Edge | str]) -> "Circuit":
        """These edges, `"L0H3 -> L1H2.k"`. Raises AnalysisError for what is none."""
        kept = torch.zeros_like(graph.exists)
        for edge in edges:
            kept[graph.index(edge)] = True
        return cls(graph, kept)

    @classmethod
    def of_nodes(cls, graph: Graph, nodes: Iterable[Node | str]) -> "Circuit":
        """Every edge among these writers, the embeddings and the logits, which always belong to it.

        That is to ablate all other heads and MLPs. Raises AnalysisError for a node that is no writer of this model.
        """
        inside = torch.zeros(len(graph.senders) + 1, dtype=torch.bool)
        inside[[0, -1]] = True  # the embeddings and the logits
        for node in nodes:
            inside[graph.sender_index(node)] = True
        return cls(graph, inside[:-1, None] & inside[writers(graph)])

    # What is in it ---------------------------------------------------------------------------------------------------

    @cached_property
    def n_edges(self) -> int:
        return int(self.kept.sum())

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Its edges, receiver by receiver in the order of the pass."""
        receivers, senders = self.kept.T.nonzero(as_tuple=True)
        return tuple(
            Edge(self.graph.senders[sender], self.graph.receivers[receiver])
            for sender, receiver in zip(senders.tolist(), receivers.tolist(), strict=True)
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(edge.label for edge in self.edges)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The writers that one of its edges leaves or enters, in the order of the pass."""
        touched = self.kept.any(1)
        into = writers(self.graph)[self.kept.any(0)]
        touched[into[into < len(touched)]] = True
        return tuple(node for node, there in zip(self.graph.senders, touched.tolist(), strict=True) if there)

    def __contains__(self, edge: object) -> bool:
        return isinstance(edge, (str, Edge)) and bool(self.kept[self.graph.index(edge)])

    def __len__(self) -> int:
        return self.n_edges

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.graph == other.graph and torch.equal(self.kept, other.kept)

    def __hash__(self) -> int:
        return hash((self.graph, self.kept.numpy().tobytes()))

    def __repr__(self) -> str:
        shown = ", ".join(self.labels[:4]) + (", ..." if self.n_edges > 4 else "")
        return f"Circuit({self.n_edges} of {self.graph.n_edges} edges: {shown})"

    def rows(self) -> list[dict[str, Any]]:
        """Of each edge its label, sender, receiver and score (None where there are none)."""
        return [
            {
                "edge": edge.label,
                "sender": edge.sender.label,
                "receiver": edge.receiver.label,
                "score": None if self.scores is None else float(self.scores[self.graph.index(edge)]),
            }
            for edge in self.edges
        ]

    def to_frame(self) -> "DataFrame":
        """`rows` as a DataFrame."""
        import pandas

        return pandas.DataFrame(self.rows())

    # Others made of it -----------------------------------------------------------------------------------------------

    def complement(self) -> "Circuit":
        """Every edge that is not in it."""
        return replace(self, kept=~self.kept, dropped=())

    def without(self, *edges: Edge | str) -> "Circuit":
        kept = self.kept.clone()
        for edge in edges:
            kept[self.graph.index(edge)] = False
        return replace(self, kept=kept)

    def without_node(self, node: Node | str) -> "Circuit":
        """Without a writer: without all edges that leave it, so that nobody reads what it writes."""
        kept = self.kept.clone()
        kept[self.graph.sender_index(node)] = False
        return replace(self, kept=kept)

    def connected(self) -> "Circuit":
        """Without the edges on no path from the embeddings to the logits; `dropped` names them.

        Under resample ablation this changes nothing: what reads only the other prompt writes what it writes there, and
        nobody hears what reaches no logits. Under the others, an edge from a node that reads only ablated inputs is
        not the same as an ablated edge, so that dropping it makes another circuit.
        """
        dangling = self.kept & ~on_a_path(self.graph, self.kept)
        lost = replace(self, kept=dangling, dropped=()).labels
        return replace(self, kept=self.kept & ~dangling, dropped=(*self.dropped, *lost))


# By scores ------------------------------------------------------------------------------------------------------------


def top_edges(graph: Graph, scores: Float[Tensor, "sender receiver"], n: int) -> Circuit:
    """The n edges with the greatest absolute scores, less those on no path from the embeddings to the logits.

    `Circuit.dropped` names what was left out for that, so that `n_edges + len(dropped)` is n. Of equal scores, the
    earlier edge of the pass comes first. Raises AnalysisError if there are no n edges, or a score is not finite.
    """
    flat = _scores_of_edges(graph, scores, n)
    senders, receivers = graph.indices
    chosen = flat.abs().sort(descending=True, stable=True).indices[:n]
    kept = torch.zeros_like(graph.exists)
    kept[senders[chosen], receivers[chosen]] = True
    return Circuit(graph, kept, scores.cpu()).connected()


def greedy_edges(graph: Graph, scores: Float[Tensor, "sender receiver"], n: int) -> Circuit:
    """n edges, grown back from the logits: each time the greatest absolute score among the edges into what is there.

    So that every edge leads to the logits from the start; what still comes from nowhere at the end is left out, and named
    in `Circuit.dropped`. Hanna et al. 2024, "Have Faith in Faithfulness". Raises as `top_edges` does.
    """
    flat = _scores_of_edges(graph, scores, n).abs()
    senders, receivers = (index.tolist() for index in graph.indices)
    into: dict[int, list[tuple[float, int]]] = {}
    writer = writers(graph).tolist()
    for edge, (score, receiver) in enumerate(zip(flat.tolist(), receivers, strict=True)):
        into.setdefault(writer[receiver], []).append((-score, edge))
    frontier, inside = list(into[len(graph.senders)]), set()
    heapq.heapify(frontier)
    kept = torch.zeros_like(graph.exists)
    for _ in range(n):
        _, edge = heapq.heappop(frontier)  # never empty: the embeddings alone end a path, and every sender has edges
        kept[senders[edge], receivers[edge]] = True
        if senders[edge] not in inside:
            inside.add(senders[edge])
            for entry in into.get(senders[edge], ()):
                heapq.heappush(frontier, entry)
    return Circuit(graph, kept, scores.cpu()).connected()


def _scores_of_edges(graph: Graph, scores: Tensor, n: int) -> Float[Tensor, " edge"]:
    if not isinstance(scores, Tensor):
        raise AnalysisError(
            f"scores are a tensor (sender, receiver), not {type(scores).__name__}; of an attribution, pass its values"
        )
    if tuple(scores.shape) != tuple(graph.exists.shape):
        raise AnalysisError(f"scores have shape {tuple(scores.shape)}; expected (sender, receiver) {tuple(graph.exists.shape)}")
    flat = scores.detach().cpu()[graph.indices]
    if not flat.isfinite().all():
        raise AnalysisError(f"{int((~flat.isfinite()).sum())} scores of edges are not finite; nothing can be ranked by them")
    if type(n) is not int or not 0 <= n <= len(flat):
        raise AnalysisError(f"there are no {n} edges to keep; the graph has {len(flat)}")
    return flat


# Paths ----------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def writers(graph: Graph) -> Int[Tensor, " receiver"]:
    """Of every receiver, the sender that it feeds; of the logits, which feed none, the number of senders."""
    found = [graph.sender_index(node.writer) for node in graph.receivers[:-1]]
    return torch.tensor([*found, len(graph.senders)])


def on_a_path(graph: Graph, kept: Bool[Tensor, "sender receiver"]) -> Bool[Tensor, "sender receiver"]:
    """Which kept edges lie on a path of kept edges from the embeddings to the logits."""
    n = len(graph.senders)
    writer = writers(graph)
    follows = torch.zeros(n, n + 1, dtype=torch.bool).index_put((torch.arange(n)[:, None], writer[None]), kept, accumulate=True)
    reached = torch.zeros(n, dtype=torch.bool)  # from the embeddings
    reached[0] = True
    for node in range(1, n):
        reached[node] = (follows[:node, node] & reached[:node]).any()
    leads = torch.zeros(n + 1, dtype=torch.bool)  # to the logits
    leads[n] = True
    for node in reversed(range(n)):
        leads[node] = (follows[node, node + 1 :] & leads[node + 1 :]).any()
    return kept & reached[:, None] & leads[writer]
