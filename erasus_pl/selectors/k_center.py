"""K-center: the samples that leave no other far away.

Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach" (ICLR
2018, arXiv:1708.00489), Alg. 1: add the sample farthest from those already picked, k times. The
largest distance left is at most twice the least possible one (Gonzalez 1985).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors.base import Coreset, Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["KCenter", "k_center"]


def k_center(features: Tensor, k: int, start: int) -> Tensor:
    """``(k,)`` distinct positions in the order picked (arXiv:1708.00489, Alg. 1).

    Args:
        features: ``(n, d)``.
        k: how many to pick, at most n.
        start: position of the first pick.
    """
    picked = torch.empty(k, dtype=torch.long, device=features.device)
    picked[0] = start
    distance = features.new_full((len(features),), torch.inf)
    for i in range(1, k):
        latest = picked[i - 1]
        distance = distance.minimum((features - features[latest]).square().sum(1))
        distance[latest] = -1  # below any distance, so that copies of a sample are still picked
        picked[i] = distance.argmax()
    return picked


class KCenter(Selector):
    """Keep samples that cover the forget set in feature space.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        seed: of the first pick, uniform over the forget set.
    """

    requires: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[dict[str, Any]] = {
        "title": "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
        "year": 2018,
        "arxiv": "1708.00489",
    }

    def __init__(self, fraction: float | None = None, k: int | None = None, seed: int = 0) -> None:
        super().__init__(fraction, k, seed)

    @torch.no_grad()
    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """Farthest first, on the features of the model."""
        batches = self.batches(strategy, dataset)
        features = torch.cat([strategy.task.features(batch).double() for batch in batches])
        generator = torch.Generator().manual_seed(self.seed)
        start = int(torch.randint(len(features), (), generator=generator))
        return Coreset(k_center(features, k, start).sort().values)
