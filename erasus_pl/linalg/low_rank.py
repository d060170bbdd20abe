"""Inverse of a damped sum of few outer products."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["inverse_fisher_product"]


def inverse_fisher_product(gradients: Tensor, vector: Tensor, damping: float) -> Tensor:
    """``F^-1 v`` with ``F = damping I + (1/m) sum_i g_i g_i^T``, ``(P,)``.

    What m rank-one updates of Sherman and Morrison give (WoodFisher, Singh and Alistarh 2020,
    arXiv:2004.14340), in one step by Woodbury's identity: a system of size m, in double
    precision, and no matrix of size P.

    Args:
        gradients: ``g (m, P)``, one for each sample.
        vector: ``v (P,)``.
        damping: above 0.

    Raises:
        ValueError: when ``damping`` is not above 0.
    """
    if not damping > 0:
        msg = f"`damping` must be above 0, got {damping}"
        raise ValueError(msg)
    samples = len(gradients)
    gram = (gradients @ gradients.T).double()
    gram.diagonal().add_(samples * damping)
    along = torch.linalg.solve(gram, (gradients @ vector).double()).to(vector.dtype)
    return (vector - gradients.T @ along) / damping
