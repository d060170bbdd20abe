"""What datamodules are made of: data sets held in memory, parts of them, and what was loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["ArrayDataset", "MapDataset", "Pools", "View", "refuse_overlap"]


class MapDataset(Protocol):
    """What a datamodule can split: a length, and an item at each position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class ArrayDataset(Dataset):
    """Samples held in memory as tensors, fetched a batch at a time.

    Args:
        columns: name of a batch key → tensor whose first dimension counts samples.
        transform: applied to a batch's columns after they are fetched.
        augment: called before that with the columns of a training batch and `(B,)` int64 keys;
            whatever it draws for a sample must follow from the sample's key.
    """

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        transform: Callable[[dict], dict] | None = None,
        augment: Callable[[dict, Tensor], dict] | None = None,
    ) -> None:
        sizes = {name: len(column) for name, column in columns.items()}
        if len(set(sizes.values())) != 1:
            msg = f"columns must have one length, got {sizes}"
            raise ValueError(msg)
        self.columns = dict(columns)
        self.transform = transform
        self.augment = augment
        self.n = next(iter(sizes.values()))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: column[0] for name, column in self.batch(torch.tensor([i])).items()}

    def batch(self, positions: Tensor, keys: Tensor | None = None) -> dict[str, Tensor]:
        """The samples at `(B,)` positions, as tensors `(B, …)`; augmented where keys are given."""
        batch = {name: column[positions] for name, column in self.columns.items()}
        if keys is not None and self.augment is not None:
            batch = self.augment(batch, keys)
        return self.transform(batch) if self.transform else batch


class View(Dataset):
    """A part of a dataset.

    Args:
        dataset: the whole.
        positions: `(n,)` positions in it, in ascending order.
    """

    def __init__(self, dataset: MapDataset, positions: Tensor) -> None:
        self.dataset = dataset
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[int(self.positions[i])]


@dataclass
class Pools:
    """What a datamodule loads.

    Args:
        name: of the data, for manifests and reports.
        train: what the original was trained on.
        held_out: what it was never trained on; split into test and holdout set.
        columns: per-sample arrays of `train` that requests can name, such as `target`.
        held_out_columns: the same of `held_out`.
        content: arrays whose bytes identify the data; the columns if empty.
        holdout: `(m,)` mask over `held_out`, where the user says which of it is the holdout set.
    """

    name: str
    train: MapDataset
    held_out: MapDataset
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    held_out_columns: dict[str, np.ndarray] = field(default_factory=dict)
    content: dict[str, np.ndarray] = field(default_factory=dict)
    holdout: np.ndarray | None = None


def refuse_overlap(pools: Pools, forget: np.ndarray) -> None:
    """See that nothing that must go, `(k,)` positions, is held out too, by the column `id`.

    Raises:
        ValueError: some of it is.
    """
    if "id" not in pools.columns or "id" not in pools.held_out_columns:
        return
    asked = pools.columns["id"][forget]
    both = np.intersect1d(asked, pools.held_out_columns["id"])
    if len(both):
        msg = (
            f"`request`: {len(both):,} of the forget set's samples are also held out, the first "
            f"with id {both[0].item()!r}; take them out of the test and holdout data"
        )
        raise ValueError(msg)
