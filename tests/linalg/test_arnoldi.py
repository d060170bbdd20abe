import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasus_pl.linalg import CurvatureError, arnoldi, dense_matrix, dense_solve, low_rank_solve


def symmetric(n, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    values = torch.zeros(n, dtype=torch.float64)
    values[:rank] = torch.randn(rank, generator=generator, dtype=torch.float64)
    return turn @ torch.diag(values) @ turn.T


def times(matrix):
    return lambda v: matrix @ v


def vector(n, seed=9):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 99))
def test_as_many_steps_as_dimensions_give_all_eigenpairs(n, rank, seed):
    """Also of a matrix of low rank, which ends the Krylov space early, and of repeated zeros."""
    matrix = symmetric(n, min(rank, n), seed)
    values, vectors = arnoldi(times(matrix), vector(n), n + 3)
    torch.testing.assert_close(
        values.sort().values, torch.linalg.eigvalsh(matrix), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(n).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(vectors.T * values @ vectors, matrix, atol=1e-9, rtol=0)
    assert torch.equal(values.abs().sort(descending=True).values, values.abs())


def test_few_steps_find_the_largest():
    turn = torch.linalg.qr(
        torch.randn(60, 60, generator=torch.Generator().manual_seed(3)).double()
    )[0]
    truth = 0.7 ** torch.arange(60).double()
    truth[1] *= -1
    matrix = turn.T * truth @ turn
    values, vectors = arnoldi(times(matrix), vector(60), 25, rank=5)
    torch.testing.assert_close(values, truth[:5], atol=1e-8, rtol=0)
    torch.testing.assert_close((vectors * turn[:5]).sum(1).abs(), torch.ones(5).double())


def test_at_full_rank_the_solution_is_the_exact_one():
    matrix = symmetric(15, 6, 1).square()
    matrix = matrix @ matrix.T
    target = vector(15)
    truth = torch.linalg.solve(matrix + 0.1 * torch.eye(15).double(), target)
    found = low_rank_solve(*arnoldi(times(matrix), target, 15), target, 0.1)
    torch.testing.assert_close(found, truth)
    torch.testing.assert_close(dense_solve(times(matrix), target, 0.1), truth)


def test_of_the_rest_of_the_space_nothing_is_left():
    values, vectors = arnoldi(
        times(symmetric(15, 15, 1).abs() + 20 * torch.eye(15)), vector(15), 15, 4
    )
    found = low_rank_solve(values, vectors, vector(15), 0.1)
    outside = vector(15, 4) - vectors.T @ (vectors @ vector(15, 4))
    assert abs(float(found @ outside)) < 1e-12


def test_what_cannot_be_solved_is_refused():
    matrix, target = symmetric(9, 9), vector(9)
    with pytest.raises(CurvatureError, match=r"raise it above .* Gauss-Newton"):
        low_rank_solve(*arnoldi(times(matrix), target, 9), target, 0.1)
    with pytest.raises(CurvatureError, match=r"raise it above .* Gauss-Newton"):
        dense_solve(times(matrix), target, 0.1)
    for solve in (arnoldi, lambda p, v, _: dense_matrix(p, v)):
        with pytest.raises(FloatingPointError, match="check the losses for NaN"):
            solve(times(matrix * torch.nan), target, 9)
    with pytest.raises(ValueError, match=r"9 parameters .* bound of 0 MiB \(8 parameters\): use"):
        dense_matrix(times(matrix), target, limit=8 * 8 * 8)


def test_the_dense_matrix_is_the_matrix():
    matrix = symmetric(9, 9)
    torch.testing.assert_close(dense_matrix(times(matrix), vector(9)), matrix)
    lower = dense_solve(times(matrix.float()), vector(9).float(), 10.0)
    assert lower.dtype == torch.float32
