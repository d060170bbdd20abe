"""Deal out samples to shards and slices, and count what a deletion trains anew.

Bourtoule et al., "Machine Unlearning" (IEEE S&P 2021, arXiv:1912.03817).
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

__all__ = ["cells", "first_hit", "samples_trained", "slice_epochs"]


def cells(n: int, shards: int, slices: int, seed: int) -> Tensor:
    """Shard and slice of each of n positions, `(n, 2)`, both counted from 0.

    Every S·R consecutive positions are dealt out to the S·R cells, one to each, in an order drawn
    for them: so the cells are equal to within one sample, none is left over, and where a sample
    goes depends on (seed, position) alone, not on n and on no other sample.

    Args:
        n: samples of the training data, deleted ones included.
        shards: S.
        slices: R.
        seed: of the dealing.
    """
    size = shards * slices
    blocks = -(-n // size)
    drawn = np.random.PCG64(seed).random_raw(blocks * size).reshape(blocks, size)
    cell = torch.from_numpy(drawn.argsort(1, kind="stable").reshape(-1)[:n])
    return torch.stack([cell // slices, cell % slices], 1)


def slice_epochs(epochs: int, slices: int) -> list[int]:
    """Epochs e_r of each stage, R numbers, for the samples that e′ epochs without slices would see.

    e_r = 2e′/(R + 1), since Σ_r e_r · r/R = e′. What is no whole number is rounded so that
    the sums of the first stages are right, as in the authors' code; every stage has one at least.

    Args:
        epochs: e′.
        slices: R.
    """
    ends = [2 * epochs * r // (slices + 1) for r in range(slices + 1)]
    return [max(1, b - a) for a, b in pairwise(ends)]


def first_hit(grid: Tensor, removed: Tensor, shards: int, slices: int) -> Tensor:
    """The first stage of each shard that a deletion trains anew, `(S,)`; R where it hits none.

    Args:
        grid: `(n, 2)`, of `cells`.
        removed: `(m,)` positions that are deleted, in any order, repeated or not.
        shards: S.
        slices: R.
    """
    found = torch.full((shards,), slices)
    hit = grid[removed]
    return found.scatter_reduce(0, hit[:, 0], hit[:, 1], "amin")


def samples_trained(grid: Tensor, kept: Tensor, epochs: list[int], start: Tensor) -> int:
    """How many samples are stepped through from given stages to the last.

    Σ_k Σ_{r ≥ start_k} e_r n_kr, where n_kr are the kept samples in slices up to r of shard k. For
    one sample of a random slice that is on average (2R + 1)/(3R) of a shard's e′n_k: slicing saves
    a third at most, and sharding all but 1/S; K random requests at once hit S(1 − (1 − 1/S)^K)
    shards.

    Args:
        grid: `(n, 2)`, of `cells`.
        kept: `(m,)` positions that are trained on.
        epochs: R numbers e_r.
        start: `(S,)` first stage of each shard.
    """
    counts = torch.zeros(len(start), len(epochs), dtype=torch.long)
    part = grid[kept]
    counts.index_put_((part[:, 0], part[:, 1]), torch.ones(len(part)).long(), accumulate=True)
    anew = torch.arange(len(epochs)) >= start[:, None]
    return int((counts.cumsum(1) * torch.tensor(epochs) * anew).sum())
