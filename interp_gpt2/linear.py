"""A linear map that is not slow on AMD processors with AVX-512.

On the CPU, torch multiplies float32 matrices with Intel's MKL, which runs its AVX2 code on AMD processors whatever they can
do. oneDNN, which torch carries too, runs AVX-512 there and takes half the time, forward and backward (torch 2.13 on an
EPYC, 15 to 2,048 rows, widths of 128 to 3,072). A single row, as in generation, takes three quarters of MKL's time: as
long as reading the weights. It rounds as float32 does, and a row's result does not depend on the rows beside it, only on
whether there are any. Everywhere else, and within `torch.backends.mkldnn.flags(enabled=False)`, `linear` is torch's own.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import has_torch_function_variadic

_WORTHWHILE = 2**22  # products; with fewer the call costs more than it saves,
_WORTH_READING = 2**19  # unless reading this many weights is most of the work
_CONSTANT: ContextVar[bool] = ContextVar("constant weights", default=False)


@contextmanager
def constant_weights() -> Iterator[None]:
    """Products within the block have no derivative by their weights: for whoever wants those by activations alone.

    torch leaves out what nobody asked for. A function of Python's is not told: its derivatives by weights were most of the
    time of a way back that had no use for them.
    """
    before = _CONSTANT.set(True)
    try:
        yield
    finally:
        _CONSTANT.reset(before)


class Linear(nn.Linear):
    """nn.Linear by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`: (..., d_in) and (d_out, d_in) to (..., d_out), with derivatives of every order."""
    if not _onednn_is_faster(x, weight):
        return F.linear(x, weight, bias)
    if _CONSTANT.get():
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    return _OneDNN.apply(x, weight, bias)


def _onednn_is_faster(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # the compiler chooses for itself
        and type(x) is Tensor  # a subclass may mean something else by a product,
        and not has_torch_function_variadic(x, weight)  # and so may a mode,
        and not torch._C._len_torch_dispatch_stack()  # of either kind: one that counts operations knows torch's own
        and x.device.type == "cpu"
        and (x.numel() * weight.shape[0] >= _WORTHWHILE or weight.numel() >= _WORTH_READING)
        and x.dtype == weight.dtype == torch.float32
        and x.ndim > 1
        and x.shape[-1] == weight.shape[1]  # else torch says best what is wrong
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
        and _mkl_is_slow()
    )


@lru_cache(maxsize=1)
def _mkl_is_slow() -> bool:
    facts = Path("/proc/cpuinfo")
    amd = "AuthenticAMD" in (facts.read_text() if facts.exists() else platform.processor())
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return amd and avx512 and torch.backends.mkl.is_available() and _has_onednn()


def _has_onednn() -> bool:
    """Does this torch have oneDNN's product, called as we call it? torch keeps it for its compiler, and may change it."""
    try:
        return torch.equal(_product(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)), torch.full((2, 4), 4.0))
    except (AttributeError, RuntimeError, TypeError):
        return False


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, _dense(weight), bias, "none", [], "")


def _dense(weight: Tensor) -> Tensor:
    """The same matrix without gaps between its rows or columns, for which oneDNN is a thousand times slower."""
    return weight if weight.is_contiguous() or weight.T.is_contiguous() else weight.contiguous()


class _OneDNN(torch.autograd.Function):
    """oneDNN's product, which torch has without derivatives. These are they."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return (
            linear(grad, weight.T) if ctx.needs_input_grad[0] else None,
            linear(rows.T, x.flatten(0, -2).T) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        parts = [linear(dx, weight)] if dx is not None else []
        parts += [linear(x, dweight)] if dweight is not None else []
        parts += [dbias.expand(*x.shape[:-1], -1)] if dbias is not None else []
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
        return torch.vmap(F.linear, in_dims)(x, weight, bias), 0
