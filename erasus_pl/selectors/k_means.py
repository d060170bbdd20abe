"""k-means: one sample from the middle of each cluster.

Lloyd, "Least Squares Quantization in PCM" (IEEE Trans. Inf. Theory 1982), started by k-means++
(Arthur and Vassilvitskii, SODA 2007) as in scikit-learn. Of each cluster the medoid is kept, its
member with the least sum of squared distances to the others; that is the member nearest the
centre, as ``sum_i ||x_i - m||^2 = sum_i ||x_i - mu||^2 + n ||mu - m||^2``.
"""

import warnings
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors._rows import all_features
from erasus_pl.selectors.base import Coreset, Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["KMeans", "medoids"]

_TIE = 1e-6


def medoids(features: Tensor, k: int, seed: int = 0, restarts: int = 10) -> Tensor:
    """``(k,)`` distinct positions, the medoid of each of k clusters, ascending.

    Where fewer than k samples differ, copies fill up, the first ones first.

    Args:
        features: ``(n, d)``.
        k: how many clusters, at most n.
        seed: of the starts.
        restarts: runs of k-means, of which the one with the least inertia counts.
    """
    from sklearn.cluster import KMeans as Clusters
    from sklearn.exceptions import ConvergenceWarning

    points = features.cpu().double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct samples than k
        found = Clusters(k, n_init=restarts, random_state=seed).fit(points)
    distance = np.square(points - found.cluster_centers_[found.labels_]).sum(1)
    picked = np.zeros(len(points), dtype=bool)
    for cluster in np.unique(found.labels_):
        members = np.flatnonzero(found.labels_ == cluster)
        own = distance[members]
        # Of two members each is as near the centre; rounding shall not choose between them.
        picked[members[own <= own.min() + _TIE * own.max()][0]] = True
    picked[np.flatnonzero(~picked)[: k - picked.sum()]] = True
    return torch.from_numpy(np.flatnonzero(picked))


class KMeans(Selector):
    """Keep the medoid of each of k clusters of the features.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        restarts: runs of k-means, of which the one with the least inertia counts.
        seed: of the starts.
    """

    requires: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[dict[str, Any]] = {
        "title": "Least Squares Quantization in PCM",
        "year": 1982,
        "doi": "10.1109/TIT.1982.1056489",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        restarts: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, k, seed)
        if restarts < 1:
            msg = f"`restarts` must be at least 1, got {restarts}"
            raise ValueError(msg)
        self.restarts = restarts

    @torch.no_grad()
    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """Clusters of the model's features."""
        features = all_features(self, strategy, dataset)
        return Coreset(medoids(features, k, self.seed, self.restarts))
