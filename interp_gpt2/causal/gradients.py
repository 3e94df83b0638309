"""A pass, and the way back through it: what a metric loses or gains per unit of what each receiver reads.

The way back is written out, layer by layer, because of what it then costs: with one stream for each head and each of q, k
and v, torch's own derivatives take a normalisation and a projection for every one of them in the pass too, and a graph that
holds them all. Here the heads part only on the way back, after attention's own small derivative: d metric / d q of a head
times its W_Q, then back through the layer norm. tests/causal holds both ways against each other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.cache import ActivationCache
from interp_gpt2.causal.activation_patching import MetricName, metric_named
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.metrics import Function, Metric, metric_name, require_metric
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import NO_HOOKS, Edits, Hooks, hook_point_names, resolve_edits
from interp_gpt2.inputs import positions_and_visible
from interp_gpt2.linear import linear
from interp_gpt2.model import GPT2, Block
from interp_gpt2.passes import refuse_edited
from interp_gpt2.prompts.pairs import PromptPairs

AnyMetric = Metric | Function | MetricName

_READ_ON_THE_WAY_BACK = {"resid_pre", "q", "k", "v", "z", "resid_mid", "pre", "mlp_out"}


@torch.no_grad()
def pass_from(
    model: GPT2, resid: Tensor, attention_mask: Tensor | None, start: int = 0, edits: Edits | None = None
) -> tuple[Float[Tensor, "row pos d_model"], ActivationCache]:
    """The stream before the final layer norm, from that before layer `start`; and what the way back reads."""
    refuse_edited(model, "attributed edge by edge")
    names = frozenset(name for name in hook_point_names(model.config) if name.rpartition(".")[2] in _READ_ON_THE_WAY_BACK)
    hooks = Hooks(names, resolve_edits(edits or {}, model.config))
    final = model.run_blocks(resid, start, None, hooks, attention_mask)
    return final, ActivationCache(hooks.cache, model.config.n_layers)


@torch.no_grad()
def way_back(
    model: GPT2,
    cache: ActivationCache,
    gradient: Float[Tensor, "row pos d_model"],
    attention_mask: Tensor | None,
    start: int = 0,
) -> Iterator[tuple[slice, Float[Tensor, "receiver row pos d_model"]]]:
    """Derivatives by what receivers read, from the last ones to the first: which receivers, and theirs.

    `gradient` is the derivative by the stream before the final layer norm. Ends with layer `start`, where the pass began.
    """
    graph = Graph.of(model.config)
    _, visible = positions_and_visible(gradient.shape[1], attention_mask, 0, gradient.device)
    yield slice(len(graph.receivers) - 1, len(graph.receivers)), gradient[None]
    for layer in reversed(range(start, model.config.n_layers)):
        block = model.blocks[layer]
        if not block.attn_only:
            by_mlp = _by_mlp_input(block, cache["resid_mid", layer], cache["pre", layer], gradient)
            mlp = graph.mlp_receiver(layer)
            yield slice(mlp, mlp + 1), by_mlp[None]
            gradient = gradient + by_mlp
        qkv = [cache[name, layer] for name in "qkv"]
        by_heads = _by_head_inputs(block, cache["resid_pre", layer], qkv, visible, gradient)
        yield graph.head_receivers(layer), by_heads
        gradient = gradient + by_heads.sum(0)


def _by_mlp_input(block: Block, resid_mid: Tensor, pre: Tensor, gradient: Tensor) -> Float[Tensor, "row pos d_model"]:
    by_post = linear(gradient, block.mlp.proj.weight.T)
    by_pre = pulled_back(block.mlp.act, pre, by_post)
    return pulled_back(block.ln2, resid_mid, linear(by_pre, block.mlp.fc.weight.T))


def _by_head_inputs(
    block: Block, resid_pre: Tensor, qkv: list[Tensor], visible: Tensor | None, gradient: Tensor
) -> Float[Tensor, "receiver row pos d_model"]:
    """By the stream as q of each head reads it, then k of each, then v."""
    attn = block.attn
    by_z = linear(gradient, attn.proj.weight.T).unflatten(-1, (attn.n_heads, attn.d_head))
    with torch.enable_grad():
        leaves = [part.detach().requires_grad_() for part in qkv]
        z = attn.attend_fused(*leaves, NO_HOOKS, visible)
        by_qkv = torch.stack(torch.autograd.grad(z, leaves, by_z))  # (3, row, pos, head, d_head)
    rows = by_qkv.permute(0, 3, 1, 2, 4).reshape(3 * attn.n_heads, -1, attn.d_head)  # (receiver, row * pos, d_head)
    by_normed = torch.bmm(rows, attn.qkv.weight.unflatten(0, (3 * attn.n_heads, attn.d_head)))
    by_normed = by_normed.unflatten(1, resid_pre.shape[:2])
    return pulled_back(block.ln1, resid_pre.expand_as(by_normed), by_normed)


def pulled_back(function: Callable[[Tensor], Tensor], at: Tensor, gradient: Tensor) -> Tensor:
    """The derivative by the argument of a function, from that by its result."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        return torch.autograd.grad(function(at), at, gradient)[0]


@dataclass(frozen=True, eq=False)
class Reader:
    """A metric of some pairs as a function of the stream before the final layer norm, computing the logits that it reads."""

    model: GPT2
    metric: Metric | Function
    pairs: PromptPairs

    def __post_init__(self) -> None:
        require_metric(self.metric)
        if isinstance(self.metric, Metric):
            self.metric.check(len(self.pairs), self.model.config.d_vocab)

    @property
    def name(self) -> str:
        return metric_name(self.metric)

    @property
    def divisible(self) -> bool:
        """Can it read some of the pairs? A function of whole logits knows only all of them."""
        return isinstance(self.metric, Metric)

    def __call__(self, resid: Float[Tensor, "row pos d_model"], pair: Int[Tensor, "row"]) -> Float[Tensor, "*row"]:
        """A number for each row, the prompt of that pair. Raises AnalysisError for anything but finite numbers."""
        if not isinstance(self.metric, Metric):
            return self.of_logits(self._logits(self.model.ln_final(resid)), pair)
        final = self.model.ln_final(self._where_it_looks(resid, pair))
        values = self.metric.value(self._logits(final) if self._tokens is None else self._few(final, pair), pair)
        return self._checked(values, len(resid))

    def of_logits(self, logits: Float[Tensor, "row pos d_vocab"], pair: Int[Tensor, "row"]) -> Float[Tensor, "*row"]:
        """The same from whole logits."""
        if not isinstance(self.metric, Metric):
            return self._checked(self.metric(logits), len(logits))
        logits = self._where_it_looks(logits, pair)
        logits = logits if self._tokens is None else logits.gather(1, self._tokens[pair])
        return self._checked(self.metric.value(logits, pair), len(logits))

    def gradient(self, resid: Float[Tensor, "row pos d_model"], pair: Int[Tensor, "row"]) -> Float[Tensor, "row pos d_model"]:
        """The derivative by the stream of each row's metric, or of the one number that it gives for all."""
        with torch.enable_grad():
            resid = resid.detach().requires_grad_()
            values = self(resid, pair)
            if not values.requires_grad:
                raise AnalysisError(f"{self.name} has no derivative by the logits, so that nothing can be attributed by it")
            return torch.autograd.grad(values.sum(), resid)[0]

    def _where_it_looks(self, values: Float[Tensor, "row pos d"], pair: Tensor) -> Float[Tensor, "row d"]:
        return values[torch.arange(len(values), device=values.device), self._positions[pair]]

    def _checked(self, values: object, n_rows: int) -> Tensor:
        """(row,), or a number without axes for all rows."""
        if not isinstance(values, Tensor) or (values.numel() != 1 and tuple(values.shape) != (n_rows,)):
            got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)
            raise AnalysisError(f"{self.name} gave {got}; a metric gives one number for each of {n_rows} prompts, or one for all")
        values = values.reshape(n_rows) if values.numel() == n_rows else values.reshape(())
        if len(wrong := (~values.isfinite()).reshape(-1).nonzero()):
            value, pair = values.detach().reshape(-1)[wrong[0, 0]].item(), int(wrong[0, 0])
            raise AnalysisError(f"{self.name} is {value} for pair {pair}; what is not finite cannot be attributed")
        return values

    def _logits(self, final: Tensor) -> Tensor:
        bias = None if self.model.config.tied else self.model.lm_head.bias
        return linear(final, self.model.W_U.T.detach(), None if bias is None else bias.detach())

    def _few(self, final: Float[Tensor, "row d_model"], pair: Tensor) -> Float[Tensor, "row n"]:
        tokens = self._tokens[pair]
        return torch.einsum("rd,rnd->rn", final, self.model.W_U.T.detach()[tokens]) + self.model.b_U.detach()[tokens]

    @cached_property
    def _positions(self) -> Tensor:
        n_pairs, n_pos = self.pairs.clean.shape
        return self.metric.positions(n_pairs, n_pos, self.pairs.attention_mask).to(self.model.device)

    @cached_property
    def _tokens(self) -> Tensor | None:
        tokens = self.metric.tokens
        return None if tokens is None else tokens.to(self.model.device).expand(len(self.pairs), -1)


def reader_of(model: GPT2, pairs: PromptPairs, metric: AnyMetric) -> Reader:
    """The metric, or the one of this name of the pairs' answers, of these pairs on the model's device.

    Raises AnalysisError for a model with active dropout or answers that the metric needs and the pairs lack, else as
    `PromptPairs.check` and `Metric.check`.
    """
    require_eval(model)
    pairs.check(model.config)
    pairs = pairs.to(model.device)
    if isinstance(metric, str):
        with torch.no_grad():
            clean = model(pairs.clean, attention_mask=pairs.attention_mask) if metric == "kl_divergence" else None
        metric = metric_named(metric, pairs, clean)
    return Reader(model, metric, pairs)
