"""Layers that cannot move, and their statistics."""

from __future__ import annotations

from torch import nn

__all__ = ["Still"]


class Still:
    """Keeps modules that own nothing but frozen parameters in eval mode, until released.

    Args:
        network: whose modules are looked at, as they are frozen now.
    """

    def __init__(self, network: nn.Module) -> None:
        own = [(m, list(m.parameters(recurse=False))) for m in network.modules()]
        self.modes = [
            (m, m.training) for m, ps in own if ps and not any(p.requires_grad for p in ps)
        ]

    def hold(self) -> None:
        """Put them in eval mode, where batch norms leave their statistics alone."""
        for module, _ in self.modes:
            module.training = False

    def release(self) -> None:
        """Put their modes back."""
        for module, mode in self.modes:
            module.training = mode
        self.modes = []
