"""Sizes and slices of a batch: any nest of mappings and sequences with tensors at its leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["batch_size", "is_batched", "rows"]


def batch_size(batch: Any) -> int:
    """Samples in a batch: the length of its ``"index"`` entry, else of its first tensor.

    Raises:
        ValueError: when the batch holds no tensor with a leading dimension.
    """
    if isinstance(batch, Mapping) and isinstance(batch.get("index"), Tensor):
        return len(batch["index"])
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    msg = "a batch must hold a tensor with a leading batch dimension, found none"
    raise ValueError(msg)


def is_batched(leaf: Any, samples: int) -> bool:
    """Whether a leaf is a tensor whose leading dimension counts the samples."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == samples


def rows(batch: Any, span: slice, samples: int) -> Any:
    """The batch of the samples in ``span``; leaves without a batch dimension are kept."""
    return pytree.tree_map(lambda x: x[span] if is_batched(x, samples) else x, batch)
