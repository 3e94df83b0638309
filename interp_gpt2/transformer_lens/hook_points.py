"""HookPoint: where the drop-in keeps its hooks. The model underneath keeps none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from interp_gpt2.errors import HookNameError
from interp_gpt2.hooks import Site, canonical

Direction = Literal["fwd", "bwd", "both"]
HookFunction = Callable[..., Tensor | None]  # (value, hook) -> the value that goes on, or None


@dataclass(frozen=True, eq=False)
class LensHandle:
    """One function at a hook point. `level` is that of the `hooks()` context it was added in (None: outside)."""

    hook: HookFunction
    is_permanent: bool = False
    level: int | None = None


class HookPoint:
    """A hook point under TransformerLens's name, with the functions that stand there and `ctx`, a dict for their use."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ctx: dict[Any, Any] = {}
        self.fwd_hooks: list[LensHandle] = []
        self.bwd_hooks: list[LensHandle] = []

    def layer(self) -> int:
        """The number in "blocks.{layer}. ...". Raises HookNameError for a hook point outside the blocks."""
        if not self.name.startswith("blocks."):
            raise HookNameError(f"{self.name!r} belongs to no layer")
        return int(self.name.split(".")[1])

    def add_hook(
        self,
        hook: HookFunction,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """A function (value, hook) -> Tensor | None, behind those already there or (`prepend`) before them."""
        handles = self._in_direction(dir)
        handles.insert(0 if prepend else len(handles), LensHandle(hook, is_permanent, level))

    def add_perma_hook(self, hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd") -> None:
        self.add_hook(hook, dir, is_permanent=True)

    def remove_hooks(self, dir: Direction = "fwd", including_permanent: bool = False, level: int | None = None) -> None:
        """Those of a `level` (None: of any); permanent ones only when asked for."""
        for direction in ("fwd", "bwd") if dir == "both" else (dir,):
            handles = self._in_direction(direction)
            handles[:] = [
                handle for handle in handles
                if not including_permanent and (handle.is_permanent or level not in (None, handle.level))
            ]  # fmt: skip

    def has_hooks(self, dir: Direction = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        directions = ("fwd", "bwd") if dir == "both" else (dir,)
        handles = [handle for direction in directions for handle in self._in_direction(direction)]
        return any((including_permanent or not handle.is_permanent) and level in (None, handle.level) for handle in handles)

    def clear_context(self) -> None:
        self.ctx = {}

    def edits(self) -> tuple[Callable[[Tensor, Site], Tensor], ...]:
        """The functions here as edits of our model's passes."""
        forward = tuple(self._edit(handle.hook) for handle in self.fwd_hooks)
        return (*forward, self._watch_gradient) if self.bwd_hooks else forward

    def _edit(self, function: HookFunction) -> Callable[[Tensor, Site], Tensor]:
        def edit(value: Tensor, site: Site) -> Tensor:
            returned = function(value, hook=self)
            return value if returned is None else returned

        return edit

    def _watch_gradient(self, value: Tensor, site: Site) -> Tensor:
        if value.requires_grad:
            value.register_hook(self._backward)
        return value

    def _backward(self, gradient: Tensor) -> Tensor:
        for handle in list(self.bwd_hooks):  # those that stand here when the gradient arrives, as in TransformerLens
            returned = handle.hook(gradient, hook=self)
            returned = returned[0] if isinstance(returned, tuple) else returned
            gradient = gradient if returned is None else returned
        return gradient

    def _in_direction(self, dir: str) -> list[LensHandle]:
        if dir not in ("fwd", "bwd"):
            raise HookNameError(f"dir={dir!r} is not one of 'fwd', 'bwd'")
        return self.fwd_hooks if dir == "fwd" else self.bwd_hooks

    def __repr__(self) -> str:
        counts = [f"{len(found)} {name}" for found, name in ((self.fwd_hooks, "fwd"), (self.bwd_hooks, "bwd")) if found]
        return f"HookPoint({', '.join([f'name={self.name!r}', *counts])})"


def edits_of(points: dict[str, HookPoint]) -> dict[str, tuple[Callable[[Tensor, Site], Tensor], ...]]:
    """What stands at the hook points, under our names."""
    return {canonical(name): edits for name, point in points.items() if (edits := point.edits())}
