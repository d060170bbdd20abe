"""Influence functions: what removing a sample would do to a loss.

Koh and Liang, "Understanding Black-box Predictions via Influence Functions" (ICML 2017,
arXiv:1703.04730), Sec. 2. Training without sample z moves the parameters by about
``(1/n) H^-1 grad loss(z)`` and hence the mean loss L of a target set by about
``(1/n) grad L^T H^-1 grad loss(z)``, which is ``-1/n`` times their ``I_up,loss`` (eq. 2). The score
is that without the ``1/n``. *Sign:* positive where removing z raises the target's loss, so the
samples that hold up the model's grip on the target come first.

``H`` is the damped Hessian of the mean training loss (Sec. 4.2) or, by default, its Gauss-Newton
matrix, which is positive semi-definite wherever training stopped. One inverse product serves all
samples; the products with their gradients are batched. The inverse product is one of ``linalg``:

* ``exact``: the whole matrix, for small models;
* ``cg``: conjugate gradients, to a tolerance;
* ``lissa``: a Neumann series over random batches (arXiv:1602.03943);
* ``arnoldi``: the eigenvalues of largest size alone (arXiv:2112.03052);
* ``ekfac``: Kronecker factors of each linear and convolutional layer, the others left out
  (arXiv:2308.03296), of the Fisher information of labels drawn from the model, which is the
  Gauss-Newton matrix of cross-entropy, or of the data's labels (the empirical one);
* ``datainf``: the empirical Fisher information, with mean and inverse swapped (arXiv:2310.00902).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from erasus_pl.linalg import (
    PerSampleGradients,
    Solution,
    arnoldi,
    conjugate_gradient,
    datainf_solve,
    dense_solve,
    ekfac_blocks,
    ekfac_solve,
    flatten,
    gauss_newton_vector_product,
    hessian_vector_product,
    lissa,
    low_rank_solve,
    mean_gradient,
    unflatten,
)
from erasus_pl.selectors._rows import naming_samples, refuse_nonfinite, sampled_loss
from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["Influence", "removal_influence"]

Solver = Literal["exact", "cg", "lissa", "arnoldi", "ekfac", "datainf"]
_TARGETS = ("forget", "retain", "test", "holdout")
# What belongs to some solvers only, and its value there by default.
_OWN: dict[str, dict[str, Any]] = {
    "tolerance": {"cg": 1e-3, "lissa": 0.1},
    "max_iterations": {"cg": 100, "lissa": 5000, "arnoldi": 200},
    "part": {"lissa": 100}, "rank": {"arnoldi": None}, "fisher": {"ekfac": "sampled"},
}  # fmt: skip


def removal_influence(
    module: nn.Module,
    forward_fn: Callable[[Any], Tensor],
    loss_fn: Callable[[Tensor, Any], Tensor],
    samples: Iterable[Any],
    target: Iterable[Any],
    training: list[Any],
    curvature: Literal["gauss_newton", "hessian"] = "gauss_newton",
    damping: float = 0.01,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    solver: Solver = "cg",
    rank: int | None = None,
    fisher_loss: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> Tensor:
    """``grad L_target^T (H + damping I)^-1 grad loss(z)`` of each sample z, ``(n,)``.

    Args:
        module: owns the parameters; only those with ``requires_grad`` count.
        forward_fn: ``batch -> outputs``, computed with ``module``.
        loss_fn: ``(outputs, batch) -> (B,)``, one loss for each sample.
        samples: batches of the samples to score, n in all.
        target: batches whose mean loss is followed.
        training: batches whose mean loss gives the curvature; read once per iteration, by
            ``lissa`` one at a time, so let them be of one size.
        curvature: which matrix ``H`` is; ``ekfac`` and ``datainf`` have one of their own.
        damping: added to its diagonal.
        tolerance: of the linear system's residual, relative to the right-hand side; 1e-3 for
            ``cg``, 0.1 for ``lissa``.
        max_iterations: products with ``H`` at most; 100 for ``cg``, 5000 for ``lissa``, 200 for
            ``arnoldi``.
        solver: of the linear system.
        rank: eigenvalues that ``arnoldi`` keeps; as many as it has iterations by default.
        fisher_loss: ``batch -> (B,)``, whose gradients' second moment is the curvature of
            ``ekfac``; the loss itself by default.
        seed: of what ``lissa`` and ``arnoldi`` draw.

    Raises:
        CurvatureError: when the damped matrix is not positive definite.
        FloatingPointError: when a loss is not finite.
        ValueError: when the model is too large for ``exact``, or has no layer for ``ekfac``.

    Warns:
        UserWarning: when ``max_iterations`` did not reach ``tolerance``.
    """

    def losses(batch: Any) -> Tensor:
        return loss_fn(forward_fn(batch), batch)

    def product(vector: Tensor, batches: list[Any] = training) -> Tensor:
        if curvature == "hessian":
            return hessian_vector_product(module, losses, batches, vector)
        return gauss_newton_vector_product(module, forward_fn, loss_fn, batches, vector)

    gradients = PerSampleGradients(module, losses)
    slope = mean_gradient(module, losses, target)
    if not slope.isfinite().all():
        msg = "the loss on the target set is not finite; look for NaN in its inputs"
        raise FloatingPointError(msg)
    tolerance = _own("tolerance", tolerance, solver)
    iterations = _own("max_iterations", max_iterations, solver)
    if solver == "exact":
        x = dense_solve(product, slope, damping)
    elif solver == "cg":
        x = _told(conjugate_gradient(product, slope, damping, tolerance, iterations), tolerance)
    elif solver == "lissa":
        parts = [lambda v, b=batch: product(v, _listed(b)) for batch in training]
        x = _told(lissa(parts, slope, damping, tolerance, iterations, seed), tolerance)
    elif solver == "arnoldi":
        x = low_rank_solve(*arnoldi(product, slope, iterations, rank, seed), slope, damping)
    else:
        along = unflatten(slope, gradients.parameters)
        if solver == "ekfac":
            of = PerSampleGradients(module, fisher_loss or losses)
            blocks = ekfac_blocks(module, lambda: _all_parts(of, training))
            x = flatten(ekfac_solve(blocks, along, damping))
        else:
            x = flatten(datainf_solve(_all_parts(gradients, training), along, damping))
    return torch.cat([gradients.dots(batch, x) for batch in samples])


def _own(name: str, given: Any, solver: str) -> Any:
    return _OWN[name].get(solver) if given is None else given


def _listed(batch: Any) -> list[Any]:
    return batch if isinstance(batch, list) else [batch]


def _all_parts(gradients: PerSampleGradients, batches: list[Any]) -> Iterator[Any]:
    for batch in batches:
        yield from gradients.parts(batch)


def _told(solution: Solution, tolerance: float) -> Tensor:
    if not solution.converged:
        warnings.warn(
            f"influence: the linear system is solved to {solution.residual:.1e} of {tolerance:.1e} "
            f"after {solution.iterations} iterations; raise `max_iterations` or `damping`",
            stacklevel=3,
        )
    return solution.x


class Influence(Selector):
    """Keep the samples whose removal would raise the loss of a target set most.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        target: set whose mean loss is followed: forget, retain, test or holdout.
        solver: of the linear system: exact, cg, lissa, arnoldi, ekfac or datainf.
        curvature: `gauss_newton`, or `hessian`, which near a minimum only is positive definite and
            which `ekfac` and `datainf` cannot take.
        damping: added to the diagonal of the curvature; above 0 for lissa, ekfac and datainf.
        samples: training samples that the curvature is averaged over, drawn uniformly; all of
            them where there are fewer.
        tolerance: of cg (1e-3) and lissa (0.1): the linear system's residual, relative to the
            right-hand side, beyond which a warning is given.
        max_iterations: of cg (100), lissa (5000) and arnoldi (200): products with the curvature.
        part: of lissa: training samples in a product, 100 by default.
        rank: of arnoldi: eigenvalues to keep, all that it finds by default.
        fisher: of ekfac: `sampled` labels of the model, the default, or `empirical` ones.
        seed: of the draw of training samples, and of what a solver draws.
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
        solver: Literal["exact", "cg", "lissa", "arnoldi", "ekfac", "datainf"] = "cg",
        curvature: Literal["gauss_newton", "hessian"] = "gauss_newton",
        damping: float = 0.01,
        samples: int = 1000,
        tolerance: float | None = None,
        max_iterations: int | None = None,
        part: int | None = None,
        rank: int | None = None,
        fisher: Literal["sampled", "empirical"] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, k, seed)
        for name, value, accepted in (
            ("target", target, _TARGETS),
            ("solver", solver, get_args(Solver)),
            ("curvature", curvature, ("gauss_newton", "hessian")),
            ("fisher", fisher, (None, "sampled", "empirical")),
        ):
            if value not in accepted:
                msg = f"`{name}` must be one of {accepted}, got {value!r}"
                raise ValueError(msg)
        for name, given in (
            ("tolerance", tolerance),
            ("max_iterations", max_iterations),
            ("part", part),
            ("rank", rank),
            ("fisher", fisher),
        ):
            if given is not None and solver not in _OWN[name]:
                msg = (
                    f"`{name}` belongs to solver {' or '.join(_OWN[name])}, got solver {solver!r} "
                    f"with {name}={given}: leave it out"
                )
                raise ValueError(msg)
        if curvature == "hessian" and solver in ("ekfac", "datainf"):
            msg = (
                f"`curvature` must be 'gauss_newton' for solver {solver!r}, whose matrix is a "
                "Fisher information, got 'hessian': use solver 'cg'"
            )
            raise ValueError(msg)
        strictly = solver in ("lissa", "ekfac", "datainf")
        if not (damping > 0 if strictly else damping >= 0):
            least = "above 0" if strictly else "at least 0"
            msg = f"`damping` must be {least} for solver {solver!r}, got {damping}"
            raise ValueError(msg)
        counts = {"samples": samples, "max_iterations": max_iterations, "part": part, "rank": rank}
        for name, count in counts.items():
            if count is not None and count < 1:
                msg = f"`{name}` must be at least 1, got {count}"
                raise ValueError(msg)
        if tolerance is not None and not tolerance > 0:
            msg = f"`tolerance` must be positive, got {tolerance}"
            raise ValueError(msg)
        self.target, self.solver, self.curvature = target, solver, curvature
        self.damping, self.samples, self.rank = damping, samples, rank
        self.tolerance = _own("tolerance", tolerance, solver)
        self.max_iterations = _own("max_iterations", max_iterations, solver)
        self.part = _own("part", part, solver)
        self.fisher = _own("fisher", fisher, solver)

    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Influence of removing each sample on the target's loss, ``(n,)``."""
        task, data = strategy.task, strategy.trainer.datamodule  # type: ignore[attr-defined]
        if self.fisher == "sampled" and "log_likelihood" not in task.capabilities:
            msg = (
                f"Influence: {type(task).__name__} has no softmax to draw labels from, as `fisher: "
                "sampled` of solver ekfac does; use `fisher: empirical`"
            )
            raise TypeError(msg)
        whole = data.train_set
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(self.seed))
        # The parts that lissa draws do not depend on how a loader cuts its batches.
        number = -(-min(self.samples, len(whole)) // self.part) if self.part else 1
        pieces = [piece.sort().values for piece in order[: self.samples].tensor_split(number)]
        training = [list(self.batches(strategy, Subset(whole, p.tolist()))) for p in pieces]
        target = dataset if self.target == "forget" else getattr(data, f"{self.target}_set")
        sampled = partial(sampled_loss, task, seed=self.seed) if self.fisher == "sampled" else None
        with naming_samples(self, strategy, dataset):
            found = removal_influence(
                task,
                task,
                task.per_sample_loss,
                self.batches(strategy, dataset),
                self.batches(strategy, target),
                training if self.part else training[0],
                self.curvature,
                self.damping,
                self.tolerance,
                self.max_iterations,
                self.solver,
                self.rank,
                sampled,
                self.seed,
            )
        refuse_nonfinite(found, "Influence")
        return found
