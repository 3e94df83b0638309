"""The modules of a HookedTransformer, as far as code touches them: `model.blocks[3].attn.W_Q`, `model.unembed(resid)`.

Each is a view of our model and of the drop-in's hook points. Weights are views of the model's own tensors, so that
changing them in place changes the model; a call passes the hooks that stand at the part's hook points.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp_gpt2.hooks import NO_HOOKS, Hooks, canonical
from interp_gpt2.linear import linear
from interp_gpt2.transformer_lens.hook_points import HookPoint, edits_of
from interp_gpt2.weights import bias_of

if TYPE_CHECKING:
    from interp_gpt2.transformer_lens.hooked_root import HookedRoot


class Part:
    """One module, by its path in TransformerLens's names; `part.hook_x` is the hook point `{path}.hook_x`."""

    def __init__(self, hooked: "HookedRoot", path: str) -> None:
        self._hooked, self._path = hooked, path

    def __getattr__(self, name: str) -> HookPoint:
        if not name.startswith("hook_"):  # also what copying asks for before there is a path
            raise AttributeError(f"{type(self).__name__} has no {name!r} here")
        point = f"{self._path}.{name}" if self._path else name
        if point not in self._hooked.hook_dict:
            raise AttributeError(f"there is no hook point {point!r}")
        return self._hooked.hook_dict[point]

    def _hooks(self) -> Hooks:
        """What stands at the model's hook points, as seen from this part."""
        edits = edits_of(self._hooked.hook_dict)
        return Hooks(edits=edits).at(canonical(self._path)) if edits else NO_HOOKS

    def _hooks_for(self, value: Tensor) -> Hooks:
        return self._hooks().for_positions(torch.arange(value.shape[-2], device=value.device))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path!r})"


class Embed(Part):
    @property
    def W_E(self) -> Tensor:
        return self._hooked.model.W_E

    def __call__(self, tokens: Tensor) -> Tensor:
        """Embeddings (batch, pos, d_model) of tokens (batch, pos); `hook_embed` stands behind it and is not passed."""
        return self._hooked.model.wte(tokens)


class PosEmbed(Part):
    @property
    def W_pos(self) -> Tensor:
        return self._hooked.model.W_pos

    def __call__(self, tokens: Tensor) -> Tensor:
        """Embeddings (batch, pos, d_model) of the positions of tokens (batch, pos), counted from 0."""
        return self.W_pos[: tokens.shape[-1]].expand(*tokens.shape, -1)


class Norm(Part, nn.Module):
    """A layer norm: its gain `w` and bias `b`; in a model without them, nothing but a call that changes nothing.

    A module, as TransformerLens's tools ask, with no parameters of its own.
    """

    __setattr__ = object.__setattr__  # the model it looks at is no part of it: a module that held its owner would never end

    def __init__(self, hooked: "HookedRoot", path: str) -> None:
        nn.Module.__init__(self)
        Part.__init__(self, hooked, path)

    @property
    def _norm(self) -> nn.Module:
        return self._hooked.model.get_submodule(self._path)

    @property
    def w(self) -> Tensor:
        return self._norm.weight

    @property
    def b(self) -> Tensor:
        return torch.zeros_like(self._norm.weight) if self._norm.bias is None else self._norm.bias

    def forward(self, resid: Tensor) -> Tensor:
        return self._norm(resid, self._hooks_for(resid))


class Attention(Part):
    """Weights of the heads, (head, d_model, d_head) and so on; `b_*` of a model without biases are zeros."""

    def __init__(self, hooked: "HookedRoot", layer: int) -> None:
        super().__init__(hooked, f"blocks.{layer}.attn")
        self._layer = layer

    def _qkv(self, which: int) -> Tensor:
        attn = self._hooked.model.blocks[self._layer].attn
        return attn.qkv.weight.unflatten(0, (3, attn.n_heads, attn.d_head))[which].transpose(-1, -2)

    def _qkv_bias(self, which: int) -> Tensor:
        attn = self._hooked.model.blocks[self._layer].attn
        return bias_of(attn.qkv).unflatten(0, (3, attn.n_heads, attn.d_head))[which]

    W_Q = property(lambda self: self._qkv(0))
    W_K = property(lambda self: self._qkv(1))
    W_V = property(lambda self: self._qkv(2))
    b_Q = property(lambda self: self._qkv_bias(0))
    b_K = property(lambda self: self._qkv_bias(1))
    b_V = property(lambda self: self._qkv_bias(2))

    @property
    def W_O(self) -> Tensor:
        attn = self._hooked.model.blocks[self._layer].attn
        return attn.proj.weight.T.unflatten(0, (attn.n_heads, attn.d_head))

    @property
    def b_O(self) -> Tensor:
        return bias_of(self._hooked.model.blocks[self._layer].attn.proj)


class MLP(Part):
    """`W_in` (d_model, d_mlp), `W_out` (d_mlp, d_model) and their biases."""

    def __init__(self, hooked: "HookedRoot", layer: int) -> None:
        super().__init__(hooked, f"blocks.{layer}.mlp")
        self._layer = layer

    @property
    def W_in(self) -> Tensor:
        return self._hooked.model.blocks[self._layer].mlp.fc.weight.T

    @property
    def W_out(self) -> Tensor:
        return self._hooked.model.blocks[self._layer].mlp.proj.weight.T

    @property
    def b_in(self) -> Tensor:
        return bias_of(self._hooked.model.blocks[self._layer].mlp.fc)

    @property
    def b_out(self) -> Tensor:
        return bias_of(self._hooked.model.blocks[self._layer].mlp.proj)

    def __call__(self, normed: Tensor) -> Tensor:
        """What the MLP adds to the stream, from the stream normalised by `ln2`."""
        return self._hooked.model.blocks[self._layer].mlp(normed, self._hooks_for(normed))


class Block(Part):
    def __init__(self, hooked: "HookedRoot", layer: int) -> None:
        super().__init__(hooked, f"blocks.{layer}")
        self._layer = layer
        self.attn, self.ln1 = Attention(hooked, layer), Norm(hooked, f"blocks.{layer}.ln1")
        if not hooked.model.config.attn_only:
            self.mlp, self.ln2 = MLP(hooked, layer), Norm(hooked, f"blocks.{layer}.ln2")

    def __call__(self, resid_pre: Tensor) -> Tensor:
        """The stream (batch, pos, d_model) after this block from that before it."""
        hooks = Hooks(edits=edits_of(self._hooked.hook_dict))
        return self._hooked.model.run_blocks(resid_pre, self._layer, self._layer + 1, hooks)


class Blocks:
    """`model.blocks[layer]`, as a sequence."""

    def __init__(self, hooked: "HookedRoot") -> None:
        self._blocks = [Block(hooked, layer) for layer in range(hooked.model.config.n_layers)]

    def __getitem__(self, layer: int | slice) -> Block | list[Block]:
        return self._blocks[layer]

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks)


class Unembed(Part):
    @property
    def W_U(self) -> Tensor:
        return self._hooked.model.W_U

    @property
    def b_U(self) -> Tensor:
        return self._hooked.model.b_U

    def __call__(self, normalized: Tensor) -> Tensor:
        """Logits from the stream behind the final layer norm, which is no part of this."""
        at, model = self._hooks_for(normalized), self._hooked.model
        value = at("in", normalized)
        return at("out", linear(value, model.wte.weight) if model.config.tied else model.lm_head(value))
