import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasus_pl.linalg import CurvatureError, conjugate_gradient


def positive(size, seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, dtype=torch.float64, generator=generator)
    target = torch.randn(size, dtype=torch.float64, generator=generator)
    return root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64), target


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 25), damping=st.floats(0, 2), seed=st.integers(0, 99))
def test_solves_as_a_direct_solver_does(size, damping, seed):
    matrix, target = positive(size, seed)
    solution = conjugate_gradient(lambda v: matrix @ v, target, damping, tolerance=1e-10)
    truth = torch.linalg.solve(matrix + damping * torch.eye(size, dtype=torch.float64), target)
    assert solution.converged
    torch.testing.assert_close(solution.x, truth, rtol=1e-6, atol=1e-8)


def test_same_iterates_as_scipy():
    matrix, target = positive(40, 3)
    for most in (1, 4, 9):
        ours = conjugate_gradient(lambda v: matrix @ v, target, max_iterations=most)
        theirs, _ = scipy.sparse.linalg.cg(matrix.numpy(), target.numpy(), maxiter=most, rtol=1e-12)
        np.testing.assert_allclose(ours.x.numpy(), theirs, rtol=1e-9)
        assert ours.iterations == most
        assert not ours.converged
        left = (target - matrix @ ours.x).norm() / target.norm()
        assert ours.residual == pytest.approx(float(left))


def test_distinct_eigenvalues_bound_the_iterations():
    diagonal = torch.tensor([1.0, 1.0, 5.0, 5.0, 9.0], dtype=torch.float64)
    solution = conjugate_gradient(lambda v: diagonal * v, torch.ones(5, dtype=torch.float64))
    assert solution.iterations == 3
    torch.testing.assert_close(solution.x, 1 / diagonal)


def test_zero_target_needs_no_product():
    solution = conjugate_gradient(lambda v: v * float("nan"), torch.zeros(3))
    assert solution.converged
    assert solution.iterations == 0
    assert torch.equal(solution.x, torch.zeros(3))


def test_negative_curvature_is_refused_and_damping_lifts_it():
    diagonal = torch.tensor([1.0, -0.5], dtype=torch.float64)
    target = torch.tensor([0.1, 1.0], dtype=torch.float64)
    with pytest.raises(CurvatureError, match="`damping`=0; raise it"):
        conjugate_gradient(lambda v: diagonal * v, target)
    with pytest.raises(CurvatureError):
        conjugate_gradient(lambda v: 0 * v, target)
    lifted = conjugate_gradient(lambda v: diagonal * v, target, damping=0.6)
    torch.testing.assert_close(lifted.x, target / (diagonal + 0.6))


def test_what_is_not_finite_is_refused():
    with pytest.raises(FloatingPointError, match="product is not finite"):
        conjugate_gradient(lambda v: v * float("inf"), torch.ones(2))
    with pytest.raises(FloatingPointError, match="`target` is not finite"):
        conjugate_gradient(lambda v: v, torch.tensor([1.0, float("nan")]))


@pytest.mark.parametrize(
    ("name", "value"), [("damping", -1.0), ("tolerance", 0.0), ("max_iterations", 0)]
)
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must .*got"):
        conjugate_gradient(lambda v: v, torch.ones(2), **{name: value})
