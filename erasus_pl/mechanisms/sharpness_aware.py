"""Sharpness-aware forgetting: forget in a whole neighbourhood, so that relearning comes hard.

Fan et al., "Towards LLM Unlearning Resilient to Relearning Attacks: A Sharpness-Aware Minimization
Perspective and Beyond" (ICML 2025, arXiv:2502.05374): relearning is an adversary who moves the
weights, so the forget objective is minimised where it is worst nearby,
min_θ max_{‖ε‖ ≤ ρ} ℓ_f(θ + ε) + λ ℓ_r(θ). To first order ε = ρ ∇ℓ_f / ‖∇ℓ_f‖, so a step takes the
forget terms' gradient at θ + ε and the retain terms' at θ. ℓ_f is what is minimised to forget, such
as a negated loss, and the norm is over all trainable weights, as in the published code.

The second pass draws the same random numbers as the first, and leaves batch norms' statistics as
the first made them. It costs one more pass of the strategy's step.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from erasus_pl.linalg import ascent, unflatten
from erasus_pl.mechanisms.gradient_rule import GradientRule
from erasus_pl.strategies.base import Strategy

__all__ = ["SharpnessAware"]


class SharpnessAware(GradientRule):
    """Takes the gradient of forgetting where forgetting is undone most within a ball.

    Args:
        rho: radius ρ of the ball, in the norm of all trainable weights; at least 0, where 0 is the
            plain step. 0.01 in the published code, for models of billions of weights.
    """

    paper: ClassVar[dict] = {
        "title": "Towards LLM Unlearning Resilient to Relearning Attacks: A Sharpness-Aware "
        "Minimization Perspective and Beyond",
        "year": 2025,
        "arxiv": "2502.05374",
    }

    def __init__(self, rho: float = 0.01) -> None:
        if rho < 0:
            msg = f"`rho` must be at least 0, got {rho}"
            raise ValueError(msg)
        self.rho = rho

    def sides(
        self, strategy: Strategy, evaluate: Callable[[], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The forget side's gradient at θ + ε, the other's at θ."""
        devices = [strategy.device] if strategy.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            losses, forget, retain = super().sides(strategy, evaluate)
        weights = strategy.trainable
        kept = {k: p.detach().clone() for k, p in weights.items()}
        buffers = [(b, b.clone()) for b in strategy.task.buffers()]
        step = unflatten(ascent(forget, self.rho), weights)
        try:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.add_(step[name])
            forget = self.gradient(strategy, evaluate(), "forget")
        finally:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(kept[name])
                for buffer, value in buffers:
                    buffer.copy_(value)
        return losses, forget, retain
