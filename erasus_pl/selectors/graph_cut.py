"""Graph cut: the samples most alike to all, less what they are alike to each other.

Iyer, Khargonkar, Bilmes and Asnani, "Submodular Combinatorial Information Measures with
Applications in Machine Learning" (ALT 2021, arXiv:2006.15412): with similarities ``s >= 0``,

    F(S) = sum_{i in V} sum_{j in S} s_ij - lambda sum_{i in S} sum_{j in S} s_ij

is submodular for ``lambda >= 0``, and monotone for ``lambda <= 1/2``, where the greedy rule reaches
``1 - 1/e`` of the best value or more (Nemhauser, Wolsey and Fisher 1978). A gain is
``sum_i s_ij - lambda (s_jj + 2 sum_{i in S} s_ij)``: one column of similarities for each pick
brings all of them up to date.
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

__all__ = ["GraphCut", "graph_cut"]


def graph_cut(
    column: Callable[[int], Tensor], total: Tensor, own: Tensor, k: int, trade_off: float
) -> Tensor:
    """``(k,)`` distinct positions in the order of the greedy rule.

    Args:
        column: position to the similarity of all samples to it, ``(n,)``, not negative.
        total: ``(n,)`` sums of the columns.
        own: ``(n,)`` similarity of each sample to itself.
        k: how many to pick, at most n.
        trade_off: ``lambda``, in [0, 1/2].
    """
    gain = total - trade_off * own

    def add(j: int) -> None:
        gain.sub_(2 * trade_off * column(j))

    return lazy_greedy(lambda j: gain[j.to(gain.device)], add, gain.clone(), total, k, len(total))


class GraphCut(Selector):
    """Keep samples much like the forget set and little like each other, by a graph cut.

    Likeness is ``(1 + cos) / 2`` of the features, in [0, 1].

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        trade_off: the paper's lambda, in [0, 0.5]: 0 looks at likeness to all alone, and the more,
            the more what is kept differs.
    """

    requires: ClassVar[tuple[str, ...]] = ("features",)
    paper: ClassVar[dict[str, Any]] = {
        "title": (
            "Submodular Combinatorial Information Measures with Applications in Machine Learning"
        ),
        "year": 2021,
        "arxiv": "2006.15412",
    }

    def __init__(
        self, fraction: float | None = None, k: int | None = None, trade_off: float = 0.5
    ) -> None:
        super().__init__(fraction, k)
        if not 0 <= trade_off <= 0.5:
            msg = f"`trade_off` must be in [0, 0.5], got {trade_off}"
            raise ValueError(msg)
        self.trade_off = trade_off

    @torch.no_grad()
    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """Greedy, on the features of the model."""
        rows = F.normalize(all_features(self, strategy, dataset), dim=1)
        total = (len(rows) + rows @ rows.sum(0)) / 2
        own = (1 + rows.square().sum(1)) / 2
        picked = graph_cut(lambda j: (1 + rows @ rows[j]) / 2, total, own, k, self.trade_off)
        return Coreset(picked.sort().values)
