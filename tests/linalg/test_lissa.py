import pytest
import torch

from erasus_pl.linalg import CurvatureError, dense_solve, largest_eigenvalue, lissa


def positive(seed, n=12, rank=12, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, rank, generator=generator, dtype=torch.float64)
    return size * root @ root.T / n


def times(matrix):
    return lambda v: matrix @ v


def vector(n=12, seed=9):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_power_iteration_finds_the_eigenvalue_of_largest_size():
    matrix = positive(0)
    truth = torch.linalg.eigvalsh(matrix)
    found = largest_eigenvalue(times(matrix), vector(), 500)
    assert found == pytest.approx(float(truth[-1]), rel=1e-9)
    found = largest_eigenvalue(times(-matrix), vector(), 500)
    assert found == pytest.approx(-float(truth[-1]), rel=1e-9)
    assert 0.6 * truth[-1] < largest_eigenvalue(times(matrix), vector()) <= truth[-1]
    assert largest_eigenvalue(times(torch.zeros(12, 12).double()), vector()) == 0.0


def test_with_one_matrix_it_is_the_neumann_series():
    matrix = positive(1)
    solution = lissa([times(matrix)], vector(), damping=0.1, depth=4000, tolerance=1e-8)
    truth = torch.linalg.solve(matrix + 0.1 * torch.eye(12).double(), vector())
    assert solution.converged
    torch.testing.assert_close(solution.x, truth, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_it_cannot_diverge_whatever_the_scale_of_the_matrices(size):
    """A scale fixed by hand explodes on the largest of these."""
    matrices = [positive(seed, rank=2, size=size) for seed in range(8)]
    mean = torch.stack(matrices).mean(0)
    damping = 0.05 * size
    products = [times(m) for m in matrices]
    solution = lissa(products, vector(), damping, depth=4000, tolerance=0.2)
    truth = dense_solve(times(mean), vector(), damping)
    assert solution.converged
    assert (solution.x - truth).norm() < 0.1 * truth.norm()
    told = (vector() - mean @ solution.x - damping * solution.x).norm() / vector().norm()
    assert solution.residual == pytest.approx(float(told))


def test_a_series_too_short_is_told():
    solution = lissa([times(positive(1))], vector(), damping=1e-4, depth=10)
    assert not solution.converged
    assert solution.residual > 0.1


def test_what_it_cannot_solve_is_refused():
    matrix = positive(1)
    with pytest.raises(CurvatureError, match="raise `damping`"):
        lissa([times(-matrix)], vector(), damping=0.1)
    bent = matrix - 0.5 * torch.eye(12).double()
    with pytest.raises(CurvatureError, match="raise `damping`"):
        lissa([times(bent)], vector(), damping=0.1)
    with pytest.raises(ValueError, match=r"`damping` must be above 0 for LiSSA, got 0"):
        lissa([times(matrix)], vector(), damping=0.0)
    with pytest.raises(FloatingPointError, match="check the losses for NaN"):
        lissa([times(matrix * torch.nan)], vector(), damping=0.1)


def test_nothing_to_solve():
    assert not lissa([times(positive(1))], torch.zeros(12).double(), 0.1).x.any()
