"""LiSSA: an inverse-matrix product by a Neumann series over random parts of the data.

Agarwal, Bullins and Hazan, "Second-Order Stochastic Optimization for Machine Learning in Linear
Time" (JMLR 2017, arXiv:1602.03943), Sec. 3; for influence functions Koh and Liang (ICML 2017,
arXiv:1703.04730), Sec. 3: ``x_{j+1} = b + (I - A_j / s) x_j`` with ``A_j`` the damped curvature
of a random batch tends in expectation to ``s A^-1 b``. It needs every ``A_j / s`` below the
identity. The scale ``s`` is left to the user there, and the series explodes where it is too small;
here it is the largest eigenvalue of any batch, by power iteration, with a margin. For positive
semi-definite batches no step can then stretch an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from erasus_pl.linalg.cg import CurvatureError, Solution

__all__ = ["largest_eigenvalue", "lissa"]

_MARGIN = 1.2


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], like: Tensor, iterations: int = 20, seed: int = 0
) -> float:
    """Rayleigh quotient after power iteration: the eigenvalue of largest size, from below.

    Args:
        product: maps ``(P,)`` to ``(P,)``, linear and symmetric.
        like: any ``(P,)``; its type and device are those of the products.
        iterations: products.
        seed: of the start.
    """
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(len(like), generator=generator, dtype=torch.float64).to(like)
    quotient = 0.0
    for _ in range(iterations):
        size = vector.norm()
        if size == 0:
            return 0.0
        vector = vector / size
        image = product(vector)
        quotient = float(vector @ image)
        vector = image
    return quotient


def lissa(
    products: Sequence[Callable[[Tensor], Tensor]],
    target: Tensor,
    damping: float,
    tolerance: float = 0.1,
    depth: int = 5000,
    seed: int = 0,
) -> Solution:
    """Solve ``(A + damping I) x = target`` with ``A`` the mean of the matrices behind ``products``.

    The last half of the steps is averaged, which takes the place of averaging several runs: the
    noise of the last step alone does not fade. With a single product nothing is random.

    Args:
        products: one for each batch; batches of one size.
        target: right-hand side ``(P,)``.
        damping: above 0.
        tolerance: residual, relative to the target, at which the solution counts as converged.
        depth: steps, a product each.
        seed: of the batches drawn.

    Raises:
        CurvatureError: when a batch has negative curvature that the damping does not outweigh.
        FloatingPointError: when a product or the target is not finite.
    """
    if not damping > 0:
        msg = f"`damping` must be above 0 for LiSSA, got {damping}"
        raise ValueError(msg)
    size = float(target.norm())
    if size == 0.0:
        return Solution(torch.zeros_like(target), 0, 0.0, True)
    tops = [largest_eigenvalue(product, target, seed=seed) for product in products]
    if not torch.tensor([size, *tops]).isfinite().all():
        msg = "a matrix product or the target is not finite: check the losses for NaN"
        raise FloatingPointError(msg)
    if min(tops) + damping <= 0:
        raise _indefinite(damping)
    scale = _MARGIN * (max(tops) + damping)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(products), (depth,), generator=generator).tolist()
    x = target / scale
    mean = torch.zeros_like(target)
    tail = depth // 2
    for step, number in enumerate(drawn):
        x = x + (target - products[number](x) - damping * x) / scale
        if step >= tail:
            mean += (x - mean) / (step - tail + 1)
    image = torch.stack([product(mean) for product in products]).mean(0) + damping * mean
    residual = float((target - image).norm()) / size
    if not residual < 1:
        raise _indefinite(damping)
    return Solution(mean, depth, residual, residual <= tolerance)


def _indefinite(damping: float) -> CurvatureError:
    return CurvatureError(
        f"LiSSA diverges at `damping`={damping:g}: a batch has negative curvature; raise "
        "`damping`, or use the Gauss-Newton matrix or `solver: cg`"
    )
