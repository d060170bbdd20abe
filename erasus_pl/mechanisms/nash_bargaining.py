"""Nash bargaining: weigh forgetting against keeping so that neither side is the loser.

Wu and Harandi, "MUNBa: Machine Unlearning via Nash Bargaining" (2024, arXiv:2411.15537): forgetting
and keeping are two players who bargain over the direction of a step, each with the gain
⟨d, g_i⟩; the Nash solution maximises the product of the gains. It weighs both gradients in inverse
proportion to their norms, in closed form, so whatever weights a strategy gives its terms cancel.

A step's gradient has norm √2 whatever the losses are, so the learning rate sets how far a step
goes; let it fall, since nothing else makes steps smaller near the end. Where the gradients are
opposite nobody moves; the published code then falls back on 0.1 g_f + g_r.
"""

from typing import ClassVar

from torch import Tensor

from erasus_pl.linalg import nash_weights
from erasus_pl.mechanisms.gradient_rule import GradientRule

__all__ = ["NashBargaining"]


class NashBargaining(GradientRule):
    """Weighs the two sides' gradients by the Nash bargaining solution (MUNBa)."""

    paper: ClassVar[dict] = {
        "title": "MUNBa: Machine Unlearning via Nash Bargaining",
        "year": 2024,
        "arxiv": "2411.15537",
    }

    def combine(self, forget: Tensor, retain: Tensor) -> Tensor:
        """The bargained direction."""
        first, second = nash_weights(forget, retain)
        return first * forget + second * retain
