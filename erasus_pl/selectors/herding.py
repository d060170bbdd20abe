"""Herding: the samples whose mean follows the mean of all.

Welling, "Herding Dynamical Weights to Learn" (ICML 2009), as used for exemplars by Rebuffi et al.,
"iCaRL: Incremental Classifier and Representation Learning" (CVPR 2017, arXiv:1611.07725), Alg. 4:
``p_k = argmin_x || mu - (1/k) (phi(x) + sum_{j<k} phi(p_j)) ||`` over the samples not yet picked,
with features ``phi`` and, as there, features and mean scaled to unit length.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors.base import Coreset, Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["Herding", "herding"]


def herding(features: Tensor, k: int, mean: Tensor | None = None) -> Tensor:
    """``(k,)`` distinct positions in the order picked (arXiv:1611.07725, Alg. 4).

    Args:
        features: ``(n, d)``.
        k: how many to pick, at most n.
        mean: ``(d,)`` what to follow; the mean of the features if not given.
    """
    mean = features.mean(0) if mean is None else mean
    lengths = features.square().sum(1)
    left = torch.zeros_like(mean)
    picked = torch.empty(k, dtype=torch.long, device=features.device)
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    for i in range(k):
        left += mean
        # || left - phi ||^2 without the term that is the same for all
        distance = (lengths - 2 * features @ left).masked_fill(taken, torch.inf)
        picked[i] = distance.argmin()
        taken[picked[i]] = True
        left -= features[picked[i]]
    return picked


class Herding(Selector):
    """Keep the samples whose mean feature follows that of the forget set.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        normalize: scale features and their mean to unit length first, as iCaRL does.
    """

    requires: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[dict[str, Any]] = {
        "title": "Herding Dynamical Weights to Learn",
        "year": 2009,
        "doi": "10.1145/1553374.1553517",
    }

    def __init__(
        self, fraction: float | None = None, k: int | None = None, normalize: bool = True
    ) -> None:
        super().__init__(fraction, k)
        self.normalize = normalize

    @torch.no_grad()
    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """Greedy, on the features of the model."""
        batches = self.batches(strategy, dataset)
        features = torch.cat([strategy.task.features(batch).double() for batch in batches])
        if self.normalize:
            features = F.normalize(features, dim=1)
        mean = features.mean(0)
        if self.normalize:
            mean = F.normalize(mean, dim=0)
        return Coreset(herding(features, k, mean).sort().values)
