"""Uniform sampling without replacement: the baseline that a selector has to beat."""

from collections.abc import Sized
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors.base import Coreset, Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["Random", "sample"]


def sample(n: int, k: int, seed: int) -> Tensor:
    """``(k,)`` distinct positions in ``[0, n)``, ascending; a pure function of its arguments."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[:k].sort().values


class Random(Selector):
    """Keep a uniform sample of the forget set.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        seed: of the draw; the same seed draws the same positions.
    """

    paper: ClassVar[dict[str, Any]] = {}

    def __init__(self, fraction: float | None = None, k: int | None = None, seed: int = 0) -> None:
        super().__init__(fraction, k, seed)

    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """A sample of the positions."""
        return Coreset(sample(len(cast(Sized, dataset)), k, self.seed))
