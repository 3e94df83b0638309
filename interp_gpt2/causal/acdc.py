"""Pruning a model to a circuit, edge by edge, from the logits back.

Every receiver in turn, the last one first, is asked of each edge into it, the latest sender first: does the metric change
by more than a threshold when this edge is ablated too? If not, it stays ablated. Conmy et al. 2023, "Towards Automated
Circuit Discovery for Mechanistic Interpretability".

When a receiver is asked, nothing before it has been pruned yet: up to its layer the run is the clean one. So a question
costs what comes after that layer, from the cached stream, and without the heads and MLPs that nobody reads any more. Since
most edges go, questions are asked ahead: the next ones side by side, each as if all before it had been ablated. Answers
count up to the first edge that stays; what was asked after it is asked again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from interp_gpt2.causal.ablation import Ablation
from interp_gpt2.causal.circuit import Circuit, writers
from interp_gpt2.causal.circuit_pass import BUDGET, CircuitPass, Start, check_graph, measured, rows_within
from interp_gpt2.causal.gradients import AnyMetric, Reader, reader_of
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.senders import sender_outputs, stand_in
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2
from interp_gpt2.prompts.pairs import PromptPairs

if TYPE_CHECKING:
    from pandas import DataFrame

Counts = Literal["rise", "fall", "change"]
MOST_AHEAD = 256  # questions asked side by side


@dataclass(frozen=True)
class Decision:
    """What became of an edge: the metric's mean with it ablated too, and how much that changed it from before.

    `asked` is False, and the change 0, for an edge into a head or MLP that nobody reads any more: nothing would change.
    """

    edge: str
    kept: bool
    value: float
    change: float
    asked: bool = True


@dataclass(frozen=True, eq=False)
class Pruned:
    """The circuit that is left, and every decision in the order in which it was made.

    The circuit's scores are what the metric changed by when an edge that stayed was ablated, 0 where none was tried.
    An edge may be left whose sender lost all its own edges afterwards, none of them worth the threshold: it carries nothing
    any more, and `circuit.connected()` leaves it out.

    `model` and `value` are the metric's means of the whole model and of the circuit. `finished` is False after Ctrl-C: the
    edges that were not decided on are in the circuit. `n_asked` counts questions that were answered, `n_run` all that were
    run, in vain too. `margin` is the smallest distance of a change from the threshold: where it is within rounding (1e-6
    of the metric), batches of another size may decide otherwise.
    """

    circuit: Circuit
    decisions: tuple[Decision, ...]
    threshold: float
    model: float
    value: float
    metric: str
    ablation: str
    counts: Counts
    finished: bool
    n_run: int

    @property
    def n_asked(self) -> int:
        return sum(decision.asked for decision in self.decisions)

    @property
    def margin(self) -> float:
        changes = [decision.change for decision in self.decisions if decision.asked]
        return min((abs(_counted(change, self.counts) - self.threshold) for change in changes), default=float("inf"))

    def to_frame(self) -> "DataFrame":
        """The log: a row for each decision."""
        import pandas

        return pandas.DataFrame([vars(decision) for decision in self.decisions])

    def __repr__(self) -> str:
        return (
            f"Pruned({self.circuit.n_edges} of {self.circuit.graph.n_edges} edges at {self.threshold:g}; {self.metric}: model "
            f"{self.model:.4g}, circuit {self.value:.4g}{'' if self.finished else '; interrupted'})"
        )


def acdc(
    model: GPT2,
    pairs: PromptPairs,
    threshold: float,
    metric: AnyMetric = "kl_divergence",
    ablation: str | Ablation = "resample",
    counts: Counts | None = None,
    naive: bool = False,
    progress: bool = True,
) -> Pruned:
    """The circuit that is left when no edge may go whose ablation changes the metric by more than `threshold`.

    The metric is the paper's unless another is given: KL(model || circuit) at the last token, of which a rise counts. Of
    others a change in either direction does, so that what works against the metric stays too; `counts` says otherwise. Means
    over pairs are compared. `naive` asks one question at a time, each by a whole pass: the reference, to the same answers.
    Ctrl-C ends it with what was decided. All pairs run at once: they should fit in memory with every sender's output.

    Raises AnalysisError for a threshold that is negative, and as `circuit_values` does.
    """
    if not threshold >= 0:
        raise AnalysisError(f"threshold={threshold} must be at least 0, in the unit of the metric")
    counts = counts or ("rise" if metric == "kl_divergence" else "change")
    if counts not in ("rise", "fall", "change"):
        raise AnalysisError(f"counts={counts!r} must be 'rise', 'fall' or 'change'")
    graph = Graph.of(model.config)
    check_graph(model, graph)
    asking = _Asking(reader_of(model, pairs, metric), ablation)
    pruning = _Pruning(graph, asking, threshold, counts, naive)
    finished = _until_interrupted(pruning, progress)
    return Pruned(
        pruning.circuit(), tuple(pruning.decisions), threshold, pruning.model, pruning.value,
        asking.reader.name, asking.ablation, counts, finished, pruning.n_run,
    )  # fmt: skip


def _until_interrupted(pruning: "_Pruning", progress: bool) -> bool:
    from tqdm import tqdm

    with tqdm(total=pruning.graph.n_edges, desc="ACDC", unit="edge", disable=not progress) as bar:
        try:
            for n_decided in pruning.run():
                bar.update(n_decided - bar.n)
                bar.set_postfix(kept=int(pruning.kept.sum()))
        except KeyboardInterrupt:
            return False
    return True


def _counted(change: float, counts: Counts) -> float:
    return abs(change) if counts == "change" else change if counts == "rise" else -change


class _Pruning:
    """The edges that are left so far, and what was decided."""

    def __init__(self, graph: Graph, asking: "_Asking", threshold: float, counts: Counts, naive: bool) -> None:
        self.graph, self.asking, self.threshold, self.counts, self.naive = graph, asking, threshold, counts, naive
        self.kept, self.decisions, self.n_run = graph.exists, [], 0
        self.model = self.value = asking.values(self.kept[None], None)[0]
        self.writer = writers(graph)

    def run(self) -> Iterator[int]:
        """Decide on every edge; yields how many have been decided on, each time that there are more."""
        for receivers in _stages(self.graph):
            start = None if self.naive else self.asking.start(receivers[0])
            edges = []
            for receiver in receivers:  # of one stage, so that none of them changes whether another's head is read
                into = [(sender, receiver) for sender in reversed(range(self.graph.n_upstream[receiver]))]
                if self._is_read(receiver):
                    edges += into
                else:
                    self._drop(into)
            yield len(self.decisions)
            yield from self._decide(edges, start)

    def _decide(self, edges: Sequence[tuple[int, int]], start: Start | None) -> Iterator[int]:
        ahead = 1
        while edges:
            asked = edges[: 1 if self.naive else min(ahead, self.asking.most_ahead)]
            n_answered = self._answer(asked, start)
            ahead = 2 * ahead if n_answered == len(asked) else max(1, n_answered)
            edges = edges[n_answered:]
            yield len(self.decisions)

    def _answer(self, edges: Sequence[tuple[int, int]], start: Start | None) -> int:
        """Ask of each edge as if all before it went; decide up to the first that stays. How many were decided on."""
        cases = self.kept.repeat(len(edges), 1, 1)
        for case, (sender, receiver) in enumerate(edges):
            cases[case:, sender, receiver] = False
        values = self.asking.values(cases, start)
        self.n_run += len(edges)
        for n, ((sender, receiver), value) in enumerate(zip(edges, values, strict=True), 1):
            change = value - self.value
            stays = _counted(change, self.counts) > self.threshold
            self._log(sender, receiver, Decision("", stays, value, change))
            if stays:
                return n
            self.kept[sender, receiver] = False
            self.value = value
        return len(edges)

    def circuit(self) -> Circuit:
        """What is left, scored by what the metric changed by when an edge was tried without."""
        scores = torch.zeros(self.kept.shape)
        for decision in self.decisions:
            if decision.kept:
                scores[self.graph.index(decision.edge)] = decision.change
        return Circuit(self.graph, self.kept, scores)

    def _is_read(self, receiver: int) -> bool:
        writer = int(self.writer[receiver])
        return writer == len(self.graph.senders) or bool(self.kept[writer].any())

    def _drop(self, edges: Sequence[tuple[int, int]]) -> None:
        for sender, receiver in edges:
            self.kept[sender, receiver] = False
            self._log(sender, receiver, Decision("", False, self.value, 0.0, asked=False))

    def _log(self, sender: int, receiver: int, decision: Decision) -> None:
        label = f"{self.graph.senders[sender]} -> {self.graph.receivers[receiver]}"
        self.decisions.append(Decision(label, decision.kept, decision.value, decision.change, decision.asked))


def _stages(graph: Graph) -> Iterator[list[int]]:
    """Receivers that read the same stream, from the logits back; within a layer v of the last head first, then k, then q."""
    yield [len(graph.receivers) - 1]
    for layer in reversed(range(graph.n_layers)):
        if not graph.attn_only:
            yield [graph.mlp_receiver(layer)]
        heads = graph.head_receivers(layer)
        yield list(reversed(range(heads.start, heads.stop)))


class _Asking:
    """The metric's mean over pairs for any circuits."""

    def __init__(self, reader: Reader, ablation: str | Ablation) -> None:
        self.reader, self.model, self.pairs = reader, reader.model, reader.pairs
        model, pairs = self.model, self.pairs
        self.graph = Graph.of(model.config)
        stand = stand_in(ablation, model, pairs)
        self.ablation, self.ablated = stand.name, stand.of(slice(None))
        self.current = sender_outputs(model, pairs.clean, pairs.attention_mask)
        self.most_ahead = min(MOST_AHEAD, max(1, rows_within(BUDGET, model, pairs.clean.shape[1]) // len(pairs)))
        self.pair = torch.arange(len(pairs), device=pairs.clean.device)

    def start(self, receiver: int | None) -> Start:
        """The clean run where this receiver reads, or at the embeddings."""
        node = None if receiver is None else self.graph.receivers[receiver]
        n = 1 if node is None else self.graph.n_upstream[receiver]
        layer = 0 if node is None else self.model.config.n_layers if node.kind == "logits" else node.layer
        part = "attn" if node is None or node.kind == "head" else node.kind
        resid = self.current[:n].sum(0)
        for block in self.model.blocks[: layer + (part == "mlp")]:
            resid = resid if block.attn.proj.bias is None else resid + block.attn.proj.bias.detach()
        return Start(layer, part, resid, self.ablated[:n] - self.current[:n])

    @torch.no_grad()
    def values(self, kept: Bool[Tensor, "case sender receiver"], start: Start | None) -> list[float]:
        start = self.start(None) if start is None else start
        final = CircuitPass(self.model, start, kept, self.ablated, self.pairs.attention_mask).final_stream()
        return measured(self.reader, [(self.pair, final)]).double().mean(1).tolist()
