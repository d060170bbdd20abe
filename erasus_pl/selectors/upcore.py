"""UPCORE: leave the outliers of the forget set out of what is unlearned.

Patil, Stengel-Eskin and Bansal, "UPCORE: Utility-Preserving Coreset Selection for Balanced
Unlearning" (2025, arXiv:2502.15082): unlearning harms the rest of the model the more, the more the
hidden states of the forget set vary, and the points that make them vary are forgotten along with
the others. So an isolation forest (Liu, Ting and Zhou 2008) is grown on the hidden states, and the
points that few splits isolate are pruned.

The hidden states are the inputs of the last layer; the paper takes those of a sequence's last
token, here they are averaged over its labelled tokens.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors._rows import all_features
from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["UPCORE", "normality"]


def normality(features: Tensor, trees: int = 100, seed: int = 0) -> Tensor:
    """``-2^(-E[h(x)] / c)`` of each sample, ``(n,)`` in [-1, 0]; low for outliers.

    ``h`` is the number of splits that isolate the sample in a tree, and ``c`` what it is on
    average for as many samples as the tree is grown on.

    Args:
        features: ``(n, d)``.
        trees: of the isolation forest, each grown on up to 256 samples.
        seed: of the samples and splits of the trees.
    """
    from sklearn.ensemble import IsolationForest

    points = features.cpu().numpy()
    forest = IsolationForest(n_estimators=trees, random_state=seed).fit(points)
    return torch.from_numpy(forest.score_samples(points))


class UPCORE(Selector):
    """Keep the core of the forget set and prune its outliers.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        trees: of the isolation forest, each grown on up to 256 samples.
        seed: of the samples and splits of the trees.
    """

    requires: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[dict[str, Any]] = {
        "title": "UPCORE: Utility-Preserving Coreset Selection for Balanced Unlearning",
        "year": 2025,
        "arxiv": "2502.15082",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        trees: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, k, seed)
        if trees < 1:
            msg = f"`trees` must be at least 1, got {trees}"
            raise ValueError(msg)
        self.trees = trees

    @torch.no_grad()
    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """How hard each sample is to isolate, ``(n,)``."""
        return normality(all_features(self, strategy, dataset), self.trees, self.seed)
