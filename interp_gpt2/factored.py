"""Matrices of low rank kept as the product of two thin ones.

A head's circuits are d_model x d_model, or d_vocab x d_vocab, of rank d_head: products of a tall and a wide matrix. What
one asks of them (products, singular values, eigenvalues, norms) costs little as long as the product is not formed.
"""

from dataclasses import dataclass
from typing import Union

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from interp_gpt2.errors import ShapeError


@dataclass(frozen=True, eq=False)
class FactoredMatrix:
    """The matrix A @ B, (..., row, col), without forming it; leading axes (layer, head) broadcast against each other.

    `M @ x`, `x @ M` with a vector give a vector; with a matrix or another FactoredMatrix, a FactoredMatrix as thin as it can
    be. `M[layer, head]` indexes leading axes, `M[..., 2:5, :]` rows and columns too. Gradients flow to the factors. Names
    are TransformerLens's: `A B AB BA T svd() U S V eigenvalues norm() make_even() pair`.

    Raises ShapeError if the factors do not fit each other.
    """

    A: Float[Tensor, "*lead row mid"]
    B: Float[Tensor, "*lead mid col"]

    def __post_init__(self) -> None:
        A, B = self.A, self.B
        if A.ndim < 2 or B.ndim < 2 or A.shape[-1] != B.shape[-2]:
            raise ShapeError(f"{tuple(A.shape)} @ {tuple(B.shape)} is no product; expected (..., row, mid) @ (..., mid, col)")
        try:
            lead = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        except RuntimeError as error:
            raise ShapeError(f"leading axes of {tuple(A.shape)} and {tuple(B.shape)} do not broadcast") from error
        object.__setattr__(self, "A", A.expand(*lead, *A.shape[-2:]))
        object.__setattr__(self, "B", B.expand(*lead, *B.shape[-2:]))

    # Shape -----------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.A.shape[:-1], self.B.shape[-1]))

    @property
    def ndim(self) -> int:
        return self.A.ndim

    @property
    def ldim(self) -> int:
        """Rows."""
        return self.A.shape[-2]

    @property
    def mdim(self) -> int:
        """What the factors share: the rank is at most this."""
        return self.A.shape[-1]

    @property
    def rdim(self) -> int:
        """Columns."""
        return self.B.shape[-1]

    @property
    def T(self) -> "FactoredMatrix":
        return FactoredMatrix(self.B.mT, self.A.mT)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B

    def unsqueeze(self, dim: int) -> "FactoredMatrix":
        """With a leading axis of length 1 at `dim`. Raises ShapeError for a `dim` among or behind rows and columns."""
        if not -self.ndim - 1 <= dim < -2 and not 0 <= dim <= self.ndim - 2:
            raise ShapeError(f"axis {dim} would stand behind the leading axes of {tuple(self.shape)}")
        return FactoredMatrix(self.A.unsqueeze(dim), self.B.unsqueeze(dim))

    def __getitem__(self, index: object) -> "FactoredMatrix":
        """Leading axes first, as in a tensor; then rows and columns, where a number keeps its axis, of length 1."""
        index = _without_ellipsis(index if isinstance(index, tuple) else (index,), self.ndim, tuple(self.shape))
        n_lead = self.ndim - 2
        lead, (rows, cols) = index[:n_lead], (*index[n_lead:], slice(None), slice(None))[:2]
        A, B = (self.A[lead], self.B[lead]) if lead else (self.A, self.B)
        return FactoredMatrix(A[..., _kept(rows), :], B[..., _kept(cols)])

    # Products --------------------------------------------------------------------------------------------------------

    @property
    def AB(self) -> Float[Tensor, "*lead row col"]:
        """The matrix itself: row x col numbers for each leading index."""
        return self.A @ self.B

    @property
    def BA(self) -> Float[Tensor, "*lead mid mid"]:
        """The small product in the other order, which has the same eigenvalues but for zeros. Needs a square matrix."""
        if self.ldim != self.rdim:
            raise ShapeError(f"B @ A needs a square matrix; this one is {tuple(self.shape)}")
        return self.B @ self.A

    def __matmul__(self, other: Union[Tensor, "FactoredMatrix"]) -> Union[Tensor, "FactoredMatrix"]:
        if isinstance(other, FactoredMatrix):
            middle = self.B @ other.A
            if self.mdim <= other.mdim:
                return FactoredMatrix(self.A, middle @ other.B)
            return FactoredMatrix(self.A @ middle, other.B)
        if other.ndim == 1:
            return (self.A @ (self.B @ other[:, None])).squeeze(-1)
        return FactoredMatrix(self.A, self.B @ other) if self.mdim <= self.rdim else FactoredMatrix(self.AB, other)

    def __rmatmul__(self, other: Tensor) -> Union[Tensor, "FactoredMatrix"]:
        if other.ndim == 1:
            return (other[None] @ self.A @ self.B).squeeze(-2)
        return FactoredMatrix(other @ self.A, self.B) if self.mdim <= self.ldim else FactoredMatrix(other, self.AB)

    def __mul__(self, factor: float | Tensor) -> "FactoredMatrix":
        """Times one number. Raises ShapeError for a tensor of several: `*` is not `@`."""
        if isinstance(factor, Tensor) and factor.numel() != 1:
            raise ShapeError(f"* takes one number, not a tensor of shape {tuple(factor.shape)}; use @ for a product of matrices")
        return FactoredMatrix(self.A * factor, self.B)

    __rmul__ = __mul__

    # Spectrum --------------------------------------------------------------------------------------------------------

    def svd(self) -> tuple[Float[Tensor, "*lead row k"], Float[Tensor, "*lead k"], Float[Tensor, "*lead col k"]]:
        """U, S and V with `U * S @ V.mT` the matrix; columns are orthonormal, S descends, k = min(row, mid, col).

        V, not its transpose, as TransformerLens has it. From QR of each factor, so at the cost of the factors.
        """
        (Qa, Ra), (Qb, Rb) = torch.linalg.qr(_full(self.A)), torch.linalg.qr(_full(self.B).mT)
        U, S, Vh = torch.linalg.svd(Ra @ Rb.mT, full_matrices=False)
        return Qa @ U, S, Qb @ Vh.mT

    @property
    def U(self) -> Float[Tensor, "*lead row k"]:
        return self.svd()[0]

    @property
    def S(self) -> Float[Tensor, "*lead k"]:
        return self.svd()[1]

    @property
    def V(self) -> Float[Tensor, "*lead col k"]:
        return self.svd()[2]

    @property
    def eigenvalues(self) -> Complex[Tensor, "*lead mid"]:
        """Those of the square matrix that can differ from zero, in no order; the other row - mid are zero."""
        return torch.linalg.eigvals(_full(self.BA))

    def norm(self) -> Float[Tensor, "*lead"]:
        """Frobenius norm."""
        return (_triangle(self.A) @ _triangle(self.B.mT).mT).norm(dim=(-2, -1))

    def make_even(self) -> "FactoredMatrix":
        """The same matrix as U sqrt(S) times sqrt(S) V.mT: both factors of equal norm, with orthogonal columns and rows."""
        U, S, V = self.svd()
        return FactoredMatrix(U * S.sqrt()[..., None, :], S.sqrt()[..., None] * V.mT)

    def collapse_l(self) -> Float[Tensor, "*lead k col"]:
        """S V.mT: the matrix up to a rotation of its rows, which changes no norm of a product from the right."""
        _, S, V = self.svd()
        return S[..., None] * V.mT

    def collapse_r(self) -> Float[Tensor, "*lead row k"]:
        """U S: the matrix up to a rotation of its columns, which changes no norm of a product from the left."""
        U, S, _ = self.svd()
        return U * S[..., None, :]

    def __repr__(self) -> str:
        return f"FactoredMatrix(shape {tuple(self.shape)}, mid {self.mdim})"


def _triangle(tall: Float[Tensor, "*lead n mid"]) -> Float[Tensor, "*lead k mid"]:
    return torch.linalg.qr(_full(tall)).R


def _full(factor: Tensor) -> Tensor:
    """In float32 at least, below which torch has no decompositions."""
    return factor.to(torch.promote_types(factor.dtype, torch.float32))


def _without_ellipsis(index: tuple, ndim: int, shape: tuple[int, ...]) -> tuple:
    wide = [part for part in index if isinstance(part, Tensor) and part.dtype == torch.bool and part.ndim > 1]
    n_given = sum(part is not ... for part in index)
    if n_given > ndim or any(part is None for part in index) or (wide and len(index) > 1):
        raise ShapeError(f"{index} does not index a matrix of shape {shape}; use numbers, slices, lists or ... for each axis")
    at = next((i for i, part in enumerate(index) if part is ...), None)
    return index if at is None else (*index[:at], *[slice(None)] * (ndim - n_given), *index[at + 1 :])


def _kept(index: object) -> object:
    """A number as a slice of one."""
    if not isinstance(index, int):
        return index
    return slice(index, index + 1 if index != -1 else None)
