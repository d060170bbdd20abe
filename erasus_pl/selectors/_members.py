"""The members of an ensemble: selectors that it builds with its own budget, and asks in turn."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from erasus_pl.selectors.base import Selector, check_coreset, highest
from erasus_pl.selectors.el2n import EL2N
from erasus_pl.selectors.grad_norm import GradNorm
from erasus_pl.selectors.knn_shapley import KNNShapley
from erasus_pl.selectors.moderate import Moderate
from erasus_pl.strategies.base import Strategy

__all__ = ["SelectorCallable", "ask", "build", "has_scores", "needs", "ranks"]

SelectorCallable = Callable[[float | None, int | None], Selector]


def build(
    selectors: Sequence[SelectorCallable] | None, fraction: float | None, k: int | None
) -> list[Selector]:
    """Members with a budget, by default one of each kind: gradient, error, value, geometry.

    Args:
        selectors: make a selector from `fraction` and `k`, as selector classes do.
        fraction: budget of the ensemble.
        k: the same.

    Raises:
        ValueError: there is none.
        TypeError: one makes no selector, or takes no budget.
    """
    made = [GradNorm, EL2N, KNNShapley, Moderate] if selectors is None else selectors
    if not made:
        msg = "`selectors` must name at least one selector, got none"
        raise ValueError(msg)
    members = []
    for number, make in enumerate[Any](made, 1):
        if isinstance(make, Selector) or not callable(make):
            msg = (
                f"`selectors`: number {number} must make a selector from (fraction, k), such as "
                "GradNorm or functools.partial(KNNShapley, neighbors=3): the budget is the "
                f"ensemble's; got {make!r}"
            )
            raise TypeError(msg)
        try:
            member: Any = make(fraction, k)
        except TypeError as error:
            msg = f"`selectors`: number {number} takes no budget ({error}); leave it out"
            raise TypeError(msg) from error
        if not isinstance(member, Selector):
            msg = f"`selectors`: number {number} makes a {type(member).__name__}, no Selector"
            raise TypeError(msg)
        members.append(member)
    return members


def needs(members: Sequence[Selector]) -> frozenset[str]:
    """What a task must provide for all members."""
    return frozenset().union(*(member.needs for member in members))


def has_scores(member: Selector) -> bool:
    """Whether a member orders all samples, or picks a set."""
    kind = type(member)
    return kind.scores is not Selector.scores and kind.select is Selector.select


def ask(member: Selector, strategy: Strategy, dataset: Any, k: int) -> tuple[Tensor, Tensor]:
    """A member's pick ``(k,)``, and the rank it gives each sample ``(n,)``, from 1 for the best.

    Each draws from its own seed, whatever the others drew. Samples that a member does not tell
    apart share their mean rank: those with one score, and of a member that picks a set those in it
    and those outside.
    """
    with torch.random.fork_rng():
        torch.manual_seed(member.seed)
        if has_scores(member):
            scores = member.finite_scores(strategy, dataset)
            return highest(scores, k), ranks(scores)
        pick = member.select(strategy, dataset, k)
    check_coreset(pick, k, len(dataset), type(member).__name__)
    indices = pick.indices.cpu()
    return indices, ranks(torch.zeros(len(dataset)).index_fill_(0, indices, 1.0))


def ranks(scores: Tensor) -> Tensor:
    """Rank of each of ``(n,)`` scores, 1 for the highest; equal ones share their mean rank."""
    _, own, count = scores.unique(return_inverse=True, return_counts=True)
    below = count.cumsum(0) - count
    return len(scores) - (below[own] + (count[own] - 1) / 2.0).double()
