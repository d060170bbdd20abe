"""Rank fusion: one order of the samples from the orders of several selectors.

Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank
Learning Methods" (SIGIR 2009): sample i scores ``sum_m w_m / (60 + rank_m(i))``, all ``w_m`` one in
the paper. Against a Borda count, the sum of ranks, the top of each order counts more and its tail,
where orders are mostly noise, hardly at all, which is what a selection of few samples needs.

Ranks alone are added up, never scores, which have another scale for each member. Samples with one
score share their mean rank.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors._members import SelectorCallable, ask, build, has_scores, needs
from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["RankFusion", "reciprocal_rank_fusion"]


def reciprocal_rank_fusion(ranks: Tensor, weights: Tensor, smoothing: float = 60.0) -> Tensor:
    """``sum_m w_m / (smoothing + rank_m(i))`` of each sample, ``(n,)``.

    The summands of a sample are added in the order of their size, so that the order of the members
    does not matter to the last bit.

    Args:
        ranks: ``(M, n)`` from 1 for the best.
        weights: ``(M,)``, not negative.
        smoothing: the paper's k.
    """
    return (weights[:, None] / (smoothing + ranks)).sort(0).values.sum(0)


class RankFusion(Selector):
    """Keep the samples that come first in an order that several selectors make together.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        selectors: the members, which get the budget of the ensemble: in YAML `class_path` and
            `init_args` without it, in Python a class or a functools.partial of one. Each must
            score samples; those that pick a set have no order. By default GradNorm, EL2N,
            KNNShapley and Moderate.
        weights: of the members, positive; all one by default.
        smoothing: the larger, the less the first ranks stand out; the paper's k, 60.
    """

    paper: ClassVar[dict[str, Any]] = {
        "title": (
            "Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning Methods"
        ),
        "year": 2009,
        "url": "https://doi.org/10.1145/1571941.1572114",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        selectors: list[SelectorCallable] | None = None,
        weights: list[float] | None = None,
        smoothing: float = 60.0,
    ) -> None:
        super().__init__(fraction, k)
        self.members = build(selectors, fraction, k)
        for member in self.members:
            if not has_scores(member):
                msg = (
                    f"`selectors`: {type(member).__name__} picks a set and puts no sample before "
                    "another; leave it out, or use Voting"
                )
                raise TypeError(msg)
        given = [1.0] * len(self.members) if weights is None else weights
        if len(given) != len(self.members) or not all(0 < w < float("inf") for w in given):
            msg = f"`weights` must be {len(self.members)} positive numbers, got {weights}"
            raise ValueError(msg)
        if smoothing < 0:
            msg = f"`smoothing` must not be negative, got {smoothing}"
            raise ValueError(msg)
        self.weights = given
        self.smoothing = smoothing

    @property
    def needs(self) -> frozenset[str]:
        """What the task must provide for all members."""
        return needs(self.members)

    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Fused reciprocal ranks, ``(n,)``."""
        ranks = torch.stack([ask(m, strategy, dataset, 1)[1] for m in self.members])
        weights = torch.tensor(self.weights, dtype=ranks.dtype)
        return reciprocal_rank_fusion(ranks, weights, self.smoothing)
