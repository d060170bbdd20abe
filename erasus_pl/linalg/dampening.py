"""Selective synaptic dampening of weights by their importance to two sets of data."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dampen", "pooled_importance"]


def dampen(
    weights: Tensor, importance: Tensor, forget_importance: Tensor, alpha: float, lam: float
) -> Tensor:
    """Weights after dampening (arXiv:2308.07707, selection and dampening).

    Args:
        weights: θ, any shape.
        importance: I_D, of θ's shape.
        forget_importance: I_Df, of θ's shape.
        alpha: α, how many times more important to D_f than to D a dampened weight is.
        lam: λ, scales what is left of it.
    """
    beta = (lam * importance / forget_importance).clamp(max=1)
    return torch.where(forget_importance > alpha * importance, beta * weights, weights)


def pooled_importance(forget: Tensor, retain: Tensor, n_forget: int, n_retain: int) -> Tensor:
    """I_D, the mean over D, from the means over its two parts of `n_forget` and `n_retain`."""
    return (n_forget * forget + n_retain * retain) / (n_forget + n_retain)
