"""Which weights may move: scores in, masks out."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["importance_ratio", "top_fraction"]


def top_fraction(scores: Tensor, fraction: float) -> Tensor:
    """The round(fraction · P) highest of P scores, bool `(P,)`; of equal ones the first.

    Args:
        scores: `(P,)`.
        fraction: part to choose, in [0, 1].
    """
    chosen = scores.argsort(descending=True, stable=True)[: round(fraction * len(scores))]
    mask = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    mask[chosen] = True
    return mask


def importance_ratio(forget: Tensor, retain: Tensor) -> Tensor:
    """I_Df / I_Dr, what selective synaptic dampening selects by (arXiv:2308.07707).

    There it is I_Df / I_D with I_D the mean over both sets, which orders weights the same. A weight
    that matters to neither set has 0. Double precision, of the shape given.

    Args:
        forget: I_Df, at least 0.
        retain: I_Dr, at least 0, of the same shape.
    """
    return forget.double() / retain.double().clamp(min=torch.finfo(torch.float32).tiny)
