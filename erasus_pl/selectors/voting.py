"""Voting: samples that most of several selectors pick.

Approval voting (Brams and Fishburn, "Approval Voting", American Political Science Review 1978):
every member picks as many samples as are wanted, each pick is one vote, and the samples with most
votes win. Of as many votes the lowest mean rank over the members wins, then the best single
rank, the second best and so on, and at last the first. A member that picks a set has no order
within it; the samples in it share their mean rank, as do the others.

Only votes and ranks are added up, never scores, which have another scale for each member.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors._members import SelectorCallable, ask, build, needs
from erasus_pl.selectors.base import Coreset, Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["Voting", "elect"]


def elect(votes: Tensor, ranks: Tensor, k: int) -> Tensor:
    """Positions ``(k,)`` of the winners, ascending.

    Args:
        votes: ``(n,)`` how many members picked each sample.
        ranks: ``(M, n)`` of each member, lower is better.
        k: how many win.
    """
    best_first = ranks.sort(0).values
    order = torch.arange(len(votes))
    for key in (*best_first.flip(0), best_first.sum(0), -votes):
        order = order[key[order].sort(stable=True).indices]
    return order[:k].sort().values


class Voting(Selector):
    """Keep the samples that most of several selectors would keep.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        selectors: the members, which get the budget of the ensemble: in YAML `class_path` and
            `init_args` without it, in Python a class or a functools.partial of one. By default
            GradNorm, EL2N, KNNShapley and Moderate.
    """

    paper: ClassVar[dict[str, Any]] = {
        "title": "Approval Voting",
        "year": 1978,
        "url": "https://doi.org/10.2307/1955105",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        selectors: list[SelectorCallable] | None = None,
    ) -> None:
        super().__init__(fraction, k)
        self.members = build(selectors, fraction, k)

    @property
    def needs(self) -> frozenset[str]:
        """What the task must provide for all members."""
        return needs(self.members)

    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """Let every member pick k, and count."""
        picks, ranks = zip(*(ask(m, strategy, dataset, k) for m in self.members), strict=True)
        votes = torch.bincount(torch.cat(picks), minlength=len(ranks[0]))
        return Coreset(elect(votes, torch.stack(ranks), k))
