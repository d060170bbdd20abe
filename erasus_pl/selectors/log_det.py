"""Log-determinant: the samples that differ most from each other, by a determinantal process.

Chen, Zhang and Zhou, "Fast Greedy MAP Inference for Determinantal Point Process to Improve
Recommendation Diversity" (NeurIPS 2018, arXiv:1709.05135), Alg. 1: a determinantal point process
gives a set S the chance ``~ det(L_S)``, and the greedy rule adds the sample of the largest
``log det(L_{S + j}) - log det(L_S) = log d_j^2``. With a Cholesky factor of ``L_S`` kept, a pick p
brings all of them up to date in ``O(n |S|)``:

    e_j = (L_pj - <c_p, c_j>) / d_p,    c_j <- [c_j, e_j],    d_j^2 <- d_j^2 - e_j^2.

Here ``L = I + K / ridge``, with K the cosine of the features. Then every gain is positive and F is
monotone as well as submodular, so that the greedy rule reaches ``1 - 1/e`` of the best value or
more, which that of the paper, with ``L = K``, does not; for a small ridge the picks are the same
as long as the features' dimensions last.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.linalg.greedy import lazy_greedy
from erasus_pl.selectors._rows import all_features
from erasus_pl.selectors.base import Coreset, Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["LogDet", "log_det"]


def log_det(
    column: Callable[[int], Tensor], diagonal: Tensor, centrality: Tensor, k: int
) -> Tensor:
    """``(k,)`` distinct positions in the order of the greedy rule (Alg. 1).

    Args:
        column: position to its column of ``L``, ``(n,)``.
        diagonal: ``(n,)`` that of ``L``, whose eigenvalues are at least 1.
        centrality: ``(n,)`` what decides between equal gains, the higher first.
        k: how many to pick, at most n.
    """
    left = diagonal.clone()
    factor = diagonal.new_zeros(k, len(diagonal))
    count = 0

    def add(j: int) -> None:
        nonlocal count
        row = (column(j) - factor[:count, j] @ factor[:count]) / left[j].sqrt()
        factor[count] = row
        left.sub_(row.square()).clamp_(min=1)
        count += 1

    def gains(columns: Tensor) -> Tensor:
        return left[columns.to(left.device)].log()

    return lazy_greedy(gains, add, diagonal.log(), centrality, k, len(diagonal))


class LogDet(Selector):
    """Keep samples that differ from each other, by the determinant of their likeness.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        ridge: positive; the less, the more it counts that samples differ in every direction.
    """

    requires: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[dict[str, Any]] = {
        "title": (
            "Fast Greedy MAP Inference for Determinantal Point Process to Improve "
            "Recommendation Diversity"
        ),
        "year": 2018,
        "arxiv": "1709.05135",
    }

    def __init__(
        self, fraction: float | None = None, k: int | None = None, ridge: float = 0.01
    ) -> None:
        super().__init__(fraction, k)
        if not 0 < ridge < math.inf:
            msg = f"`ridge` must be positive, got {ridge}"
            raise ValueError(msg)
        self.ridge = ridge

    @torch.no_grad()
    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """Greedy, on the features of the model."""
        rows = F.normalize(all_features(self, strategy, dataset), dim=1)

        def column(j: int) -> Tensor:
            found = rows @ rows[j] / self.ridge
            found[j] += 1
            return found

        diagonal = 1 + rows.square().sum(1) / self.ridge
        picked = log_det(column, diagonal, rows @ rows.sum(0), k)
        return Coreset(picked.sort().values)
