"""The largest eigenvalues of a symmetric matrix given by its products.

Schioppa, Zablotskaia, Vilar and Sokolov, "Scaling Up Influence Functions" (AAAI 2022,
arXiv:2112.03052), Alg. 1: Arnoldi's iteration spans a Krylov space from a random vector, the matrix
is diagonalised in it, and its eigenpairs of largest size stand for the matrix. The iteration
orthogonalises against all of the basis, as theirs does; where the space is exhausted before its
time, as by a matrix of low rank, it goes on with a fresh random vector, so that as many steps as
there are dimensions give all eigenpairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from erasus_pl.linalg.cg import CurvatureError

__all__ = ["arnoldi", "low_rank_solve"]


def arnoldi(
    product: Callable[[Tensor], Tensor],
    like: Tensor,
    iterations: int,
    rank: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(r,)`` of largest size, falling, and their eigenvectors ``(r, P)``.

    Args:
        product: maps ``(P,)`` to ``(P,)``, linear and symmetric.
        like: any ``(P,)``; its type and device are those of the products.
        iterations: products, and size of the Krylov space; at most P are made.
        rank: eigenpairs to keep; all of the Krylov space by default.
        seed: of the start.

    Raises:
        FloatingPointError: when a product is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    iterations = min(iterations, len(like))
    basis = like.new_zeros(iterations, len(like))
    projected = torch.zeros(iterations, iterations, dtype=torch.float64)
    tiny = 100 * torch.finfo(like.dtype).eps
    vector, largest = torch.zeros_like(like), 0.0
    for j in range(iterations):
        if float(vector.norm()) <= tiny * largest:
            fresh = torch.randn(len(like), generator=generator, dtype=torch.float64).to(like)
            vector = _apart(fresh, basis[:j])
        basis[j] = vector / vector.norm()
        image = product(basis[j])
        if not image.isfinite().all():
            msg = "a matrix product is not finite: check the losses for NaN"
            raise FloatingPointError(msg)
        projected[: j + 1, j] = (basis[: j + 1] @ image).double().cpu()
        largest = max(largest, float(image.norm()))
        vector = _apart(image, basis[: j + 1])
    upper = projected.triu()
    values, turns = torch.linalg.eigh(upper + upper.triu(1).T)
    order = values.abs().sort(descending=True, stable=True).indices[:rank]
    return values[order].to(like), turns.T[order].to(like) @ basis


def _apart(vector: Tensor, basis: Tensor) -> Tensor:
    """The part of a vector outside the basis; twice is enough for it to be orthogonal."""
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def low_rank_solve(values: Tensor, vectors: Tensor, target: Tensor, damping: float) -> Tensor:
    """``sum_i u_i u_i^T target / (mu_i + damping)``, ``(P,)``: 0 outside the span of the ``u``.

    Args:
        values: ``mu (r,)``.
        vectors: ``u (r, P)``, orthonormal.
        target: ``(P,)``.
        damping: added to each eigenvalue.

    Raises:
        CurvatureError: when a damped eigenvalue is not positive.
    """
    lowest = float(values.min())
    if lowest + damping <= 0:
        msg = (
            f"curvature {lowest + damping:.3g}: the matrix is not positive definite at `damping`="
            f"{damping:g}; raise it above {-lowest:.3g} or use the Gauss-Newton matrix"
        )
        raise CurvatureError(msg)
    return vectors.T @ ((vectors @ target) / (values + damping))
