"""Edge attribution: what patching each edge of the graph alone would do to a metric, to first order, for all edges at once.

    score(s -> r) = sum over positions of (corrupted output of s - clean output of s) . d metric / d input of r

The derivative is taken in the clean run, so that a score estimates the metric of the clean run with this edge corrupted,
less that of the clean run: a negative score is an edge that the metric rests on. `pairs.swapped()` gives the other
direction, what restoring the edge in the corrupted run would bring. Scores are means over pairs.

EAP costs one pass of both runs and one way back, for any number of edges: Syed et al. 2023, "Attribution Patching
Outperforms Automated Circuit Discovery". It trusts the derivative at one point, and where that is flat (a saturated
attention pattern, a probability near 1) it sees nothing. EAP-IG averages derivatives along a path from the corrupted run to
the clean one: Hanna et al. 2024, "Have Faith in Faithfulness". What heads write is held whole: projecting every receiver's
derivative by every earlier head's W_O instead would take d_head times the products.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.cache import ActivationCache
from interp_gpt2.causal.engine import BUDGET
from interp_gpt2.causal.gradients import AnyMetric, Reader, pass_from, reader_of, way_back
from interp_gpt2.causal.graph import Edge, Graph
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import Edits
from interp_gpt2.linear import linear
from interp_gpt2.model import GPT2
from interp_gpt2.prompts.pairs import PromptPairs


@dataclass(frozen=True, eq=False)
class EdgeAttribution:
    """A score for every edge, in the unit of the metric: `values[graph.index("L0H3 -> L1H2.k")]`; 0 where there is no edge.

    `values` are means over pairs, `standard_error` theirs (None of fewer than two numbers). `clean` and `corrupted` are the
    metric's own means. A metric that gives one number for all pairs has the scores of that number.
    """

    graph: Graph
    values: Float[Tensor, "sender receiver"]
    standard_error: Float[Tensor, "sender receiver"] | None
    clean: float
    corrupted: float
    n_pairs: int
    metric: str
    method: str

    def __getitem__(self, edge: Edge | str) -> float:
        """The score of an edge. Raises AnalysisError for what is none."""
        return float(self.values[self.graph.index(edge)])

    def top(self, n: int) -> list[tuple[Edge, float]]:
        """The n edges of largest absolute score, with their scores, largest first."""
        senders, receivers = self.graph.indices
        scores = self.values[senders, receivers].cpu()
        order = scores.abs().argsort(descending=True, stable=True)[:n]
        graph = self.graph
        return [(Edge(graph.senders[senders[i]], graph.receivers[receivers[i]]), float(scores[i])) for i in order]

    @property
    def residue(self) -> float:
        """(corrupted - clean) less the sum over the edges out of "embed": what the steps of EAP-IG have not reached.

        The runs differ in their embeddings alone, and those act through these edges alone, so that with more steps this goes
        to 0 (the completeness of integrated gradients). Of EAP, which has one step, it is the error of the first order.
        """
        return self.corrupted - self.clean - float(self.values[0].double().sum())


@dataclass(frozen=True, eq=False)
class PositionEdgeAttribution:
    """`EdgeAttribution` position by position: what a sender wrote at each, where the receiver reads it too."""

    graph: Graph
    values: Float[Tensor, "pos sender receiver"]
    standard_error: Float[Tensor, "pos sender receiver"] | None
    position_labels: tuple[str, ...]
    n_pairs: int
    metric: str


def eap(model: GPT2, pairs: PromptPairs, metric: AnyMetric = "logit_difference", budget: int = BUDGET) -> EdgeAttribution:
    """Edge attribution patching: the derivative in the clean run alone. See the module.

    `metric` may be the name of one, as in activation patching. The KL divergence from the clean run has derivative 0 in that
    run: EAP sees nothing there, EAP-IG does. `budget` is how many bytes of activations are held at once, by splitting the
    pairs; a plain function of whole logits cannot be split. Raises AnalysisError for runs that do not differ, a metric that
    is not a finite number for each pair or for all, or has no derivative, and a model with active dropout; EditError for
    standing edits.
    """
    return _attribution(model, pairs, metric, budget, 1, "EAP")


def eap_ig_inputs(
    model: GPT2, pairs: PromptPairs, metric: AnyMetric = "logit_difference", steps: int = 5, budget: int = BUDGET
) -> EdgeAttribution:
    """EAP-IG over inputs: derivatives averaged over runs whose embeddings lie between the corrupted and the clean ones.

    At corrupted + k/steps (clean - corrupted), k = 1 .. steps (the paper's sum; its reference code has taken k = 0 ..
    steps - 1 too); steps=1 is `eap`. Look at `residue`, and take more steps while it shrinks. Raises as `eap`.
    """
    return _attribution(model, pairs, metric, budget, _checked(steps), f"EAP-IG (inputs, {steps} steps)")


def eap_ig_activations(
    model: GPT2, pairs: PromptPairs, metric: AnyMetric = "logit_difference", steps: int = 5, budget: int = BUDGET
) -> EdgeAttribution:
    """EAP-IG over activations: the derivative for a sender's edges is averaged over runs between its own two outputs.

    The senders of one place go together (the embeddings, the heads of a layer, an MLP): their outputs are corrupted +
    k/steps (clean - corrupted), k = 1 .. steps, in the otherwise clean run. So the edges out of one place add up, with
    more steps, to what patching that place does. Costs 2 n_layers + 1 times as many (partial) runs as `eap_ig_inputs`.
    The reference code of EAP-IG averages all edges over the runs of all places instead. Raises as `eap`.
    """
    return _attribution(model, pairs, metric, budget, _checked(steps), f"EAP-IG (activations, {steps} steps)", True)


def eap_by_position(
    model: GPT2, pairs: PromptPairs, metric: AnyMetric = "logit_difference", budget: int = BUDGET
) -> PositionEdgeAttribution:
    """`eap` before the sum over positions. Means over pairs at the same position; at padding scores are 0. Raises as `eap`."""
    reader, mean = reader_of(model, pairs, metric), _Mean()
    for runs in _batches(model, reader, 1, budget):
        mean.add(runs.along_inputs(1, by_position=True), reader.divisible)
    labels = tuple(reader.pairs.position_labels)
    return PositionEdgeAttribution(Graph.of(model.config), mean.value, mean.standard_error, labels, len(pairs), reader.name)


def _attribution(
    model: GPT2, pairs: PromptPairs, metric: AnyMetric, budget: int, steps: int, method: str, activations: bool = False
) -> EdgeAttribution:
    reader, mean, clean, corrupted = reader_of(model, pairs, metric), _Mean(), _Mean(), _Mean()
    for runs in _batches(model, reader, steps, budget):
        per_pair = runs.ends[0].ndim > 0
        clean.add(runs.ends[0].reshape(-1), True)
        corrupted.add(runs.ends[1].reshape(-1), True)
        mean.add(runs.along_activations(steps) if activations else runs.along_inputs(steps), per_pair)
    ends = float(clean.value), float(corrupted.value)
    return EdgeAttribution(Graph.of(model.config), mean.value, mean.standard_error, *ends, len(pairs), reader.name, method)


def _checked(steps: int) -> int:
    if type(steps) is not int or steps < 1:
        raise AnalysisError(f"steps={steps!r}: the path from the corrupted to the clean run takes at least one step")
    return steps


# Some pairs at a time ------------------------------------------------------------------------------------------------


def _batches(model: GPT2, reader: Reader, steps: int, budget: int) -> Iterator["_Runs"]:
    n_pairs, n_pos = reader.pairs.clean.shape
    size = max(1, budget // (n_pos * bytes_per_token(model, steps))) if reader.divisible else n_pairs
    for pair in torch.arange(n_pairs, device=model.device).split(size):
        yield _Runs(model, reader, pair)


def bytes_per_token(model: GPT2, steps: int = 1) -> int:
    """What a token of one pair takes at the most: both runs, the senders' differences, and one layer of the way back."""
    config, graph = model.config, Graph.of(model.config)
    width = config.n_heads * config.d_head
    layer = 4 * width + 3 * config.d_model + config.d_mlp
    back = 4 * 3 * config.n_heads * config.d_model + 4 * config.d_mlp
    held = (2 + (steps if steps > 1 else 0)) * config.n_layers * layer + len(graph.senders) * config.d_model + steps * back
    return model.wte.weight.element_size() * held


@dataclass(frozen=True, eq=False)
class _Runs:
    """The clean and the corrupted runs of some pairs."""

    model: GPT2
    reader: Reader
    pair: Tensor

    @cached_property
    def graph(self) -> Graph:
        return Graph.of(self.model.config)

    @cached_property
    def mask(self) -> Tensor | None:
        mask = self.reader.pairs.attention_mask
        return None if mask is None else mask[self.pair]

    @cached_property
    @torch.no_grad()
    def both(self) -> tuple[Tensor, Tensor, ActivationCache]:
        """One pass over the clean prompts and then the corrupted ones: the first stream, the last, and the cache."""
        pairs, mask = self.reader.pairs, self.repeated_mask(2)
        resid = self.model.embed(torch.cat([pairs.clean[self.pair], pairs.corrupted[self.pair]]), attention_mask=mask)
        return resid, *pass_from(self.model, resid, mask)

    @cached_property
    def clean(self) -> tuple[Tensor, Tensor, ActivationCache]:
        return self._half(slice(0, len(self.pair)))

    @cached_property
    def corrupted(self) -> tuple[Tensor, Tensor, ActivationCache]:
        return self._half(slice(len(self.pair), None))

    def _half(self, which: slice) -> tuple[Tensor, Tensor, ActivationCache]:
        resid, final, cache = self.both
        return resid[which], final[which], cache.batch(which)

    @cached_property
    @torch.no_grad()
    def ends(self) -> tuple[Tensor, Tensor]:
        """The metric of the clean and of the corrupted runs."""
        return self.reader(self.clean[1], self.pair), self.reader(self.corrupted[1], self.pair)

    @cached_property
    @torch.no_grad()
    def differences(self) -> Float[Tensor, "sender pair pos d_model"]:
        """What each sender writes in the corrupted run, less what it writes in the clean one."""
        (clean, _, before), (corrupted, _, after) = self.clean, self.corrupted
        found = clean.new_zeros(len(self.graph.senders), *clean.shape)
        found[0] = corrupted - clean
        if not found[0].any():
            raise AnalysisError("the clean and the corrupted runs are the same: there is nothing to attribute")
        for layer, block in enumerate(self.model.blocks):
            z = (after["z", layer] - before["z", layer]).flatten(0, 1).transpose(0, 1)  # (head, pair * pos, d_head)
            W_O = block.attn.proj.weight.T.unflatten(0, (block.attn.n_heads, block.attn.d_head))
            torch.bmm(z, W_O, out=found[self.graph.head_senders(layer)].flatten(1, 2))
            if not block.attn_only:
                found[self.graph.mlp_sender(layer)] = after["mlp_out", layer] - before["mlp_out", layer]
        return found

    def repeated_mask(self, n: int) -> Tensor | None:
        return None if self.mask is None else self.mask.repeat(n, 1)

    def along_inputs(self, steps: int, by_position: bool = False) -> Float[Tensor, "pair *pos sender receiver"]:
        """The scores of each pair, with derivatives averaged over the path of the embeddings."""
        if steps == 1:
            path = _Path(*self.clean[1:])
        else:
            resid = self._between(self.clean[0], self.corrupted[0], steps)
            path = _Path(*pass_from(self.model, resid, self.repeated_mask(steps)), steps)
        return self._scores(path, slice(0, len(self.graph.senders)), by_position)

    def along_activations(self, steps: int) -> Float[Tensor, "pair sender receiver"]:
        """The scores of each pair, with derivatives averaged over the path of each sender's own place."""
        graph, scores, mask = self.graph, self.along_inputs(steps), self.repeated_mask(steps)
        scores[:, 1:] = 0
        (_, _, before), (_, _, after) = self.clean, self.corrupted
        for layer in range(graph.n_layers):
            z = self._between(before["z", layer], after["z", layer], steps)
            edits: Edits = {("z", layer): lambda value, site, z=z: z}
            path = pass_from(self.model, before["resid_pre", layer].repeat(steps, 1, 1), mask, layer, edits)
            scores += self._scores(_Path(*path, steps, layer), graph.head_senders(layer))
            if not graph.attn_only:
                resid = before["resid_mid", layer].repeat(steps, 1, 1)
                resid = resid + self._between(before["mlp_out", layer], after["mlp_out", layer], steps)
                path = pass_from(self.model, resid, mask, layer + 1)
                mlp = graph.mlp_sender(layer)
                scores += self._scores(_Path(*path, steps, layer + 1), slice(mlp, mlp + 1))
        return scores

    def _between(self, clean: Tensor, corrupted: Tensor, steps: int) -> Float[Tensor, "row ..."]:
        """The rows of step 1, then those of step 2, ...; the last are the clean ones."""
        return torch.cat([torch.lerp(corrupted, clean, k / steps) for k in range(1, steps + 1)])

    @torch.no_grad()
    def _scores(self, path: "_Path", senders: slice, by_position: bool = False) -> Float[Tensor, "pair *pos sender receiver"]:
        """Differences of these senders times derivatives of all that read them, averaged over the steps of the path."""
        gradient = torch.cat([self.reader.gradient(part, self.pair) for part in path.final.chunk(path.steps)])
        n_pairs, n_pos = self.differences.shape[1:3]
        scores = gradient.new_zeros(n_pairs, *([n_pos] if by_position else []), *self.graph.exists.shape)
        product = _by_position if by_position else _over_positions
        for receivers, by_input in way_back(self.model, path.cache, gradient, self.repeated_mask(path.steps), path.start):
            seen = slice(senders.start, min(senders.stop, self.graph.n_upstream[receivers.start]))
            if seen.stop <= seen.start:
                break
            if path.steps > 1:
                by_input = by_input.unflatten(1, (path.steps, n_pairs)).mean(1)
            scores[..., seen, receivers] = product(self.differences[seen], by_input)
        return scores


@dataclass(frozen=True, eq=False)
class _Path:
    """Runs from layer `start` on, whose rows are the pairs at step 1, then at step 2, ..."""

    final: Float[Tensor, "row pos d_model"]
    cache: ActivationCache
    steps: int = 1
    start: int = 0


def _over_positions(differences: Tensor, by_input: Tensor) -> Float[Tensor, "pair sender receiver"]:
    rows = zip(differences.flatten(2).unbind(1), by_input.flatten(2).unbind(1), strict=True)
    return torch.stack([linear(difference, gradient) for difference, gradient in rows])


def _by_position(differences: Tensor, by_input: Tensor) -> Float[Tensor, "pair pos sender receiver"]:
    return torch.einsum("sbpd,rbpd->bpsr", differences, by_input)


class _Mean:
    """The mean of numbers that come in batches, and its standard error."""

    def __init__(self) -> None:
        self.n, self._sum, self._squares = 0, 0.0, 0.0
        self._dtype = torch.float32

    def add(self, values: Float[Tensor, "pair ..."], one_each: bool) -> None:
        """A number of each pair, or (not `one_each`) the shares of the pairs in one number of all."""
        values = values if one_each else values.sum(0, keepdim=True)
        self.n, self._dtype = self.n + len(values), values.dtype
        self._sum = self._sum + values.sum(0, dtype=torch.float64)
        self._squares = self._squares + values.double().square().sum(0)

    @property
    def value(self) -> Tensor:
        return (self._sum / self.n).to(self._dtype)

    @property
    def standard_error(self) -> Tensor | None:
        if self.n < 2:
            return None
        spread = (self._squares - self._sum**2 / self.n).clamp(min=0) / (self.n - 1)
        return (spread.sqrt() / math.sqrt(self.n)).to(self._dtype)
