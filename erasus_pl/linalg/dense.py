"""Solve with the whole matrix, formed from its products: the truth for small models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from erasus_pl.linalg.cg import CurvatureError

__all__ = ["dense_matrix", "dense_solve"]

_LIMIT = 2**30


def dense_matrix(product: Callable[[Tensor], Tensor], like: Tensor, limit: int = _LIMIT) -> Tensor:
    """The symmetric matrix ``(P, P)`` behind ``product``, double, a column for each product.

    Args:
        product: maps ``(P,)`` to ``(P,)``, linear and symmetric.
        like: any ``(P,)``; its type and device are those of the products.
        limit: bytes that the matrix may take.

    Raises:
        ValueError: when it would take more.
        FloatingPointError: when a product is not finite.
    """
    size = len(like)
    if 8 * size**2 > limit:
        msg = (
            f"the matrix of {size} parameters takes {8 * size**2 / 2**20:.0f} MiB, over the bound "
            f"of {limit / 2**20:.0f} MiB ({int((limit / 8) ** 0.5)} parameters): use `solver: cg`"
        )
        raise ValueError(msg)
    matrix = torch.empty(size, size, dtype=torch.float64, device=like.device)
    unit = torch.zeros_like(like)
    for i in range(size):
        unit[i] = 1
        matrix[i] = product(unit)
        unit[i] = 0
    if not matrix.isfinite().all():
        msg = "a matrix product is not finite: check the losses for NaN"
        raise FloatingPointError(msg)
    return (matrix + matrix.T) / 2


def dense_solve(
    product: Callable[[Tensor], Tensor], target: Tensor, damping: float, limit: int = _LIMIT
) -> Tensor:
    """``(A + damping I)^-1 target``, ``(P,)``, by Cholesky; see ``dense_matrix``.

    Raises:
        CurvatureError: when the damped matrix is not positive definite.
    """
    matrix = dense_matrix(product, target, limit)
    matrix.diagonal().add_(damping)
    root, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        lowest = float(torch.linalg.eigvalsh(matrix)[0])
        msg = (
            f"curvature {lowest:.3g}: the matrix is not positive definite at `damping`="
            f"{damping:g}; raise it above {damping - lowest:.3g} or use the Gauss-Newton matrix"
        )
        raise CurvatureError(msg)
    return torch.cholesky_solve(target.double()[:, None], root)[:, 0].to(target.dtype)
