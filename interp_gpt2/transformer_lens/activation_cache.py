"""ActivationCache with TransformerLens's methods and keys, over our own arithmetic on the residual stream."""

import logging
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from interp_gpt2 import cache as native
from interp_gpt2.analysis import logit_attribution, projection, residual
from interp_gpt2.analysis.residual import ResidualStack
from interp_gpt2.errors import AnalysisError, HookNameError
from interp_gpt2.hooks import canonical
from interp_gpt2.transformer_lens.slices import Slice, SliceInput, as_slice
from interp_gpt2.transformer_lens.utils import get_act_name

if TYPE_CHECKING:
    from interp_gpt2.transformer_lens.hooked_transformer import HookedTransformer

Stack = Tensor | tuple[Tensor, list[str]]
log = logging.getLogger(__name__)


class ActivationCache:
    """Activations by TransformerLens's names: `cache["pattern", 3]`, `cache["blocks.3.attn.hook_pattern"]`.

    Methods have TransformerLens's arguments and results; `layer` None or -1 is the last stream. A slice of positions is an
    int, a tuple (start, stop, step) or a list. What they need and was not cached is an error that names it.
    """

    def __init__(self, cache_dict: dict[str, Tensor], model: "HookedTransformer", has_batch_dim: bool = True) -> None:
        self.cache_dict, self.model, self.has_batch_dim = cache_dict, model, has_batch_dim

    # A mapping -------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str | tuple) -> Tensor:
        if isinstance(key, tuple) and len(key) > 1 and key[1] is not None and key[1] < 0:
            key = (key[0], self.model.cfg.n_layers + key[1], *key[2:])
        name = key if key in self.cache_dict else get_act_name(key) if isinstance(key, str) else get_act_name(*key)
        if name not in self.cache_dict:
            raise MissingActivationError(f"{name!r} is not among the {len(self)} cached activations; let names_filter keep it")
        return self.cache_dict[name]

    def __contains__(self, key: object) -> bool:
        return key in self.cache_dict

    def __len__(self) -> int:
        return len(self.cache_dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def keys(self) -> KeysView[str]:
        return self.cache_dict.keys()

    def values(self) -> ValuesView[Tensor]:
        return self.cache_dict.values()

    def items(self) -> ItemsView[str, Tensor]:
        return self.cache_dict.items()

    def __repr__(self) -> str:
        return f"ActivationCache with keys {list(self.cache_dict)}"

    def to(self, device: torch.device | str) -> "ActivationCache":
        """Everything to another device, in place."""
        self.cache_dict = {name: value.to(device) for name, value in self.cache_dict.items()}
        return self

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Sets whether torch computes derivatives, everywhere, as TransformerLens does."""
        log.warning("Changed the global state, set autodiff to %s", mode)
        torch.set_grad_enabled(mode)

    def remove_batch_dim(self) -> "ActivationCache":
        """Without the batch axis, in place. Raises AnalysisError unless there is one sequence."""
        if self.has_batch_dim:
            if wrong := [len(value) for value in self.cache_dict.values() if len(value) != 1]:
                raise AnalysisError(f"the batch axis of {wrong[0]} sequences cannot be removed; slice the cache first")
            for name, value in self.cache_dict.items():
                self.cache_dict[name] = value[0]
            self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Slice | SliceInput) -> "ActivationCache":
        """A cache of some of the sequences; an int drops the axis."""
        batch = as_slice(batch_slice)
        if not self.has_batch_dim and batch.mode != "identity":
            raise AnalysisError("this cache has no batch axis to slice")
        kept = {name: batch.apply(value) for name, value in self.cache_dict.items()}
        return ActivationCache(kept, self.model, self.has_batch_dim and batch.mode != "int")

    # The stream and its parts ----------------------------------------------------------------------------------------

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stack:
        """The stream before each layer; with `apply_ln`, each by itself through the final layer norm if that is next."""
        layer, pos = self._layer(layer), as_slice(pos_slice)
        stack = residual.accumulated_resid(self._gpt2, self._native(), layer, incl_mid, mlp_input, pos.index)
        if apply_ln and layer == self.model.cfg.n_layers:
            stack, apply_ln = residual.renormalise_stack(self._gpt2, stack), False
        return self._shaped(stack, pos, layer if apply_ln else None, mlp_input, return_labels)

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stack:
        """Embeddings, and what every attention layer and MLP before `layer` adds."""
        layer, pos = self._layer(layer), as_slice(pos_slice)
        stack = residual.decompose_resid(self._gpt2, self._native(), layer, mode, mlp_input, pos.index)
        if not incl_embeds:
            stack = ResidualStack(stack.values[2:], stack.labels[2:], stack.positions)
        return self._shaped(stack, pos, layer if apply_ln else None, mlp_input, return_labels)

    def compute_head_results(self) -> None:
        """Caches `result` of every layer, which is `z @ W_O` by head, if it is not there yet."""
        cache = self._native()
        for layer in range(self.model.cfg.n_layers):
            result = residual.head_results(self._gpt2, cache, layer, None).permute(1, 2, 0, 3)
            self.cache_dict[f"blocks.{layer}.attn.hook_result"] = result if self.has_batch_dim else result[0]

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Slice | SliceInput = None,
        apply_ln: bool = False,
    ) -> Stack:
        """What every head before `layer` adds, "L0H0", "L0H1", ..., and with `incl_remainder` the rest of the stream."""
        layer, pos = self._layer(layer), as_slice(pos_slice)
        stack = residual.stack_head_results(self._gpt2, self._native(), layer, pos.index, incl_remainder)
        return self._shaped(stack, pos, layer if apply_ln else None, False, return_labels)

    def stack_activation(self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None) -> Tensor:
        """One kind of activation of every layer before `layer`."""
        return torch.stack([self[activation_name, at, sublayer_type] for at in range(self._layer(layer))])

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Slice | SliceInput = None,
        pos_slice: Slice | SliceInput = None,
        project_output_onto: Tensor | None = None,
    ) -> Tensor:
        """What neurons of one layer add, (batch, pos, neuron, d_model), or its products with directions (d_model, ...)."""
        neurons, pos, where = as_slice(neuron_slice), as_slice(pos_slice), (self._gpt2, self._native())
        if project_output_onto is None:
            found = residual.get_neuron_results(*where, layer, neurons.index, pos.index)
        else:
            onto = self._onto(project_output_onto)
            found = projection.project_neurons(*where, onto, layer, neurons.index, pos.index).permute(1, 2, 0, 3)
            found = found[..., 0] if project_output_onto.ndim == 1 else found
        found = found.squeeze(2) if neurons.mode == "int" else found
        found = found.squeeze(1) if pos.mode == "int" else found
        return found if self.has_batch_dim else found[0]

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Slice | SliceInput = None,
        neuron_slice: Slice | SliceInput = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Stack:
        """What neurons before `layer` add, "L0N0", "L0N1", ..., and with `incl_remainder` the rest of the stream."""
        layer, pos = self._layer(layer), as_slice(pos_slice)
        chosen, where = (as_slice(neuron_slice).index, pos.index, incl_remainder), (self._gpt2, self._native())
        if project_output_onto is None:
            stack = residual.stack_neuron_results(*where, layer, *chosen)
            return self._shaped(stack, pos, layer if apply_ln else None, False, return_labels)
        onto = self._onto(project_output_onto, layer if apply_ln else None, False, pos)
        stack = projection.project_neuron_stack(*where, onto, layer, *chosen)
        return self._shaped(_of_given(project_output_onto, stack), pos, return_labels=return_labels)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Stack:
        """Heads, neurons (or MLPs), embeddings and biases: everything the stream before `layer` is the sum of."""
        layer, pos = self._layer(layer), as_slice(pos_slice)
        chosen, where = (layer, mlp_input, expand_neurons, pos.index), (self._gpt2, self._native())
        if project_output_onto is None:
            stack = residual.get_full_resid_decomposition(*where, *chosen)
            return self._shaped(stack, pos, layer if apply_ln else None, mlp_input, return_labels)
        onto = self._onto(project_output_onto, layer if apply_ln else None, mlp_input, pos)
        stack = projection.project_full_decomposition(*where, onto, *chosen)
        return self._shaped(_of_given(project_output_onto, stack), pos, return_labels=return_labels)

    # Layer norm and logits -------------------------------------------------------------------------------------------

    def apply_ln_to_stack(
        self,
        residual_stack: Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Slice | SliceInput = None,
        batch_slice: Slice | SliceInput = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Tensor:
        """Each part's share of what `layer` reads, by the stream's own scale; or with `recompute_ln` and the final layer
        norm each state through that by itself. The slices are those already taken of the stack's positions, and to be
        taken of its sequences."""
        layer, pos, batch = self._layer(layer), as_slice(pos_slice), as_slice(batch_slice)
        cache, stack = self._with_stack(residual_stack, pos, batch, has_batch_dim)
        if recompute_ln and layer == self.model.cfg.n_layers:
            return cache._shaped(residual.renormalise_stack(self._gpt2, stack), pos)
        return cache._shaped(stack, pos, layer, mlp_input)

    def logit_attrs(
        self,
        residual_stack: Tensor,
        tokens: str | int | Tensor,
        incorrect_tokens: str | int | Tensor | None = None,
        pos_slice: Slice | SliceInput = None,
        batch_slice: Slice | SliceInput = None,
        has_batch_dim: bool = True,
    ) -> Tensor:
        """Each part's share of the logits of `tokens`, or of how far they exceed those of `incorrect_tokens`.

        One token for all, one for each sequence, or one for each position. See analysis.logit_attribution.logit_attrs.
        """
        pos, batch = as_slice(pos_slice), as_slice(batch_slice)
        cache, stack = self._with_stack(residual_stack, pos, batch, has_batch_dim)
        ids = cache._ids(tokens, stack)
        incorrect = None if incorrect_tokens is None else cache._ids(incorrect_tokens, stack)
        if incorrect is not None and incorrect.shape != ids.shape:
            raise AnalysisError(f"tokens {tuple(ids.shape)} and incorrect_tokens {tuple(incorrect.shape)} differ in shape")
        values = logit_attribution.logit_attrs(self._gpt2, cache._native(), stack, ids, incorrect)
        return cache._shaped(ResidualStack(values[..., None], stack.labels, stack.positions), pos)[..., 0]

    # Between TransformerLens's shapes and ours -----------------------------------------------------------------------

    @property
    def _gpt2(self) -> "residual.GPT2":
        return self.model.model

    def _layer(self, layer: int | None) -> int:
        return self.model.cfg.n_layers if layer is None or layer == -1 else layer

    def _native(self) -> native.ActivationCache:
        """Our cache of the same tensors, with a batch axis. Gradients ("..._grad") are no activations of a pass."""
        found = {canonical(name): value for name, value in self.cache_dict.items() if not name.endswith("_grad")}
        if not self.has_batch_dim:
            found = {name: value[None] for name, value in found.items()}
        return native.ActivationCache(found, self.model.cfg.n_layers)

    def _shaped(
        self, stack: ResidualStack, pos: Slice, ln_of: int | None = None, mlp_input: bool = False, return_labels: bool = False
    ) -> Stack:
        """A stack as TransformerLens gives it: behind the layer norm of a layer, without the axes that are dropped."""
        if ln_of is not None:
            stack = residual.apply_ln_to_stack(self._gpt2, self._native(), stack, ln_of, mlp_input)
        values = stack.values.squeeze(2) if pos.mode == "int" else stack.values
        values = values if self.has_batch_dim else values.squeeze(1)
        return (values, list(stack.labels)) if return_labels else values

    def _onto(
        self, directions: Tensor, ln_of: int | None = None, mlp_input: bool = False, pos: Slice | None = None
    ) -> projection.Directions:
        """Directions (d_model,) or (d_model, out) in the stream, or behind the layer norm of a layer."""
        directions = directions[:, None] if directions.ndim == 1 else directions
        if ln_of is None:
            return projection.Directions(directions)
        return projection.behind_layer_norm(self._gpt2, self._native(), directions, ln_of, mlp_input, pos.index)

    def _with_stack(
        self, values: Tensor, pos: Slice, batch: Slice, has_batch_dim: bool
    ) -> tuple["ActivationCache", ResidualStack]:
        """The cache of the sequences chosen, and a stack (component, [batch], [pos], d_model) of them with all four axes."""
        cache = self if batch.mode == "identity" else self.apply_slice_to_batch_dim(batch)
        if has_batch_dim:
            values = batch.apply(values, 1) if batch.mode != "identity" else values
        values = values.unsqueeze(-2) if pos.mode == "int" else values
        values = values if cache.has_batch_dim and has_batch_dim else values.unsqueeze(1)
        if values.ndim != 4:
            raise AnalysisError(
                f"the stack has {values.ndim} axes, with those that the slices and the cache lack; expected "
                "(component, batch, pos, d_model): pass the pos_slice and batch_slice that it was made with"
            )
        return cache, ResidualStack(values, tuple(map(str, range(len(values)))), pos.index)

    def _ids(self, tokens: str | int | Tensor, stack: ResidualStack) -> Tensor:
        """Tokens as our functions take them: one, (batch,), or (batch, pos)."""
        ids = torch.as_tensor(self.model.to_single_token(tokens) if isinstance(tokens, str) else tokens)
        if ids.numel() == 1:
            return ids.reshape(())
        return ids[None] if not self.has_batch_dim and ids.ndim == 1 else ids


class MissingActivationError(HookNameError, KeyError):
    """An activation that is not in the cache; a KeyError too, as in TransformerLens."""

    __str__ = HookNameError.__str__


def _of_given(directions: Tensor, products: ResidualStack) -> ResidualStack:
    """Without the axis of directions, if one was given as (d_model,)."""
    return products if directions.ndim > 1 else replace(products, values=products.values[..., 0])
