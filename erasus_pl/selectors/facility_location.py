"""Facility location: the samples that every sample has a likeness among.

Nemhauser, Wolsey and Fisher, "An Analysis of Approximations for Maximizing Submodular Set
Functions" (Math. Programming 1978): ``F(S) = sum_i max_{j in S} s_ij`` is monotone and submodular
where ``s >= 0``, and adding the sample of largest gain k times reaches ``1 - 1/e`` of the best
value or more.
"""

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

__all__ = ["FacilityLocation", "facility_location"]

_BUDGET = 2**22


def facility_location(similarity: Callable[[Tensor], Tensor], n: int, k: int) -> Tensor:
    """``(k,)`` distinct positions in the order of the greedy rule (`linalg.greedy`).

    Two samples that are near each other alone gain the same, so ties are common; of equal gains
    that of the sample more alike to all goes first.
    Holds at most ``max(n, 2**22)`` similarities at a time.

    Args:
        similarity: positions ``(m,)`` to the similarity of all samples to each, ``(n, m)``, not
            negative.
        n: how many samples there are.
        k: how many to pick, at most n.
    """
    step = max(1, _BUDGET // n)
    covered = torch.zeros_like(similarity(torch.arange(1)))
    alone = covered[:, 0].clone()
    for columns in torch.arange(n).split(step):  # small results kept apart would split the heap
        alone[columns.to(alone.device)] = similarity(columns).sum(0)

    def gains(columns: Tensor) -> Tensor:
        return (similarity(columns) - covered).clamp_(min=0).sum(0)

    def add(j: int) -> None:
        torch.maximum(covered, similarity(torch.tensor([j])), out=covered)

    return lazy_greedy(gains, add, alone, alone, k, step)


class FacilityLocation(Selector):
    """Keep samples such that every sample of the forget set is much like one of them.

    Likeness is ``(1 + cos) / 2`` of the features, in [0, 1].

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
    """

    requires: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[dict[str, Any]] = {
        "title": "An Analysis of Approximations for Maximizing Submodular Set Functions",
        "year": 1978,
        "doi": "10.1007/BF01588971",
    }

    def __init__(self, fraction: float | None = None, k: int | None = None) -> None:
        super().__init__(fraction, k)

    @torch.no_grad()
    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """Lazy greedy, on the features of the model."""
        features = all_features(self, strategy, dataset)
        rows = F.normalize(features, dim=1)

        def likeness(columns: Tensor) -> Tensor:
            return (rows @ rows[columns.to(rows.device)].T).add_(1).clamp_(min=0).div_(2)

        return Coreset(facility_location(likeness, len(rows), k).sort().values)
