"""Facility location: the samples that every sample has a likeness among.

Nemhauser, Wolsey and Fisher, "An Analysis of Approximations for Maximizing Submodular Set
Functions" (Math. Programming 1978): ``F(S) = sum_i max_{j in S} s_ij`` is monotone and submodular
where ``s >= 0``, and adding the sample of largest gain k times reaches ``1 - 1/e`` of the best
value or more. Minoux, "Accelerated Greedy Algorithms" (1978): as gains only fall, one that is
still the largest when it is computed anew is the largest of all, so few are computed.
"""

import heapq
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors._rows import all_features
from erasus_pl.selectors.base import Coreset, Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["FacilityLocation", "facility_location"]

_BUDGET = 2**22
_TIE = 1e-9


def facility_location(similarity: Callable[[Tensor], Tensor], n: int, k: int) -> Tensor:
    """``(k,)`` distinct positions in the order of the greedy rule.

    Two samples that are near each other alone gain the same, so ties are common: gains equal to
    1e-9 of the largest are taken as equal, and the sample more alike to all goes first, then the
    first one. So rounding, and with it the order of the samples, does not decide.
    Holds at most ``max(n, 2**22)`` similarities at a time.

    Args:
        similarity: positions ``(m,)`` to the similarity of all samples to each, ``(n, m)``, not
            negative.
        n: how many samples there are.
        k: how many to pick, at most n.
    """
    step = max(1, _BUDGET // n)
    gains = [similarity(torch.arange(n)[i : i + step]).sum(0) for i in range(0, n, step)]
    alone = torch.cat(gains).tolist()
    unit = _TIE * max(alone) or 1.0
    heap = [(-round(gain / unit), -gain, j) for j, gain in enumerate(alone)]
    heapq.heapify(heap)
    covered = torch.zeros_like(similarity(torch.arange(1))[:, 0])
    picked: list[int] = []
    while len(picked) < k:
        _, total, j = heapq.heappop(heap)
        column = similarity(torch.tensor([j]))[:, 0]
        entry = (-round(float((column - covered).clamp(min=0).sum()) / unit), total, j)
        if heap and entry > heap[0]:
            heapq.heappush(heap, entry)
            continue
        picked.append(j)
        covered = covered.maximum(column)
    return torch.tensor(picked)


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
            return (1 + rows @ rows[columns.to(rows.device)].T).clamp(min=0) / 2

        return Coreset(facility_location(likeness, len(rows), k).sort().values)
