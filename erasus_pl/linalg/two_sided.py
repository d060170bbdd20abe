"""Two gradients, of what must go and of what must stay, made into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ascent", "nash_weights", "rectify", "with_gradient"]

_OPPOSITE = 1e-6


def rectify(forget: Tensor, retain: Tensor) -> Tensor:
    """g_f where ⟨g_f, g_r⟩ ≥ 0, else g_f − ⟨g_f, g_r⟩ / ‖g_r‖² g_r (arXiv:2503.09117), `(P,)`.

    The nearest vector to g_f that does not point against g_r.

    Args:
        forget: g_f, gradient of the forget terms, `(P,)`.
        retain: g_r, gradient of the retain terms, `(P,)`.
    """
    along = (forget * retain).sum().clamp(max=0)
    length = (retain * retain).sum()
    return forget - torch.where(length > 0, along / length, 0.0) * retain


def nash_weights(forget: Tensor, retain: Tensor) -> tuple[Tensor, Tensor]:
    """α_f and α_r of the Nash bargain between two gradients (arXiv:2411.15537), scalars.

    With G the players' gradients as columns, d = G α maximises ⟨d, g_f⟩ ⟨d, g_r⟩ over directions
    of bounded norm where Gᵀ G α = 1 / α. For two players with cosine c between their gradients this
    has the closed form α_i = 1 / (‖g_i‖ √(1 + c)), so that ‖d‖ = √2. Opposite gradients leave
    nothing to agree on: both weights are 0, and nobody moves. Where one gradient is zero, its
    player has no stake: both weights are 1.

    Args:
        forget: g_f, `(P,)`.
        retain: g_r, `(P,)`.
    """
    a, b = torch.linalg.vector_norm(forget), torch.linalg.vector_norm(retain)
    if not bool(a > 0) or not bool(b > 0):
        one = torch.ones_like(a)
        return one, one
    agreement = 1 + ((forget / a) * (retain / b)).sum()
    if bool(agreement < _OPPOSITE):
        zero = torch.zeros_like(a)
        return zero, zero
    return 1 / (a * agreement.sqrt()), 1 / (b * agreement.sqrt())


def ascent(gradient: Tensor, rho: float) -> Tensor:
    """ρ g / ‖g‖, where a loss rises most within a ball (arXiv:2502.05374), `(P,)`; 0 for g = 0.

    Args:
        gradient: g, `(P,)`.
        rho: ρ, at least 0.
    """
    norm = torch.linalg.vector_norm(gradient)
    return torch.where(norm > 0, rho / norm, 0.0) * gradient


def with_gradient(value: Tensor, parameters: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """A scalar of the given value whose gradient is what is asked for.

    Args:
        value: scalar.
        parameters: θ in parts of any shape.
        gradient: `(P,)`, in the order of the parts.
    """
    parts = torch.split(gradient, [p.numel() for p in parameters])
    terms = [(p * g.view(p.shape).to(p)).sum() for p, g in zip(parameters, parts, strict=True)]
    product = torch.stack(terms).sum()
    return value.detach() + (product - product.detach())
