"""A factored matrix answers as the matrix it stands for, without forming it."""

from importlib.metadata import version

import pytest
import torch

from interp_gpt2.errors import ShapeError
from interp_gpt2.factored import FactoredMatrix

with_tl = pytest.mark.skipif(int(version("transformer-lens").split(".")[0]) < 3, reason="compared with transformer-lens 3 and 4")


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


SHAPES = {
    "thin": ((7, 3), (3, 7)),
    "not square": ((7, 3), (3, 5)),
    "thick": ((4, 9), (9, 6)),
    "stacked": ((2, 4, 7, 3), (2, 4, 3, 7)),
    "broadcast": ((4, 7, 3), (2, 1, 3, 5)),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def matrix(request):
    A, B = request.param
    return FactoredMatrix(draw(*A), draw(*B, seed=1))


def close(ours, theirs):
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-12, rtol=1e-12)  # float64


def test_shapes_transposes_and_products_are_the_matrixs(matrix):
    whole = matrix.AB
    assert matrix.shape == whole.shape
    assert (matrix.ndim, matrix.ldim, matrix.rdim) == (whole.ndim, *whole.shape[-2:])
    assert close(matrix.T.AB, whole.mT)
    row, col = draw(matrix.ldim, seed=2), draw(matrix.rdim, seed=3)
    assert close(matrix @ col, whole @ col)
    assert close(row @ matrix, row @ whole)
    right, left = draw(matrix.rdim, 4, seed=4), draw(4, matrix.ldim, seed=5)
    assert close((matrix @ right).AB, whole @ right)
    assert close((left @ matrix).AB, left @ whole)
    assert close((2 * matrix * torch.tensor(3.0)).AB, 6 * whole)


def test_products_of_two_stay_as_thin_as_the_thinner(matrix):
    for mid in (2, 8):
        other = FactoredMatrix(draw(matrix.rdim, mid, seed=6), draw(mid, 10, seed=7))
        product = matrix @ other
        assert isinstance(product, FactoredMatrix)
        assert product.mdim == min(matrix.mdim, mid)
        assert close(product.AB, matrix.AB @ other.AB)
        assert close((matrix.collapse_l() @ other.collapse_r()).norm(dim=(-2, -1)), product.norm())


def test_singular_values_and_vectors_are_the_matrixs(matrix):
    U, S, V = matrix.svd()
    whole = matrix.AB
    assert close((U * S[..., None, :]) @ V.mT, whole)
    k = min(matrix.ldim, matrix.mdim, matrix.rdim)
    assert S.shape == (*whole.shape[:-2], k)
    assert close(S, torch.linalg.svdvals(whole)[..., :k])
    for basis in (U, V):
        assert close(basis.mT @ basis, torch.eye(k, dtype=torch.double).expand(*whole.shape[:-2], k, k))
    assert torch.equal(matrix.U, U)
    assert torch.equal(matrix.S, S)
    assert torch.equal(matrix.V, V)
    even = matrix.make_even()
    assert close(even.AB, whole)
    assert close(even.A.norm(dim=(-2, -1)), even.B.norm(dim=(-2, -1)))
    assert close(matrix.norm(), torch.linalg.matrix_norm(whole))
    assert close(matrix.collapse_l().mT @ matrix.collapse_l(), whole.mT @ whole)
    assert close(matrix.collapse_r() @ matrix.collapse_r().mT, whole @ whole.mT)


@pytest.mark.parametrize("shape", ["thin", "stacked"])
def test_eigenvalues_are_the_matrixs_but_for_zeros(shape):
    A, B = SHAPES[shape]
    matrix = FactoredMatrix(draw(*A), draw(*B, seed=1))
    few, all_of_them = matrix.eigenvalues, torch.linalg.eigvals(matrix.AB)
    assert few.shape[-1] == matrix.mdim
    assert torch.allclose(few.sum(-1), all_of_them.sum(-1))
    order = all_of_them.abs().argsort(dim=-1, descending=True)
    largest = all_of_them.gather(-1, order)[..., : matrix.mdim].abs()
    assert torch.allclose(few.abs().sort(descending=True).values, largest)


@pytest.mark.parametrize(
    "index",
    [0, (1, 2), (slice(None), 3), ([0, 1], [2, 0]), torch.tensor([1, 0]), (..., slice(2, 5), slice(None)), (0, 1, [1, 3]),
     (1, ..., slice(0, 2)), (slice(0, 1), 2, slice(1, 4), slice(None, None, 2))],
    ids=str,
)  # fmt: skip
def test_an_index_picks_what_it_picks_in_a_tensor(index):
    matrix = FactoredMatrix(draw(2, 4, 7, 3), draw(2, 4, 3, 6, seed=1))
    assert close(matrix[index].AB, matrix.AB[index])


def test_a_number_keeps_the_axis_of_rows_or_columns():
    matrix = FactoredMatrix(draw(2, 7, 3), draw(2, 3, 6, seed=1))
    assert close(matrix[0, -1].AB, matrix.AB[0, -1:])
    assert close(matrix[..., 2, -1].AB, matrix.AB[:, 2:3, -1:])
    assert matrix.unsqueeze(1).shape == (2, 1, 7, 6)


def test_nothing_forms_the_large_matrix():
    """A matrix of 100,000 rows and columns would need 40 GB. Checked against the small Gram matrices, in float64."""
    A, B = draw(100_000, 2), draw(2, 100_000, seed=1)
    matrix = FactoredMatrix(A.float(), B.float())
    assert matrix.shape == (100_000, 100_000)
    squares = torch.linalg.eigvals(A.T @ A @ B @ B.T).real.sort(descending=True).values
    # LAPACK sums 100,000 squares in float32.
    torch.testing.assert_close(matrix.S.double(), squares.sqrt(), rtol=1e-4, atol=0)
    torch.testing.assert_close(matrix.norm().double(), squares.sum().sqrt(), rtol=1e-4, atol=0)
    torch.testing.assert_close(matrix.eigenvalues.real.sum().double(), (B @ A).trace(), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close((matrix @ torch.ones(100_000))[:2].double(), A[:2] @ B.sum(1), rtol=1e-4, atol=1e-2)


def test_half_precision_is_decomposed_in_float32():
    matrix = FactoredMatrix(draw(7, 3).bfloat16(), draw(3, 7, seed=1).bfloat16())
    exact = FactoredMatrix(matrix.A.float(), matrix.B.float())
    assert torch.equal(matrix.S, exact.S)
    assert torch.allclose(matrix.norm(), exact.norm())
    assert matrix.eigenvalues.dtype == torch.complex64


def test_gradients_flow_to_the_factors():
    A, B = draw(7, 3).requires_grad_(), draw(3, 7, seed=1).requires_grad_()
    ours = torch.autograd.grad(FactoredMatrix(A, B).norm(), (A, B))
    theirs = torch.autograd.grad((A @ B).norm(), (A, B))
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))


@with_tl
def test_it_is_transformer_lenss(matrix):
    from transformer_lens import FactoredMatrix as Theirs

    theirs = Theirs(matrix.A, matrix.B)
    right = draw(matrix.rdim, 4, seed=4)
    assert close(matrix.S, theirs.S)
    assert close(matrix.norm(), theirs.norm())
    assert close((matrix @ right).AB, (theirs @ right).AB)
    assert close(matrix[..., :2, :].AB, theirs.AB[..., :2, :])
    assert close(matrix.T.AB, theirs.T.AB)
    assert close(matrix.make_even().AB, theirs.make_even().AB)
    if matrix.ldim == matrix.rdim:
        assert torch.allclose(matrix.eigenvalues.abs().sort().values, theirs.eigenvalues.abs().sort().values)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: FactoredMatrix(draw(7, 3), draw(2, 7)), r"\(7, 3\) @ \(2, 7\) is no product"),
        (lambda: FactoredMatrix(draw(7), draw(7, 7)), "is no product"),
        (lambda: FactoredMatrix(draw(2, 7, 3), draw(4, 3, 7)), "do not broadcast"),
        (lambda: FactoredMatrix(draw(7, 3), draw(3, 5)).BA, r"needs a square matrix; this one is \(7, 5\)"),
        (lambda: FactoredMatrix(draw(7, 3), draw(3, 5)) * draw(5), "use @ for a product"),
        (lambda: FactoredMatrix(draw(7, 3), draw(3, 5))[0, 0, 0], r"does not index a matrix of shape \(7, 5\)"),
        (lambda: FactoredMatrix(draw(7, 3), draw(3, 5))[None], "does not index"),
        (lambda: FactoredMatrix(draw(7, 3), draw(3, 5)).unsqueeze(1), "behind the leading axes"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, said):
    with pytest.raises(ShapeError, match=said):
        wrong()
