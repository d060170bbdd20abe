"""Feature-based functions: the samples that between them have much of every feature.

Wei, Iyer and Bilmes, "Submodularity in Data Subset Selection and Active Learning" (ICML 2015), and
Kirchhoff and Bilmes, "Submodularity for Data Selection in Machine Translation" (EMNLP 2014):
a sum of concave functions of modular ones,

    F(S) = sum_u g(sum_{j in S} x_ju),    x >= 0,    g concave, g(0) = 0,

is monotone and submodular: a feature that is there already is worth less when it comes again. It
needs no similarities, so a gain costs ``O(d)``. ``g`` is the square root, ``log(1 + .)``, or
``min(., alpha total_u)``, the saturation of Lin and Bilmes, "A Class of Submodular Functions for
Document Summarization" (ACL 2011), by which a feature counts until it is covered to that part.

A feature of a network may be negative; its positive and its negative part count as two features.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.linalg.greedy import lazy_greedy
from erasus_pl.selectors._rows import all_features
from erasus_pl.selectors.base import Coreset, Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["FeatureBased", "concave", "feature_based"]

_CONCAVE = ("sqrt", "log", "saturated")
_BUDGET = 2**22


def concave(mass: Tensor, kind: str, limit: Tensor) -> Tensor:
    """``g`` of the mass of each feature, of the same shape.

    Args:
        mass: ``(…, d)``, at least 0.
        kind: sqrt, log or saturated.
        limit: ``(d,)`` where the last is saturated.
    """
    if kind == "sqrt":
        return mass.clamp(min=0).sqrt()
    return mass.log1p() if kind == "log" else mass.minimum(limit)


def feature_based(features: Tensor, k: int, kind: str, saturation: float = 0.1) -> Tensor:
    """``(k,)`` distinct positions in the order of the greedy rule.

    Args:
        features: ``(n, d)``, at least 0.
        k: how many to pick, at most n.
        kind: of the concave function: sqrt, log or saturated.
        saturation: ``alpha`` of the last, in (0, 1].
    """
    limit = saturation * features.sum(0)
    mass = torch.zeros_like(limit)

    def gains(columns: Tensor) -> Tensor:
        more = mass + features[columns.to(features.device)]
        return (concave(more, kind, limit) - concave(mass, kind, limit)).sum(1)

    def add(j: int) -> None:
        mass.add_(features[j])

    block = max(1, _BUDGET // max(1, features.shape[1]))
    alone = torch.cat([gains(j) for j in torch.arange(len(features)).split(block)])
    centrality = features @ features.sum(0)
    return lazy_greedy(gains, add, alone, centrality, k, block)


class FeatureBased(Selector):
    """Keep samples that between them have much of every feature of the forget set.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        function: the concave function: sqrt, log or saturated.
        saturation: part of a feature's total that counts, for `saturated`, in (0, 1].
    """

    requires: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[dict[str, Any]] = {
        "title": "Submodularity in Data Subset Selection and Active Learning",
        "year": 2015,
        "url": "https://proceedings.mlr.press/v37/wei15.html",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        function: Literal["sqrt", "log", "saturated"] = "sqrt",
        saturation: float = 0.1,
    ) -> None:
        super().__init__(fraction, k)
        if function not in _CONCAVE:
            msg = f"`function` must be one of {_CONCAVE}, got {function!r}"
            raise ValueError(msg)
        if not 0 < saturation <= 1 or math.isnan(saturation):
            msg = f"`saturation` must be in (0, 1], got {saturation}"
            raise ValueError(msg)
        self.function = function
        self.saturation = saturation

    @torch.no_grad()
    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """Lazy greedy, on the features of the model."""
        features = all_features(self, strategy, dataset)
        parts = torch.cat([features.clamp(min=0), (-features).clamp(min=0)], 1)
        return Coreset(feature_based(parts, k, self.function, self.saturation).sort().values)
