"""Numbers on their way to a page: tensors to arrays, arrays to short JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def as_array(values: Any) -> np.ndarray:
    """A tensor (any device, with or without gradient), array or nested list as a numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # numpy has no bfloat16
        return values.numpy()
    return np.asarray(values)


def as_list(values: Any, digits: int = 4) -> list[Any]:
    """An array as nested lists, floats rounded to `digits` significant digits and None where they are not finite."""
    array = as_array(values)
    if array.dtype.kind in "biu":
        return array.tolist()
    flat = [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in array.ravel().tolist()]
    return _nested(flat, array.shape)


def storable(text: str) -> str:
    """`text` for a table: a lone surrogate, which UTF-8 cannot hold, written out, as in \\ud800."""
    return text.encode("utf-8", "backslashreplace").decode()


def _nested(flat: list[Any], shape: Sequence[int]) -> list[Any]:
    if len(shape) <= 1:
        return flat
    size = len(flat) // shape[0] if shape[0] else 0
    return [_nested(flat[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]
