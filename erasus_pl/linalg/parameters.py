"""The trainable parameters of a module as a dictionary and as one flat vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["flatten", "trainable_parameters", "unflatten"]


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with ``requires_grad``, by name; a tied parameter appears once.

    Raises:
        ValueError: when every parameter is frozen.
    """
    found = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not found:
        msg = (
            f"`{type(module).__name__}` has no parameter with `requires_grad=True`: "
            "unfreeze at least one"
        )
        raise ValueError(msg)
    return found


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """Concatenate tensors in the mapping's order into one vector ``(P,)``."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut a vector ``(P,)`` into the shapes and dtypes of ``like``; the inverse of ``flatten``.

    Raises:
        ValueError: when ``vector`` does not hold exactly as many numbers as ``like``.
    """
    sizes = [tensor.numel() for tensor in like.values()]
    if vector.shape != (sum(sizes),):
        msg = (
            f"`vector` must have shape ({sum(sizes)},), got {tuple(vector.shape)}: "
            "one number for each entry of `like`"
        )
        raise ValueError(msg)
    return {
        name: part.reshape(tensor.shape).to(tensor.dtype)
        for (name, tensor), part in zip(like.items(), torch.split(vector, sizes), strict=True)
    }
