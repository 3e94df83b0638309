"""A GPT-2 as a graph: what writes into the residual stream, what reads from it, and every edge between the two.

Every reader's input is the sum of everything written before it, so that an edge, one term of that sum, can be changed
alone. Senders are "embed" (token plus position embedding), every head's output "L0H3" and every MLP's "mlp 0". Receivers
are every head's three inputs "L1H2.q", "L1H2.k", "L1H2.v", every MLP's input "mlp 1", and "logits", the input of the final
layer norm. Attention reads the stream before its layer, an MLP that after the attention of its own layer. Attention's
output bias belongs to no head and is no sender: it is the same in every run.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Syed et al. 2023, "Attribution Patching
Outperforms Automated Circuit Discovery".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError

Kind = Literal["embed", "head", "mlp", "logits"]
INPUTS = ("q", "k", "v")


@dataclass(frozen=True, repr=False)
class Node:
    """A part of the model: of the stream a writer ("embed", "L0H3", "mlp 0") or a reader ("L1H2.q", "mlp 0", "logits")."""

    kind: Kind
    layer: int | None = None
    head: int | None = None
    input: Literal["q", "k", "v"] | None = None  # of a head as a reader

    @property
    def label(self) -> str:
        if self.kind in ("embed", "logits"):
            return self.kind
        if self.kind == "mlp":
            return f"mlp {self.layer}"
        return f"L{self.layer}H{self.head}" + (f".{self.input}" if self.input else "")

    @classmethod
    def from_label(cls, label: str) -> "Node":
        """The node with this label. Raises AnalysisError for what is none."""
        if label in ("embed", "logits"):
            return cls(label)
        if found := re.fullmatch(r"mlp (\d+)", label):
            return cls("mlp", int(found[1]))
        if found := re.fullmatch(r"L(\d+)H(\d+)(?:\.([qkv]))?", label):
            return cls("head", int(found[1]), int(found[2]), found[3])
        raise AnalysisError(f"{label!r} is no node; nodes are called 'embed', 'L0H3', 'L1H2.q', 'mlp 0' or 'logits'")

    @property
    def writer(self) -> "Node":
        """The writer that this reader feeds: "L1H2" of "L1H2.q", itself of an MLP. "logits" feeds none and is itself."""
        return Node(self.kind, self.layer, self.head)

    def __str__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"Node({self.label!r})"


@dataclass(frozen=True, repr=False)
class Edge:
    """What `sender` writes, as `receiver` reads it: "L0H3 -> L1H2.k"."""

    sender: Node
    receiver: Node

    @property
    def label(self) -> str:
        return f"{self.sender} -> {self.receiver}"

    @classmethod
    def from_label(cls, label: str) -> "Edge":
        """The edge with this label. Raises AnalysisError for what is none."""
        sender, arrow, receiver = label.partition(" -> ")
        if not arrow:
            raise AnalysisError(f"{label!r} is no edge; edges are called 'L0H3 -> L1H2.k', sender before receiver")
        return cls(Node.from_label(sender), Node.from_label(receiver))

    def __str__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"Edge({self.label!r})"


@dataclass(frozen=True)
class Graph:
    """Senders, receivers and the edges between them, in the order of the pass, for a model of this shape.

    Numbers per edge are tensors (sender, receiver), indexed as `senders` and `receivers` are, with `exists` saying which
    entries are edges. The senders that a receiver can read are always the first `n_upstream[receiver]` ones. Edges are
    counted as in EAP-IG (Hanna et al. 2024, "Have Faith in Faithfulness"), where a head has three inputs and the
    embeddings are one sender: 32,491 of the small GPT-2.
    """

    n_layers: int
    n_heads: int
    attn_only: bool = False

    @classmethod
    def of(cls, config: GPT2Config) -> "Graph":
        return cls(config.n_layers, config.n_heads, config.attn_only)

    # Nodes -----------------------------------------------------------------------------------------------------------

    @cached_property
    def senders(self) -> tuple[Node, ...]:
        """The embeddings, then of every layer its heads and its MLP."""
        nodes = [Node("embed")]
        for layer in range(self.n_layers):
            nodes += [Node("head", layer, head) for head in range(self.n_heads)]
            nodes += [] if self.attn_only else [Node("mlp", layer)]
        return tuple(nodes)

    @cached_property
    def receivers(self) -> tuple[Node, ...]:
        """Of every layer q of its heads, k of its heads, v of its heads and its MLP; then "logits"."""
        nodes = []
        for layer in range(self.n_layers):
            nodes += [Node("head", layer, head, which) for which in INPUTS for head in range(self.n_heads)]
            nodes += [] if self.attn_only else [Node("mlp", layer)]
        return (*nodes, Node("logits"))

    def sender_index(self, node: Node | str) -> int:
        """Where a sender stands in `senders`. Raises AnalysisError for what is none."""
        return _find(node, self._sender_indices, "sender")

    def receiver_index(self, node: Node | str) -> int:
        """Where a receiver stands in `receivers`. Raises AnalysisError for what is none."""
        return _find(node, self._receiver_indices, "receiver")

    def head_senders(self, layer: int) -> slice:
        """The heads of a layer among the senders."""
        start = 1 + layer * self._senders_per_layer
        return slice(start, start + self.n_heads)

    def head_receivers(self, layer: int) -> slice:
        """The inputs of a layer's heads among the receivers: `.unflatten(0, (3, n_heads))` is (q k v, head)."""
        start = layer * self._receivers_per_layer
        return slice(start, start + 3 * self.n_heads)

    def mlp_sender(self, layer: int) -> int:
        return self.sender_index(Node("mlp", layer))

    def mlp_receiver(self, layer: int) -> int:
        return self.receiver_index(Node("mlp", layer))

    # Edges -----------------------------------------------------------------------------------------------------------

    @cached_property
    def n_upstream(self) -> tuple[int, ...]:
        """Of every receiver, how many senders it reads: the first that many."""
        return tuple(self._seen_by(node) for node in self.receivers)

    @property
    def n_edges(self) -> int:
        return sum(self.n_upstream)

    @property
    def exists(self) -> Bool[Tensor, "sender receiver"]:
        """Which pairs are edges: the sender has written when the receiver reads."""
        return torch.arange(len(self.senders))[:, None] < torch.tensor(self.n_upstream)

    @property
    def indices(self) -> tuple[Int[Tensor, " edge"], Int[Tensor, " edge"]]:
        """Sender and receiver of every edge, in the order of `edges`: `scores[graph.indices]` has one number for each."""
        receiver, sender = self.exists.T.nonzero(as_tuple=True)
        return sender, receiver

    def edges(self) -> Iterator[Edge]:
        """Every edge, receiver by receiver in the order of the pass."""
        for receiver, n in zip(self.receivers, self.n_upstream, strict=True):
            yield from (Edge(sender, receiver) for sender in self.senders[:n])

    def index(self, edge: Edge | str) -> tuple[int, int]:
        """Sender and receiver of an edge: `scores[graph.index("L0H3 -> L1H2.k")]`. Raises AnalysisError for what is none."""
        edge = Edge.from_label(edge) if isinstance(edge, str) else edge
        sender, receiver = self.sender_index(edge.sender), self.receiver_index(edge.receiver)
        if sender >= self.n_upstream[receiver]:
            raise AnalysisError(f"there is no edge {edge.label!r}: {edge.sender} writes after {edge.receiver} has read")
        return sender, receiver

    # -----------------------------------------------------------------------------------------------------------------

    @property
    def _senders_per_layer(self) -> int:
        return self.n_heads + (not self.attn_only)

    @property
    def _receivers_per_layer(self) -> int:
        return 3 * self.n_heads + (not self.attn_only)

    def _seen_by(self, receiver: Node) -> int:
        if receiver.kind == "logits":
            return len(self.senders)
        own_heads = self.n_heads if receiver.kind == "mlp" else 0
        return 1 + receiver.layer * self._senders_per_layer + own_heads

    @cached_property
    def _sender_indices(self) -> dict[str, int]:
        return {node.label: index for index, node in enumerate(self.senders)}

    @cached_property
    def _receiver_indices(self) -> dict[str, int]:
        return {node.label: index for index, node in enumerate(self.receivers)}


def _find(node: Node | str, indices: dict[str, int], what: str) -> int:
    label = node if isinstance(node, str) else node.label
    if label not in indices:
        near = ", ".join(map(repr, get_close_matches(label, indices, n=3))) or ", ".join(map(repr, list(indices)[:3]))
        raise AnalysisError(f"{label!r} is no {what} of this model; it has {len(indices)}, such as {near}")
    return indices[label]
