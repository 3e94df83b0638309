"""Other ways through a model: under standing edits, over some of its layers, in batches, and back with derivatives.

Each is built from the model's own forward, `embed`, `run_blocks` and `unembed`, and stores nothing on the model. All are
methods of GPT2 too.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import torch
from torch import Tensor

from interp_gpt2.cache import ActivationCache
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, ConfigError, EditError, HookNameError, TokenError
from interp_gpt2.hooks import (
    NO_HOOKS,
    Edits,
    Hooks,
    Keep,
    Names,
    contradictions,
    hook_point_names,
    resolve,
    resolve_edits,
    resolve_reached,
)
from interp_gpt2.inputs import check_mask, positions_and_visible
from interp_gpt2.linear import constant_weights
from interp_gpt2.model import GPT2, KVCache

# Standing edits -------------------------------------------------------------------------------------------------------


class EditedGPT2(GPT2):
    """A model seen under standing edits, made by `model.with_edits(edits)`.

    It shares the weights and everything else with the model, which stays as it is; only the edits are its own. They act
    in every pass, whole or in part, before the edits of that pass. They are no part of the weights: what reads weights
    alone (`W_Q`, `state_dict`) sees the model's, and what would write the model elsewhere refuses.
    """

    __slots__ = ("edits", "model")

    def __init__(self, model: GPT2, edits: Mapping[str, tuple[Callable, ...]]) -> None:
        # Past nn.Module's own __setattr__, which would register the model as a submodule of itself.
        object.__setattr__(self, "__dict__", model.__dict__)
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "edits", edits)

    @property
    def config(self) -> GPT2Config:
        return self.model.config

    def behind_ours(self, hooks: Hooks) -> Hooks:
        """A pass's hooks, behind the standing edits."""
        return hooks.after(self.edits)

    def __call__(
        self, tokens: Tensor, hooks: Hooks = NO_HOOKS, attention_mask: Tensor | None = None, past: KVCache | None = None
    ) -> Tensor:
        return self.model(tokens, self.behind_ours(hooks), attention_mask, past)  # compiled, if the model is

    def forward(
        self, tokens: Tensor, hooks: Hooks = NO_HOOKS, attention_mask: Tensor | None = None, past: KVCache | None = None
    ) -> Tensor:
        return self.model.forward(tokens, self.behind_ours(hooks), attention_mask, past)

    def embed(self, tokens: Tensor, hooks: Hooks = NO_HOOKS, attention_mask: Tensor | None = None) -> Tensor:
        return self.model.embed(tokens, self.behind_ours(hooks), attention_mask)

    def run_blocks(
        self,
        resid: Tensor,
        start: int = 0,
        stop: int | None = None,
        hooks: Hooks = NO_HOOKS,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        return self.model.run_blocks(resid, start, stop, self.behind_ours(hooks), attention_mask)

    def unembed(self, resid: Tensor, hooks: Hooks = NO_HOOKS) -> Tensor:
        return self.model.unembed(resid, self.behind_ours(hooks))

    def hook_points(self, batch: int = 1, pos: int | None = None) -> dict[str, tuple[int, ...]]:
        return self.model.hook_points(batch, pos)

    def save(self, directory: str) -> NoReturn:
        refuse_edited(self, "saved")

    def __reduce__(self) -> tuple:
        return type(self), (self.model, self.edits)  # for copy.deepcopy

    def extra_repr(self) -> str:
        return f"edited at {', '.join(self.edits)}"


def with_edits(model: GPT2, edits: Edits) -> EditedGPT2:
    """The model under standing edits: a view with the same methods. See EditedGPT2 and `GPT2.run_with_edits`.

    Raises HookNameError for keys that match nothing, EditError for edits that contradict each other, at once.
    """
    return EditedGPT2(model, resolve_edits(edits, model.config))


def refuse_edited(model: GPT2, what: str) -> None:
    """Refuse a view with standing edits where they would be lost without a word. Raises EditError."""
    if isinstance(model, EditedGPT2):
        raise EditError(
            f"a model with standing edits cannot be {what}: they are functions, not weights, and would be lost; "
            "use the model that with_edits was called on"
        )


# Some of the layers ---------------------------------------------------------------------------------------------------


def run_until(
    model: GPT2,
    tokens: Tensor,
    stop: int,
    names: Names | None = None,
    edits: Edits | None = None,
    keep: Keep | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, ActivationCache]:
    """The residual stream before layer `stop`, and the activations at `names` on the way. Nothing later is computed.

    `stop=n_layers` is the stream before the final layer norm. `names`, `edits` and `keep` are those of `run_with_cache`;
    of a pattern, what is reached is recorded. Raises HookNameError for names and edits of which nothing is reached,
    ConfigError for a layer that does not exist.
    """
    _check_layer(model, stop)
    hooks = _hooks(model, [name for name, layer in _places(model) if layer < stop], names, edits, keep)
    resid = model.run_blocks(model.embed(tokens, hooks, attention_mask), 0, stop, hooks, attention_mask)
    return resid, ActivationCache(hooks.cache, model.config.n_layers)


def run_from(
    model: GPT2,
    resid: Tensor,
    start: int,
    names: Names | None = None,
    edits: Edits | None = None,
    keep: Keep | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, ActivationCache]:
    """Logits from the residual stream before layer `start`, and the activations at `names` from there on.

    Nothing earlier is computed. `run_until` and then `run_from` the same layer is the whole pass. Raises as `run_until`.
    """
    _check_layer(model, start)
    hooks = _hooks(model, [name for name, layer in _places(model) if layer >= start], names, edits, keep)
    hooks = hooks.for_positions(positions_and_visible(resid.shape[1], attention_mask, 0, resid.device)[0])
    resid = model.run_blocks(resid, start, None, hooks, attention_mask)
    return model.unembed(resid, hooks), ActivationCache(hooks.cache, model.config.n_layers)


def _check_layer(model: GPT2, layer: int) -> None:
    if not 0 <= layer <= model.config.n_layers:
        raise ConfigError(f"there is no stream before layer {layer}; 0 to n_layers={model.config.n_layers} have one")


def _places(model: GPT2) -> Iterator[tuple[str, int]]:
    """Every hook point and its layer: -1 for the embeddings, n_layers for what follows the blocks."""
    for name in hook_point_names(model.config):
        ends = -1 if name.partition(".")[0] in ("embed", "pos_embed") else model.config.n_layers
        yield name, int(name.split(".")[1]) if name.startswith("blocks.") else ends


def _hooks(model: GPT2, reached: list[str], names: Names | None, edits: Edits | None, keep: Keep | None) -> Hooks:
    for key in edits or ():
        resolve_reached(key, reached, model.config)
    return Hooks(resolve_reached(names, reached, model.config), resolve_edits(edits or {}, model.config), keep)


# Batches --------------------------------------------------------------------------------------------------------------


def run_batched(
    model: GPT2,
    tokens: Tensor,
    batch_size: int,
    names: Names | None = None,
    keep: Keep | None = None,
    attention_mask: Tensor | None = None,
) -> Iterator[tuple[Tensor, ActivationCache]]:
    """Logits and cache of every `batch_size` sequences in turn, as `run_with_cache` gives them: for batches beyond memory.

        for logits, cache in model.run_batched(tokens, 32, "*resid_post", keep=lambda a: a[:, -1:].cpu()): ...

    Tokens (batch, pos) may be on another device than the model. The generator holds nothing of the batches it has given.
    Names are checked before the first pass. Raises TokenError if batch_size is below 1, else what `run_with_cache` does.
    """
    if batch_size < 1:
        raise TokenError(f"batch_size={batch_size} holds no sequence; it must be at least 1")
    resolve(names, model.config)
    check_mask(attention_mask, tuple(tokens.shape))
    masks = None if attention_mask is None else attention_mask.split(batch_size)
    return _batches(model, tokens.split(batch_size), masks, names, keep)


def _batches(
    model: GPT2,
    tokens: tuple[Tensor, ...],
    masks: tuple[Tensor, ...] | None,
    names: Names | None,
    keep: Keep | None,
) -> Iterator[tuple[Tensor, ActivationCache]]:
    for index, part in enumerate(tokens):
        mask = None if masks is None else masks[index].to(model.device)
        yield model.run_with_cache(part.to(model.device), names, keep=keep, attention_mask=mask)


# Derivatives ----------------------------------------------------------------------------------------------------------


def run_with_gradients(
    model: GPT2,
    tokens: Tensor,
    metric: Callable[[Tensor], Tensor],
    names: Names | None = None,
    edits: Edits | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, ActivationCache, ActivationCache]:
    """Logits, the activations at `names`, and the derivatives of `metric(logits)` by each of them, of the same shape.

    `metric` gives one number, e.g. `lambda logits: logits[:, -1, answer].sum()`. Gradients need not be on, nor do weights
    need to require them, and nothing accumulates in `.grad`. The derivative is 0 where the metric does not depend on the
    activation, as upstream of an edit that ignores its value. Eager, also when the model is compiled. All three results
    are detached; the graph is freed.

    Raises AnalysisError if the metric is not one number computed from the logits, HookNameError for split inputs of
    attention together with the `ln1` of their block: only one of the two is what attention reads.
    """
    hooks = _Differentiable(resolve(names, model.config), resolve_edits(edits or {}, model.config))
    standing = model.edits if isinstance(model, EditedGPT2) else {}
    for name, norm in contradictions(sorted({*hooks.record, *hooks.edits, *standing})):
        raise HookNameError(
            f"{name!r} and {norm!r} cannot both be differentiated by or edited in one pass: "
            "with its inputs split, attention does not read the shared ln1; use a pass for each"
        )
    with torch.enable_grad(), constant_weights():
        logits = model.forward(tokens, hooks, attention_mask)
        value = metric(logits)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise AnalysisError(f"the metric must give one number; it gave {_shape_or_value(value)}")
        if not value.requires_grad:
            raise AnalysisError("the metric cannot be differentiated: it is not computed from the logits, or detaches them")
        gradients = torch.autograd.grad(value, list(hooks.cache.values()), allow_unused=True)
    found = {
        name: torch.zeros_like(at) if gradient is None else gradient
        for (name, at), gradient in zip(hooks.cache.items(), gradients, strict=True)
    }
    n_layers = model.config.n_layers
    activations = {name: value.detach() for name, value in hooks.cache.items()}
    return logits.detach(), ActivationCache(activations, n_layers), ActivationCache(found, n_layers)


class _Differentiable(Hooks):
    """Hooks at which every value has a derivative, also where frozen weights or an edit have cut it off from upstream."""

    __slots__ = ()

    def __call__(self, name: str, value: Tensor, then: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        value = super().__call__(name, value, then)
        if not value.requires_grad:
            value = value.detach().requires_grad_()  # not in place: an edit may have returned the caller's own tensor
            if self.prefix + name in self.record:
                self.cache[self.prefix + name] = value
        return value


def _shape_or_value(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
