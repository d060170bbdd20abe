"""Shapley values of samples for a nearest-neighbour classifier, exactly.

Jia, Dao, Wang, Hubis, Gurel, Li, Zhang, Spanos and Song, "Efficient Task-Specific Data Valuation
for Nearest Neighbor Algorithms" (VLDB 2019, arXiv:1908.08619), Theorem 1: for one point to be
predicted, with the N samples sorted by their distance to it and ``u_i`` saying whether sample i
has its label,

    s_N = u_N min(K, N) / (K N),    s_i = s_{i+1} + (u_i - u_{i+1}) / K * min(K, i) / i,

is each sample's Shapley value in the game whose worth is the chance that the K nearest samples of
a coalition give to the right label; that of many points is the mean.

The players are the samples of the forget set, at the features of the model. For a sequence they
are its labelled tokens, as in kNN-LM (Khandelwal et al. 2020, arXiv:1911.00172): keys are the
features before the last layer, labels the next tokens, and a sequence is worth the sum of its own.
"""

from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from erasus_pl.selectors._rows import label_rows, refuse_nonfinite, sample_means
from erasus_pl.selectors.base import Selector
from erasus_pl.selectors.random import sample
from erasus_pl.strategies.base import Strategy

__all__ = ["KNNShapley", "knn_shapley"]

_TARGETS = ("retain", "test", "holdout", "forget")
_BUDGET = 2**22
_DECIMALS = 11


def knn_shapley(
    features: Tensor, labels: Tensor, queries: Tensor, answers: Tensor, neighbors: int
) -> Tensor:
    """Shapley value of each sample, ``(n,)``; they sum to the worth of all (Theorem 1).

    Of samples at one distance those with another label than the query come first, so the order of
    the samples does not decide.

    Args:
        features: ``(n, d)`` of the samples.
        labels: ``(n,)`` theirs.
        queries: ``(m, d)`` what is predicted.
        answers: ``(m,)`` their labels.
        neighbors: ``K``, at least 1.
    """
    n = len(features)
    rank = torch.arange(1, n + 1, dtype=torch.float64, device=features.device)
    share = rank.clamp(max=neighbors) / (rank * neighbors)
    unit = torch.finfo(features.dtype).eps ** 0.75
    scale = unit * float((features - features.mean(0)).norm(dim=1).max()) or 1.0
    values = torch.zeros(n, dtype=torch.float64, device=features.device)
    step = max(1, _BUDGET // n)
    for start in range(0, len(queries), step):
        query, answer = queries[start : start + step], answers[start : start + step]
        exact = "donot_use_mm_for_euclid_dist"
        distance = (torch.cdist(query, features, compute_mode=exact) / scale).round()
        right = (labels == answer[:, None]).double()
        by_label = right.argsort(dim=1, stable=True)
        order = by_label.gather(1, distance.gather(1, by_label).argsort(dim=1, stable=True))
        hits = right.gather(1, order)
        steps = hits * share
        steps[:, :-1] -= hits[:, 1:] * share[:-1]
        worth = steps.flip(1).cumsum(1).flip(1)
        values.index_add_(0, order.flatten(), worth.flatten())
    return values / len(queries)


class KNNShapley(Selector):
    """Keep the samples that a nearest-neighbour classifier owes most to.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        target: set whose prediction is the worth: retain, test, holdout or forget.
        neighbors: of the classifier, the paper's K.
        samples: of the target set, drawn uniformly; all of them where there are fewer.
        seed: of that draw.
    """

    requires: ClassVar[tuple[str, ...]] = ("targets", "features")
    paper: ClassVar[dict[str, Any]] = {
        "title": "Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms",
        "year": 2019,
        "arxiv": "1908.08619",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        target: Literal["retain", "test", "holdout", "forget"] = "retain",
        neighbors: int = 5,
        samples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, k, seed)
        if target not in _TARGETS:
            msg = f"`target` must be one of {_TARGETS}, got {target!r}"
            raise ValueError(msg)
        for name, value in (("neighbors", neighbors), ("samples", samples)):
            if value < 1:
                msg = f"`{name}` must be at least 1, got {value}"
                raise ValueError(msg)
        self.target = target
        self.neighbors = neighbors
        self.samples = samples

    @torch.no_grad()
    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Shapley value of each sample, ``(n,)``.

        Where classes lie far apart, all samples of one have the same value. Of such the nearest
        the target's mean comes first, by a part of less than 1e-11 in the scores.
        """
        data = strategy.trainer.datamodule  # type: ignore[attr-defined]
        whole = dataset if self.target == "forget" else getattr(data, f"{self.target}_set")
        size = len(cast(Any, whole))
        drawn = sample(size, min(self.samples, size), self.seed)
        features, labels, owner = label_rows(self, strategy, dataset)
        queries, answers, _ = label_rows(self, strategy, Subset(whole, drawn.tolist()))
        refuse_nonfinite(features, "KNNShapley")
        values = knn_shapley(features, labels, queries, answers, self.neighbors)
        count = len(cast(Any, dataset))
        worth = values.new_zeros(count).index_add_(0, owner, values)
        away = (features - queries.mean(0)).norm(dim=1).double()
        away = sample_means(away / away.max().clamp(min=1e-300), owner, count)
        return worth.round(decimals=_DECIMALS) - 10.0 ** (-_DECIMALS - 1) * away
