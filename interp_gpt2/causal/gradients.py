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

from interp_gpt2.cache import ActivationCache
from interp_gpt2.causal.graph import Graph
from interp_gpt2.causal.metrics import Function, Metric
from interp_gpt2.errors import AnalysisError
from interp_gpt2.hooks import NO_HOOKS, Edits, Hooks, hook_point_names, resolve_edits
from interp_gpt2.inputs import positions_and_visible
from interp_gpt2.linear import linear
from interp_gpt2.model import GPT2, Block
from interp_gpt2.passes import refuse_edited
from interp_gpt2.prompts.pairs import PromptPairs

_READ_ON_THE_WAY_BACK = {"resid_pre", "q", "k", "v", "z", "resid_mid", "pre", "mlp_out"}


def check_attributable(model: GPT2, pairs: PromptPairs) -> None:
    """Raises AnalysisError for a model with active dropout, whose two runs would differ by chance; else as `pairs.check`."""
    if model.training and model.config.dropout:
        raise AnalysisError(
            f"the model is in training mode with dropout={model.config.dropout}: runs differ by chance; model.eval()"
        )
    pairs.check(model.config)


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
        if isinstance(self.metric, Metric):
            self.metric.check(len(self.pairs), self.model.config.d_vocab)

    @property
    def name(self) -> str:
        return self.metric.name if isinstance(self.metric, Metric) else getattr(self.metric, "__name__", "metric")

    @property
    def divisible(self) -> bool:
        """Can it read some of the pairs? A function of whole logits knows only all of them."""
        return isinstance(self.metric, Metric)

    def __call__(self, resid: Float[Tensor, "row pos d_model"], pair: Int[Tensor, "row"]) -> Float[Tensor, "*row"]:
        """A number for each row, the prompt of that pair. Raises AnalysisError for anything but finite numbers."""
        if not isinstance(self.metric, Metric):
            values = self.metric(self._logits(self.model.ln_final(resid)))
        else:
            final = self.model.ln_final(resid[torch.arange(len(resid), device=resid.device), self._positions[pair]])
            values = self.metric.value(self._logits(final) if self._tokens is None else self._few(final, pair), pair)
        self._check(values, len(resid))
        return values

    def gradient(self, resid: Float[Tensor, "row pos d_model"], pair: Int[Tensor, "row"]) -> Float[Tensor, "row pos d_model"]:
        """The derivative by the stream of each row's metric, or of the one number that it gives for all."""
        with torch.enable_grad():
            resid = resid.detach().requires_grad_()
            values = self(resid, pair)
            if not values.requires_grad:
                raise AnalysisError(f"{self.name} has no derivative by the logits, so that nothing can be attributed by it")
            return torch.autograd.grad(values.sum(), resid)[0]

    def _check(self, values: object, n_rows: int) -> None:
        if not isinstance(values, Tensor) or tuple(values.shape) not in ((n_rows,), ()):
            got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)
            raise AnalysisError(f"{self.name} gave {got}; a metric gives one number for each of {n_rows} prompts, or one for all")
        if len(wrong := (~values.isfinite()).reshape(-1).nonzero()):
            raise AnalysisError(
                f"{self.name} is {float(values.reshape(-1)[wrong[0]])} for pair {int(wrong[0])}: nothing to attribute"
            )

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


def refuse_equal(differences: Tensor) -> None:
    if not differences.any():
        raise AnalysisError("the clean and the corrupted runs are the same: there is nothing to attribute")
