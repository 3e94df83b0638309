"""What a run saw: a mapping from hook points to tensors."""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches

import torch
from torch import Tensor

from interp_gpt2.errors import HookNameError
from interp_gpt2.hooks import canonical, full_name


class ActivationCache(Mapping[str, Tensor]):
    """Activations by hook point, in the order of the forward pass.

    `cache["blocks.3.attn.pattern"]`, `cache["blocks.3.attn.hook_pattern"]` and `cache["pattern", 3]` are the same
    tensor; negative layers count from the end. The tensors are live: `torch.autograd.grad(metric, cache["z", 0])` works
    when the pass was made with gradients. Raises HookNameError for what was not recorded.
    """

    def __init__(self, activations: Mapping[str, Tensor], n_layers: int) -> None:
        self._activations = dict(activations)
        self.n_layers = n_layers

    def __getitem__(self, key: str | tuple) -> Tensor:
        parts = key if isinstance(key, tuple) else (key,)
        if len(parts) not in (1, 2, 3) or not all(isinstance(part, str) for part in (parts[0], *filter(None, parts[2:]))):
            raise HookNameError(f"{key!r} is no key; pass a name, or a tuple such as ('pattern', 3) or ('scale', 3, 'ln1')")
        name = full_name(*key, n_layers=self.n_layers) if isinstance(key, tuple) else canonical(key)
        if name not in self._activations and name in ("scale", "normalized"):
            name = f"ln_final.{name}"
        try:
            return self._activations[name]
        except KeyError:
            raise HookNameError(self._missing(name)) from None

    def __contains__(self, key: object) -> bool:
        try:
            self[key]
        except HookNameError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._activations)

    def __len__(self) -> int:
        return len(self._activations)

    def stack(self, name: str, scope: str | None = None) -> Tensor:
        """One kind of activation from every layer that has it, in order: (layer, batch, ...).

        `scope` tells "scale" of "ln1" from that of "ln2". Raises HookNameError when a layer was not recorded, or there is none.
        """
        if not self.n_layers:
            raise HookNameError(f"{name!r} cannot be stacked: the model has no layers")
        return torch.stack([self[name, layer, scope] for layer in range(self.n_layers)])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ActivationCache":
        """A cache on another device or in another dtype; this one is unchanged."""
        return self._map(lambda value: value.to(device=device, dtype=dtype))

    def batch(self, index: int | slice | list[int] | Tensor) -> "ActivationCache":
        """A cache of some of the sequences. An int keeps a batch axis of length 1: axes keep their names."""
        if isinstance(index, int):
            n_batch = next(iter(self._activations.values())).shape[0] if self._activations else 0
            if not -n_batch <= index < n_batch:
                raise HookNameError(f"there is no sequence {index} in a batch of {n_batch}")
            index = [index]
        return self._map(lambda value: value[index])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ActivationCache":
        return ActivationCache({name: change(value) for name, value in self._activations.items()}, self.n_layers)

    def _missing(self, name: str) -> str:
        if not self._activations:
            return f"{name!r} was not recorded: this cache is empty; add it to names="
        nearest = get_close_matches(name, self._activations, n=3, cutoff=0.6)
        hint = f" Nearest recorded: {', '.join(map(repr, nearest))}." if nearest else ""
        return f"{name!r} was not recorded among {len(self)} activations; add it to names= to record it.{hint}"

    def __repr__(self) -> str:
        """A table of names, shapes and dtypes, one line for every kind of activation in the blocks."""
        rows: dict[tuple[str, str], list[str]] = {}
        for name, value in self._activations.items():
            kind = ".".join("{layer}" if part.isdigit() else part for part in name.split("."))
            shape = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            rows.setdefault((kind, shape), []).append(name.split(".")[1] if kind != name else "")
        width = max((len(kind) for kind, _ in rows), default=0)
        lines = [f"ActivationCache: {len(self)} activations, {self.n_layers} layers"]
        for (kind, shape), layers in rows.items():
            where = f"  layer{'s' * (len(layers) > 1)} {_ranges([int(n) for n in layers])}" if layers[0] else ""
            lines.append(f"  {kind:<{width}}  {shape}{where}")
        return "\n".join(lines)


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] is "0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
