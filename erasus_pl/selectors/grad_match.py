"""GradMatch: the weighted samples whose gradient comes nearest to that of all.

Killamsetty, Sivasubramanian, Ramakrishnan, De and Iyer, "GRAD-MATCH: Gradient Matching based Data
Subset Selection for Efficient Deep Model Training" (ICML 2021, arXiv:2103.00123), Alg. 2: by
orthogonal matching pursuit, small ``E(S, w) = ||sum_{i in S} w_i g_i - g||^2 + lambda ||w||^2``
with ``w >= 0``, ``g`` the sum of all gradients. Each step adds the sample whose gradient has the
largest product with what is left, and solves for the weights anew. As in the paper's Sec. 4 the
gradients are those of the last linear layer. They stay in factored form and are never spread out.

The paper picks again every few epochs and, for many classes, class by class; here once, for all.
``lambda`` is in units of the mean squared length of a gradient, so that a model with a small loss
is matched as one with a large loss is.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors._rows import head_gradients
from erasus_pl.selectors.base import Coreset, Selector, refuse_nonfinite
from erasus_pl.strategies.base import Strategy

__all__ = ["GradMatch", "grad_match", "nonnegative_ridge"]

_FLOOR = 1e-6


def nonnegative_ridge(gram: Tensor, target: Tensor, ridge: float) -> Tensor:
    """``argmin_{w >= 0} w^T (gram + ridge I) w - 2 w^T target``, ``(k,)``, exact.

    Args:
        gram: ``(k, k)`` products of the gradients.
        target: ``(k,)`` their products with what is matched.
        ridge: positive; makes the solution unique.
    """
    root = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
    free = torch.cholesky_solve(target[:, None], root)[:, 0]
    if bool((free >= 0).all()):
        return free
    from scipy.optimize import nnls

    goal = torch.linalg.solve_triangular(root, target[:, None], upper=False)[:, 0]
    return torch.from_numpy(nnls(root.T.numpy(), goal.numpy())[0])


def grad_match(
    column: Callable[[int], Tensor], target: Tensor, k: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """Picks ``(k,)`` in the order of orthogonal matching pursuit, and their weights ``(k,)``.

    A pick that matching gives no weight, as happens when no gradient left points the right way,
    gets a millionth of the largest weight; if none has any, all weigh one. Holds ``(k, n)``
    products.

    Args:
        column: position j to the products of all gradients with that of j, ``(n,)``, double.
        target: ``(n,)`` products of all gradients with the one to be matched.
        k: how many to pick, at most n.
        ridge: ``lambda``, positive.
    """
    columns = target.new_empty(k, len(target))
    picked: list[int] = []
    weights = target.new_empty(0)
    for step in range(k):
        left = target - weights @ columns[:step]
        left[picked] = -torch.inf
        picked.append(int(left.argmax()))
        columns[step] = column(picked[-1])
        weights = nonnegative_ridge(columns[: step + 1, picked], target[picked], ridge)
    largest = weights.max()
    weights = weights.clamp(min=_FLOOR * float(largest)) if largest > 0 else torch.ones(k)
    return torch.tensor(picked), weights


class GradMatch(Selector):
    """Keep samples whose gradients, weighted, sum up to the gradient of the forget set.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        ridge: price of large weights, the paper's lambda, in units of the mean squared length of
            a gradient.
    """

    requires: ClassVar[tuple[str, ...]] = ("linear_head",)
    paper: ClassVar[dict[str, Any]] = {
        "title": (
            "GRAD-MATCH: Gradient Matching based Data Subset Selection for Efficient Deep Model "
            "Training"
        ),
        "year": 2021,
        "arxiv": "2103.00123",
    }

    def __init__(
        self, fraction: float | None = None, k: int | None = None, ridge: float = 0.5
    ) -> None:
        super().__init__(fraction, k)
        if not ridge > 0:
            msg = f"`ridge` must be positive, got {ridge}"
            raise ValueError(msg)
        self.ridge = ridge

    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """Orthogonal matching pursuit on the gradients of the last layer."""
        task = strategy.task
        parts = [head_gradients(task, batch) for batch in self.batches(strategy, dataset)]
        shape = torch.Size((parts[0].outputs.shape[-1], parts[0].inputs.shape[-1]))
        starts = torch.tensor([len(part.inputs) for part in parts]).cumsum(0).tolist()

        def products(gradient: Tensor) -> Tensor:
            return torch.cat([part.dots(gradient) for part in parts]).cpu()

        def column(j: int) -> Tensor:
            number = next(i for i, end in enumerate(starts) if j < end)
            part = parts[number]
            own = j - starts[number] + len(part.inputs)
            return products(part.cut(slice(own, own + 1)).dense(shape)[0])

        total = torch.stack(
            [p.weighted(torch.ones_like(p.inputs[:, 0, 0, 0]), shape) for p in parts]
        )
        lengths = torch.cat([part.squared_norms() for part in parts])
        refuse_nonfinite(lengths, dataset, "GradMatch")
        ridge = self.ridge * float(lengths.mean()) or 1.0
        picked, weights = grad_match(column, products(total.sum(0)), k, ridge)
        order = picked.argsort()
        return Coreset(picked[order], weights[order].float())
