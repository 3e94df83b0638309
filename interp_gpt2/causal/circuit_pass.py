"""A pass through a model in which some edges carry something else than what their sender writes.

Every reader's input is the stream plus, for each edge into it that is not in the circuit, what was put in the sender's
place less what the sender writes now: for q, k and v of each head apart, each through a layer norm of its own. Many
circuits run as one batch. What all of them share is computed once: a pass may start behind the last layer in which every
edge is kept, and a head or an MLP that nobody reads is not computed at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.causal.ablation import Ablation
from interp_gpt2.causal.circuit import Circuit, writers
from interp_gpt2.causal.gradients import AnyMetric, Reader, reader_of
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.senders import Stand, stand_in
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import NO_HOOKS
from interp_gpt2.inputs import positions_and_visible
from interp_gpt2.model import GPT2
from interp_gpt2.passes import EditedGPT2
from interp_gpt2.prompts.pairs import PromptPairs

BUDGET = 2**30  # bytes for the tensors of one batch


# The pass -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Start:
    """Where a pass starts: before a layer's attention, before its MLP, or before the logits; nothing earlier is ablated.

    `resid` is the stream there, `change` of every sender so far what was put in its place less what it writes.
    """

    layer: int
    part: Literal["attn", "mlp", "logits"]
    resid: Float[Tensor, "pair pos d_model"]
    change: Float[Tensor, "sender pair pos d_model"]


class CircuitPass:
    """Circuits (case, receiver, sender) of edges to be replaced, run side by side from one start."""

    def __init__(self, model: GPT2, start: Start, kept: Tensor, ablated: Tensor, attention_mask: Tensor | None) -> None:
        self.model, self.start, self.ablated = model, start, ablated
        self.graph = Graph.of(model.config)
        self.read = _read(self.graph, kept.cpu().any(0))  # (sender,): in any case
        replaced = ~kept.cpu() & self.graph.exists
        self.any_replaced = replaced.any(0).any(0)  # (receiver,)
        self.replaced = replaced.mT.to(start.resid)  # (case, receiver, sender)
        self.resid = start.resid[None]  # (1 or case, pair, pos, d_model)
        shape = (len(kept), len(self.graph.senders) - len(start.change), *start.resid.shape)
        self.changes = start.resid.new_zeros(shape)  # of the senders after the start: (case, sender, pair, pos, d_model)
        self.visible = positions_and_visible(start.resid.shape[1], attention_mask, 0, start.resid.device)[1]

    def final_stream(self) -> Float[Tensor, "case pair pos d_model"]:
        """What the final layer norm reads in every case."""
        for layer in range(self.start.layer, self.model.config.n_layers):
            if (layer, self.start.part) != (self.start.layer, "mlp"):
                self.attention(layer)
            if not self.model.config.attn_only:
                self.mlp(layer)
        final = self.resid + self.change_into([len(self.graph.receivers) - 1]).squeeze(1)
        return final.expand(len(self.replaced), *final.shape[1:])

    def change_into(self, receivers: list[int]) -> Float[Tensor, "case receiver pair pos d_model"]:
        """What the replaced edges into these receivers change in their inputs; one case of zeros where none is replaced."""
        if not self.any_replaced[receivers].any():
            return self.resid.new_zeros(1, len(receivers), 1, 1, 1)
        replaced = self.replaced[:, receivers]  # (case, receiver, sender)
        n, n_shared = self.graph.n_upstream[receivers[0]], len(self.start.change)
        change = (replaced[..., :n_shared].flatten(0, 1) @ self.start.change.flatten(1)).unflatten(0, replaced.shape[:2])
        if n > n_shared:
            change = change.baddbmm(replaced[..., n_shared:n], self.changes[:, : n - n_shared].flatten(2))
        return change.unflatten(-1, self.start.resid.shape)

    def wrote(self, senders: list[int], outputs: Float[Tensor, "case sender pair pos d_model"]) -> None:
        """Remember what these senders write now, and add it to the stream."""
        own = [sender - len(self.start.change) for sender in senders]
        self.changes[:, own] = self.ablated[senders] - outputs
        self.resid = self.resid + outputs.sum(1)

    def unread(self, senders: list[int]) -> None:
        """Nobody reads these: whatever they write, everybody reads what was put in its place. Nothing is computed."""
        if senders:
            self.resid = self.resid + self.ablated[senders].sum(0)

    def attention(self, layer: int) -> None:
        attn, first = self.model.blocks[layer].attn, self.graph.head_senders(layer).start
        heads = [head for head in range(attn.n_heads) if self.read[first + head]]
        if heads:
            q, k, v = self.qkv(layer, heads)  # (case * pair, pos, head, d_head)
            n_cases = len(q) // self.start.resid.shape[0]
            visible = self.visible if self.visible is None else self.visible.repeat(n_cases, 1, 1, 1)
            z = attn.attend_fused(q, k, v, NO_HOOKS, visible).unflatten(0, (n_cases, -1))
            W_O = attn.proj.weight.unflatten(1, (attn.n_heads, attn.d_head))[:, heads]  # (d_model, head, d_head)
            self.wrote([first + head for head in heads], torch.einsum("cbphe,dhe->chbpd", z, W_O))
        self.unread([first + head for head in range(attn.n_heads) if head not in heads])
        if attn.proj.bias is not None:
            self.resid = self.resid + attn.proj.bias

    def qkv(self, layer: int, heads: list[int]) -> Sequence[Tensor]:
        """q, k and v of some heads, each head's from an input of its own where an edge into one of them is replaced."""
        block = self.model.blocks[layer]
        attn, first = block.attn, self.graph.head_receivers(layer).start
        inputs = [first + which * attn.n_heads + head for which in range(3) for head in heads]
        if not self.any_replaced[inputs].any():
            return [part[:, :, heads] for part in attn.project(block.ln1(self.resid.flatten(0, 1)))]
        streams = block.ln1(self.resid[:, None] + self.change_into(inputs))  # (case, q k v * head, pair, pos, d_model)
        weights = attn.qkv.weight.unflatten(0, (3, attn.n_heads, attn.d_head))[:, heads].flatten(0, 1)
        found = torch.einsum("cibpd,ied->icbpe", streams, weights)
        if attn.qkv.bias is not None:
            biases = attn.qkv.bias.unflatten(0, (3, attn.n_heads, attn.d_head))[:, heads].flatten(0, 1)
            found = found + biases[:, None, None, None]
        return found.flatten(1, 2).unflatten(0, (3, len(heads))).permute(0, 2, 3, 1, 4).unbind(0)

    def mlp(self, layer: int) -> None:
        block, sender = self.model.blocks[layer], self.graph.mlp_sender(layer)
        if not self.read[sender]:
            return self.unread([sender])
        mlp_in = self.resid + self.change_into([self.graph.mlp_receiver(layer)]).squeeze(1)
        self.wrote([sender], block.mlp(block.ln2(mlp_in), NO_HOOKS)[:, None])


def _read(graph: Graph, kept: Tensor) -> Tensor:
    """Which senders anybody reads who is read himself, up to the logits: (sender,)."""
    writer, read = writers(graph), torch.zeros(len(graph.senders) + 1, dtype=torch.bool)
    read[-1] = True
    for sender in reversed(range(len(graph.senders))):
        read[sender] = (kept[sender] & read[writer]).any()
    return read[:-1]


# Circuits -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def circuit_logits(
    model: GPT2, circuit: Circuit, pairs: PromptPairs, ablation: str | Ablation = "resample"
) -> Float[Tensor, "pair pos d_vocab"]:
    """Logits of the clean prompts when only the circuit's edges carry what their senders write.

    What all other edges carry is the `ablation`, by name or made by `causal.ablation`: see `stand_in`. The full circuit is
    the model; the empty one, under resample ablation, is the model on the corrupted prompts. What stands at padding means
    nothing. Raises AnalysisError for a circuit of another model.
    """
    require_eval(model)
    check_graph(model, circuit.graph)
    pairs.check(model.config)
    streams = _streams(model, [circuit], stand_in(ablation, model, pairs.to(model.device)))
    return torch.cat([model.unembed(stream[0]) for _, stream in streams])


@torch.no_grad()
def circuit_values(
    model: GPT2,
    circuits: Sequence[Circuit],
    pairs: PromptPairs,
    metric: AnyMetric = "logit_difference",
    ablation: str | Ablation = "resample",
) -> Float[Tensor, "circuit pair"]:
    """The metric of every circuit on every pair, of `circuit_logits`; circuits and pairs run side by side, within BUDGET.

    A metric of the pairs' answers goes by its name, "logit_difference" or "kl_divergence" and so on. A plain function of
    the whole logits may give one number for all pairs; then it is (circuit, 1).
    """
    if not circuits:
        raise AnalysisError("there are no circuits to run; pass at least one")
    check_graph(model, circuits[0].graph)
    reader = reader_of(model, pairs, metric)
    stand = stand_in(ablation, model, reader.pairs)
    n_side_by_side = max(1, rows_within(BUDGET, model, pairs.clean.shape[1]) // len(pairs))
    found = []
    for at in range(0, len(circuits), n_side_by_side):
        streams = _streams(model, circuits[at : at + n_side_by_side], stand)
        found.append(measured(reader, list(streams)))
    return torch.cat(found)


def measured(reader: Reader, parts: list[tuple[Int[Tensor, " pair"], Tensor]]) -> Float[Tensor, "case pair"]:
    """The metric on final streams (case, pair, pos, d_model), of some pairs at a time. Raises AnalysisError as `Reader`."""
    if reader.divisible:
        values = [reader(stream.flatten(0, 1), pair.repeat(len(stream))).unflatten(0, stream.shape[:2]) for pair, stream in parts]
        return torch.cat(values, 1)
    pair = torch.cat([pair for pair, _ in parts])
    return torch.stack([reader(stream, pair).reshape(-1) for stream in torch.cat([stream for _, stream in parts], 1)])


def check_graph(model: GPT2, graph: Graph) -> None:
    """Raises AnalysisError for a model whose edges these are not, or under standing edits, which are no edges."""
    if isinstance(model, EditedGPT2):
        raise AnalysisError("a model with standing edits has no circuits here; use the model that with_edits was called on")
    if graph != Graph.of(model.config):
        raise AnalysisError(f"the circuit is of another model, {graph}; this one is {Graph.of(model.config)}")


def _streams(model: GPT2, circuits: Sequence[Circuit], stand: Stand) -> Iterator[tuple[Tensor, Tensor]]:
    """Some pairs at a time: their numbers, and the final stream of every circuit on them."""
    pairs, mask = stand.pairs, stand.pairs.attention_mask
    kept = torch.stack([circuit.kept for circuit in circuits])
    size = max(1, rows_within(BUDGET, model, pairs.clean.shape[1]) // len(circuits))
    for pair in torch.arange(len(pairs), device=pairs.clean.device).split(size):
        rows = slice(int(pair[0]), int(pair[-1]) + 1)
        ablated, rows_mask = stand.of(rows), None if mask is None else mask[rows]
        resid = model.embed(pairs.clean[rows], attention_mask=rows_mask)
        start = Start(0, "attn" if model.config.n_layers else "logits", resid, ablated[:1] - resid)
        yield pair, CircuitPass(model, start, kept, ablated, rows_mask).final_stream()


def rows_within(budget: int, model: GPT2, n_pos: int) -> int:
    """How many prompts may run side by side, each with every sender's output twice and its heads' inputs thrice."""
    tensors = 2 * len(Graph.of(model.config).senders) + 9 * model.config.n_heads + 12
    return max(1, budget // (tensors * n_pos * model.config.d_model * model.wte.weight.element_size()))
