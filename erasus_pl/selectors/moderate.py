"""Moderate coreset: the samples neither near the centre of their class nor far from it.

Xia, Liu, Yu, Shen, Han and Liu, "Moderate Coreset: A Universal Method of Data Selection for
Real-world Data-efficient Deep Learning" (ICLR 2023), Sec. 3: a class's centre is the mean of its
features, a sample's score is its Euclidean distance to the centre of its class, and those with
scores closest to the median of all scores are kept.

A task without one class for each sample, such as a language model, has one centre.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["Moderate", "center_distance", "moderateness"]


def center_distance(features: Tensor, classes: Tensor) -> Tensor:
    """Euclidean distance of each sample to the mean of its class, ``(n,)``.

    Args:
        features: ``(n, d)``.
        classes: ``(n,)`` class numbers, of which not all need be present.
    """
    own = classes.unique(return_inverse=True)[1]
    count = torch.bincount(own)
    sums = features.new_zeros(len(count), features.shape[1]).index_add_(0, own, features)
    return (features - (sums / count[:, None])[own]).norm(dim=1)


def moderateness(distance: Tensor) -> Tensor:
    """``-|d_i - median|`` of each sample, ``(n,)``; of two medians the lower one counts.

    Args:
        distance: ``(n,)``.
    """
    return -(distance - distance.median()).abs()


class Moderate(Selector):
    """Keep the samples whose distance to their class's centre is nearest the median distance.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
    """

    requires: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[dict[str, Any]] = {
        "title": (
            "Moderate Coreset: A Universal Method of Data Selection for Real-world "
            "Data-efficient Deep Learning"
        ),
        "year": 2023,
        "url": "https://openreview.net/forum?id=7D5EECbOaf9",
    }

    def __init__(self, fraction: float | None = None, k: int | None = None) -> None:
        super().__init__(fraction, k)

    @torch.no_grad()
    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Nearness of each sample's distance to the median distance, ``(n,)``."""
        features: list[Tensor] = []
        classes: list[Tensor] = []
        for batch in self.batches(strategy, dataset):
            features.append(strategy.task.features(batch).double())
            none = torch.zeros_like(batch["index"])
            target = batch.get("target", none)
            single = target.dim() == 1 and not target.is_floating_point()
            classes.append(target if single else none)
        return moderateness(center_distance(torch.cat(features), torch.cat(classes)))
