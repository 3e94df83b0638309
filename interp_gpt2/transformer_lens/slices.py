"""Slice: TransformerLens's way to say which positions, neurons or sequences."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp_gpt2.errors import ShapeError

if TYPE_CHECKING:
    import numpy as np

SliceInput = int | tuple | slice | Sequence[int] | Tensor | None


class Slice:
    """An int drops the axis, a tuple is a range (start, stop, step), a list, tensor or array picks; None changes nothing."""

    def __init__(self, input_slice: SliceInput = None) -> None:
        if input_slice is None:
            self.slice, self.mode = slice(None), "identity"
        elif isinstance(input_slice, int):
            self.slice, self.mode = input_slice, "int"
        elif isinstance(input_slice, tuple):
            self.slice, self.mode = slice(*input_slice), "slice"
        elif isinstance(input_slice, slice):
            self.slice, self.mode = input_slice, "slice"
        elif hasattr(input_slice, "__len__") and not isinstance(input_slice, (str, dict)):
            picked = torch.as_tensor(input_slice)
            self.slice, self.mode = picked.nonzero()[:, 0] if picked.dtype == torch.bool else picked.long(), "array"
        else:
            raise ShapeError(f"{input_slice!r} is no slice; pass an int, a tuple (start, stop, step), a list or a tensor")

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The slice of an axis; negative axes count from the last."""
        index = self.slice.to(tensor.device) if isinstance(self.slice, Tensor) else self.slice
        return tensor[(slice(None),) * (dim % tensor.ndim) + (index,)]

    @property
    def index(self) -> int | slice | list[int] | None:
        """The same in the words of our residual-stream functions, where an int keeps its axis."""
        if self.mode == "identity":
            return None
        return self.slice.tolist() if isinstance(self.slice, Tensor) else self.slice

    @classmethod
    def unwrap(cls, slice_input: "Slice | SliceInput") -> "Slice":
        """As a Slice; an int becomes a list of it, so that its axis stays."""
        return cls([slice_input]) if isinstance(slice_input, int) else as_slice(slice_input)

    def indices(self, max_ctx: int | None = None) -> "np.ndarray":
        """What it picks of an axis of length `max_ctx`, which an int does not need."""
        import numpy as np

        if self.mode == "int":
            return np.array([self.slice])
        if max_ctx is None:
            raise ShapeError("which entries a slice picks depends on how many there are; pass max_ctx")
        return self.apply(torch.arange(max_ctx)).numpy()

    def __repr__(self) -> str:
        return f"Slice: {self.slice} Mode: {self.mode} "


def as_slice(slice_input: Slice | SliceInput) -> Slice:
    """As a Slice, also from TransformerLens's own."""
    if isinstance(slice_input, Slice):
        return slice_input
    if hasattr(slice_input, "mode") and hasattr(slice_input, "slice"):
        return Slice(None if slice_input.mode == "identity" else slice_input.slice)
    return Slice(slice_input)
