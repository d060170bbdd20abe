"""The greedy rule for monotone submodular functions, with few gains computed, in blocks."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["lazy_greedy"]

_TIE = 1e-9
_FIRST = 8


def lazy_greedy(
    gains: Callable[[Tensor], Tensor],
    add: Callable[[int], None],
    alone: Tensor,
    centrality: Tensor,
    k: int,
    block: int,
) -> Tensor:
    """``(k,)`` distinct positions in the order of the greedy rule, each of the largest gain.

    Minoux, "Accelerated Greedy Algorithms for Maximizing Submodular Set Functions" (1978): gains
    only fall, so what a sample gained before bounds what it gains now, and only those are computed
    anew whose bound is above the best gain that is known. They are computed in blocks that double,
    from the highest bound down; those computed in vain have tighter bounds from then on.

    Gains equal to 1e-9 of the largest are taken as equal; of such the most central sample goes
    first, then the first one. So rounding, and with it the order of the samples, does not decide.

    Args:
        gains: ``(m,)`` positions to what each gains now, ``(m,)``.
        add: takes a position as picked.
        alone: ``(n,)`` what each sample gains as the first, at least 0.
        centrality: ``(n,)`` what decides between equal gains; equal to about 1e-9 of the largest
            counts as equal.
        k: how many to pick, at most n.
        block: gains to compute at once, at most.
    """
    unit = _TIE * float(alone.max()) or 1.0
    bound = (alone.double() / unit).round().cpu()
    rank = (centrality / (_TIE * float(centrality.abs().max()) or 1.0)).round().cpu()
    numbers = torch.arange(len(bound))
    fresh = torch.ones(len(bound), dtype=torch.bool)
    picked = torch.empty(k, dtype=torch.long)
    size = min(_FIRST, block)
    for i in range(k):
        while True:
            known = bound.where(fresh, -torch.inf)
            equal = (known == known.max()).nonzero()[:, 0]
            best = int(equal[rank[equal].argmax()])
            if known[best] < 0:
                above = bound >= 0
            else:
                tied = (rank > rank[best]) | ((rank == rank[best]) & (numbers < best))
                above = (bound > known[best]) | ((bound == known[best]) & tied)
            stale = (above & ~fresh).nonzero()[:, 0]
            if not len(stale):
                break
            if len(stale) > size:
                stale = stale[bound[stale].topk(size).indices]
            bound[stale] = (gains(stale).double() / unit).round().clamp(min=0).cpu()
            fresh[stale] = True
            size = min(2 * size, block)
        picked[i] = best
        add(best)
        bound[best] = -1
        fresh = torch.zeros_like(fresh)
        size = min(_FIRST, block)
    return picked
