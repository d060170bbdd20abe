"""The whole forget set: the baseline that a coreset has to match at less cost."""

from typing import Any, ClassVar

import torch
from torch.utils.data import Dataset

from erasus_pl.selectors.base import Coreset, Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["Full"]


class Full(Selector):
    """Keep the whole forget set."""

    paper: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__(fraction=1.0)

    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """Every position."""
        return Coreset(torch.arange(k))
