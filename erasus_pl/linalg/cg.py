"""Conjugate gradients for a symmetric positive definite system given by its products.

Hestenes and Stiefel 1952; the form used for inverse-Hessian products by Martens 2010.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CurvatureError", "Solution", "conjugate_gradient"]


class CurvatureError(ValueError):
    """The damped matrix is not positive definite, so the system has no minimiser."""


@dataclass(frozen=True)
class Solution:
    """What the iteration ended with.

    Attributes:
        x: the solution ``(P,)``.
        iterations: products spent in the loop.
        residual: ``||b - (A + damping I) x|| / ||b||``, recomputed at the end, not recurred.
        converged: whether ``residual`` reached the tolerance.
    """

    x: Tensor
    iterations: int
    residual: float
    converged: bool


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    target: Tensor,
    damping: float = 0.0,
    tolerance: float = 1e-6,
    max_iterations: int = 100,
) -> Solution:
    """Solve ``(A + damping I) x = target`` where ``product(v)`` gives ``A v``.

    Args:
        product: maps ``(P,)`` to ``(P,)``, linear and symmetric.
        target: right-hand side ``(P,)``.
        damping: added to the diagonal; not negative.
        tolerance: stop when the residual's norm is at most this part of the target's.
        max_iterations: products at most; running out is not an error, see ``converged``.

    Raises:
        CurvatureError: when a direction with negative or zero curvature is met.
        FloatingPointError: when a product or the target is not finite.
    """
    if damping < 0:
        msg = f"`damping` must not be negative, got {damping}"
        raise ValueError(msg)
    if not tolerance > 0:
        msg = f"`tolerance` must be positive, got {tolerance}"
        raise ValueError(msg)
    if max_iterations < 1:
        msg = f"`max_iterations` must be at least 1, got {max_iterations}"
        raise ValueError(msg)

    def apply(vector: Tensor) -> Tensor:
        image = product(vector) + damping * vector
        if not torch.isfinite(image).all():
            msg = "a matrix product is not finite: check the losses for NaN"
            raise FloatingPointError(msg)
        return image

    size = float(target.norm())
    if not torch.isfinite(target).all():
        msg = "`target` is not finite: check the losses for NaN"
        raise FloatingPointError(msg)
    x = torch.zeros_like(target)
    if size == 0.0:
        return Solution(x, 0, 0.0, True)
    residual = target.clone()
    direction = residual.clone()
    energy = residual @ residual
    iterations = 0
    while iterations < max_iterations and float(energy.sqrt()) > tolerance * size:
        image = apply(direction)
        iterations += 1
        curvature = direction @ image
        if curvature <= 0:
            steepness = float(curvature / (direction @ direction))
            msg = (
                f"curvature {steepness:.3g} at iteration {iterations}: the matrix is not positive "
                f"definite at `damping`={damping:g}; raise it above {damping - steepness:.3g} or "
                "use the Gauss-Newton matrix"
            )
            raise CurvatureError(msg)
        step = energy / curvature
        x += step * direction
        residual -= step * image
        before, energy = energy, residual @ residual
        direction = residual + (energy / before) * direction
    true = float((target - apply(x)).norm()) / size
    return Solution(x, iterations, true, true <= 2 * tolerance)
