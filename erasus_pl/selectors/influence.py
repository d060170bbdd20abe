"""Influence functions: what removing a sample would do to a loss.

Koh and Liang, "Understanding Black-box Predictions via Influence Functions" (ICML 2017,
arXiv:1703.04730), Sec. 2. Training without sample z moves the parameters by about
``(1/n) H^-1 grad loss(z)`` and hence the mean loss L of a target set by about
``(1/n) grad L^T H^-1 grad loss(z)``, which is ``-1/n`` times their ``I_up,loss`` (eq. 2). The score
is that without the ``1/n``. *Sign:* positive where removing z raises the target's loss, so the
samples that hold up the model's grip on the target come first.

``H`` is the damped Hessian of the mean training loss (Sec. 4.2) or, by default, its Gauss-Newton
matrix, which is positive semi-definite wherever training stopped. One inverse product by conjugate
gradients serves all samples; the products with their gradients are batched (``linalg``).
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from erasus_pl.linalg import (
    PerSampleGradients,
    conjugate_gradient,
    gauss_newton_vector_product,
    hessian_vector_product,
    mean_gradient,
)
from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["Influence", "removal_influence"]

_TARGETS = ("forget", "retain", "test", "holdout")


def removal_influence(
    module: nn.Module,
    forward_fn: Callable[[Any], Tensor],
    loss_fn: Callable[[Tensor, Any], Tensor],
    samples: Iterable[Any],
    target: Iterable[Any],
    training: list[Any],
    curvature: Literal["gauss_newton", "hessian"] = "gauss_newton",
    damping: float = 0.01,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
) -> Tensor:
    """``grad L_target^T (H + damping I)^-1 grad loss(z)`` of each sample z, ``(n,)``.

    Args:
        module: owns the parameters; only those with ``requires_grad`` count.
        forward_fn: ``batch -> outputs``, computed with ``module``.
        loss_fn: ``(outputs, batch) -> (B,)``, one loss for each sample.
        samples: batches of the samples to score, n in all.
        target: batches whose mean loss is followed.
        training: batches whose mean loss gives the curvature; read once per iteration.
        curvature: which matrix ``H`` is.
        damping: added to its diagonal.
        tolerance: of the linear system's residual, relative to the right-hand side.
        max_iterations: products with ``H`` at most.

    Raises:
        CurvatureError: when the damped Hessian is not positive definite.
        FloatingPointError: when a loss is not finite.

    Warns:
        UserWarning: when ``max_iterations`` did not reach ``tolerance``.
    """

    def losses(batch: Any) -> Tensor:
        return loss_fn(forward_fn(batch), batch)

    def product(vector: Tensor) -> Tensor:
        if curvature == "hessian":
            return hessian_vector_product(module, losses, training, vector)
        return gauss_newton_vector_product(module, forward_fn, loss_fn, training, vector)

    solution = conjugate_gradient(
        product, mean_gradient(module, losses, target), damping, tolerance, max_iterations
    )
    if not solution.converged:
        warnings.warn(
            f"influence: the linear system is solved to {solution.residual:.1e} of {tolerance:.1e} "
            f"after {solution.iterations} iterations; raise `max_iterations` or `damping`",
            stacklevel=2,
        )
    gradients = PerSampleGradients(module, losses)
    return torch.cat([gradients.dots(batch, solution.x) for batch in samples])


class Influence(Selector):
    """Keep the samples whose removal would raise the loss of a target set most.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        target: set whose mean loss is followed: forget, retain, test or holdout.
        curvature: `gauss_newton`, or `hessian`, which near a minimum only is positive definite.
        damping: added to the diagonal of the curvature.
        samples: training samples that the curvature is averaged over, drawn uniformly; all of
            them where there are fewer.
        tolerance: of the linear system's residual, relative to the right-hand side.
        max_iterations: products with the curvature at most.
        seed: of the draw of training samples.
    """

    paper: ClassVar[dict[str, Any]] = {
        "title": "Understanding Black-box Predictions via Influence Functions",
        "year": 2017,
        "arxiv": "1703.04730",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        target: Literal["forget", "retain", "test", "holdout"] = "forget",
        curvature: Literal["gauss_newton", "hessian"] = "gauss_newton",
        damping: float = 0.01,
        samples: int = 1000,
        tolerance: float = 1e-3,
        max_iterations: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, k, seed)
        if target not in _TARGETS:
            msg = f"`target` must be one of {_TARGETS}, got {target!r}"
            raise ValueError(msg)
        if curvature not in ("gauss_newton", "hessian"):
            msg = f"`curvature` must be 'gauss_newton' or 'hessian', got {curvature!r}"
            raise ValueError(msg)
        if damping < 0:
            msg = f"`damping` must not be negative, got {damping}"
            raise ValueError(msg)
        for name, value in (("samples", samples), ("max_iterations", max_iterations)):
            if value < 1:
                msg = f"`{name}` must be at least 1, got {value}"
                raise ValueError(msg)
        if not tolerance > 0:
            msg = f"`tolerance` must be positive, got {tolerance}"
            raise ValueError(msg)
        self.target = target
        self.curvature = curvature
        self.damping = damping
        self.samples = samples
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Influence of removing each sample on the target's loss, ``(n,)``."""
        data = strategy.trainer.datamodule  # type: ignore[attr-defined]
        whole = data.train_set
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(len(whole), generator=generator)[: self.samples].sort().values
        target = dataset if self.target == "forget" else getattr(data, f"{self.target}_set")
        return removal_influence(
            strategy.task,
            strategy.task,
            strategy.task.per_sample_loss,
            self.batches(strategy, dataset),
            self.batches(strategy, target),
            list(self.batches(strategy, Subset(whole, drawn.tolist()))),
            self.curvature,
            self.damping,
            self.tolerance,
            self.max_iterations,
        )
