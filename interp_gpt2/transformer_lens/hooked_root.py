"""The mutable hooks of TransformerLens's models, on the drop-in's own object: the model underneath never keeps any."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp_gpt2.errors import EditError, HookNameError
from interp_gpt2.hooks import Hooks, canonical, default_hook_points, hook_point_names, resolve, tl_name
from interp_gpt2.model import GPT2
from interp_gpt2.transformer_lens.config import HookedTransformerConfig
from interp_gpt2.transformer_lens.hook_points import Direction, HookFunction, HookPoint, edits_of
from interp_gpt2.transformer_lens.slices import Slice, SliceInput

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
NamedHook = tuple[str | Callable[[str], bool], HookFunction]
HEAD_AXIS = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_result")  # where the position is the third axis from behind


BRIDGE_SPELLING = re.compile(r"\.attn\.(hook_[qkv]_input)$")  # TransformerLens 4 moved these three below attn


class HookedRoot(nn.Module):
    """`hook_dict`, and what adds functions to it, removes them and runs with them.

    A function (value, hook) returns the value that goes on, of the same shape, or None, also after changing it in place.
    It never changes anything but its own copy. Values are edited first and cached afterwards.
    """

    model: GPT2
    cfg: HookedTransformerConfig

    def set_up_hooks(self) -> None:
        self.hook_dict = {tl_name(name): HookPoint(tl_name(name)) for name in hook_point_names(self.model.config)}
        self.context_level = 0

    def hook_points(self) -> list[HookPoint]:
        return list(self.hook_dict.values())

    # Adding and removing ---------------------------------------------------------------------------------------------

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: HookFunction,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """A function at a hook point, or at all whose names a function accepts, until `reset_hooks`."""
        for point in self._named(name):
            self.hook_dict[point].add_hook(hook, dir, is_permanent, level, prepend)

    def add_perma_hook(self, name: str | Callable[[str], bool], hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd") -> None:
        """A function that `reset_hooks` removes only with `including_permanent`."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Direction = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove what was added, of one level of `hooks()` or of all."""
        for point in self.hook_dict.values():
            if clear_contexts:
                point.clear_context()
            point.remove_hooks(direction, including_permanent, level)

    def remove_all_hook_fns(
        self, direction: Direction = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        self.reset_hooks(False, direction, including_permanent, level)

    def clear_contexts(self) -> None:
        for point in self.hook_dict.values():
            point.clear_context()

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[NamedHook] = (),
        bwd_hooks: Sequence[NamedHook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["HookedRoot"]:
        """Hooks for as long as the block lasts: `with model.hooks(fwd_hooks=[(name, function)]): ...`"""
        self.context_level += 1
        try:
            for direction, named in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for name, hook in named:
                    self.add_hook(name, hook, direction, level=self.context_level)
            yield self
        finally:
            if reset_hooks_end:
                self.reset_hooks(clear_contexts, level=self.context_level)
            self.context_level -= 1

    # Running ---------------------------------------------------------------------------------------------------------

    # What follows the input is passed on to `forward`, which names its arguments and refuses what it does not know.
    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Sequence[NamedHook] = (),
        bwd_hooks: Sequence[NamedHook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """`model(...)` with hooks for this one call.

        Raises EditError for `bwd_hooks` with `reset_hooks_end`, which would be gone before a gradient arrives.
        """
        if bwd_hooks and reset_hooks_end:
            raise EditError(
                "bwd_hooks are removed before any backward pass when reset_hooks_end=True; call backward() inside "
                "`with model.hooks(bwd_hooks=...)`, or pass reset_hooks_end=False"
            )
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self.forward(*model_args, **model_kwargs)

    def cache_of_run(
        self,
        model_args: tuple,
        model_kwargs: dict[str, Any],
        names_filter: NamesFilter,
        device: torch.device | str | None,
        pos_slice: Slice,
    ) -> tuple[Any, dict[str, Tensor]]:
        """What `model(...)` returns, and the activations on the way: detached, by TransformerLens's names."""
        record = frozenset(canonical(name) for name in self._filtered(names_filter))
        hooks = Hooks(record, edits_of(self.hook_dict), keep=lambda value: value.detach().to(device))
        output = self.run(hooks, *model_args, **model_kwargs)
        return output, {tl_name(name): sliced(tl_name(name), value, pos_slice) for name, value in hooks.cache.items()}

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Slice | SliceInput = None,
    ) -> tuple[dict[str, Tensor], list[NamedHook], list[NamedHook]]:
        """A dict, and the hooks that fill it: activations by name, gradients by name and "_grad"."""
        cache = {} if cache is None else cache
        positions = Slice.unwrap(pos_slice)

        def save(ending: str) -> HookFunction:
            def save_hook(value: Tensor, hook: HookPoint) -> None:
                kept = sliced(hook.name, value.detach().to(device), positions)
                cache[hook.name + ending] = kept[0] if remove_batch_dim else kept

            return save_hook

        names = self._filtered(names_filter)
        return cache, [(name, save("")) for name in names], [(name, save("_grad")) for name in names] if incl_bwd else []

    # Names -----------------------------------------------------------------------------------------------------------

    def _named(self, name: str | Callable[[str], bool]) -> list[str]:
        if isinstance(name, str):
            name = BRIDGE_SPELLING.sub(r".\1", name)
            return sorted(tl_name(found) for found in resolve(name, self.model.config))
        return self._accepted(name)

    def _filtered(self, names_filter: NamesFilter) -> list[str]:
        if names_filter is None or callable(names_filter):
            return self._accepted(names_filter or (lambda name: True))
        names = [names_filter] if isinstance(names_filter, str) else list(names_filter)
        return [found for name in names for found in self._named(name)]

    def _accepted(self, accepts: Callable[[str], bool]) -> list[str]:
        """Of the hook points that are on. Raises HookNameError if a function accepts only some that are off."""
        on, off = self._on_and_off()
        found = [name for name in on if accepts(name)]
        missed = [] if found else [name for name in off if accepts(name)]
        if missed:
            raise HookNameError(
                f"the function accepts only hook points that are off, such as {missed[0]!r}; turn them on with "
                "set_use_attn_result, set_use_split_qkv_input, set_use_attn_in or set_use_hook_mlp_in, or name them"
            )
        return found

    def _on_and_off(self) -> tuple[list[str], list[str]]:
        cfg = self.cfg
        on = {
            "result": cfg.use_attn_result, "attn_in": cfg.use_attn_in, "mlp_in": cfg.use_hook_mlp_in,
            **dict.fromkeys(("q_input", "k_input", "v_input"), cfg.use_split_qkv_input),
        }  # fmt: skip
        default = default_hook_points(self.model.config)
        names: tuple[list[str], list[str]] = ([], [])
        for name in hook_point_names(self.model.config):
            is_on = name in default or on[name.rpartition(".")[2]]
            names[0 if is_on else 1].append(tl_name(name))
        return names


def sliced(name: str, value: Tensor, positions: Slice) -> Tensor:
    """An activation at some positions (of scores and patterns: of the query), without the storage of the others."""
    if positions.mode == "identity":
        return value
    return positions.apply(value, -3 if name.endswith(HEAD_AXIS) else -2).clone()
