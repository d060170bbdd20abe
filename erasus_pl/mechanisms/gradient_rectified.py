"""Gradient rectified unlearning: forget only in directions that do not undo what must stay.

Wang et al., "GRU: Mitigating the Trade-off between Unlearning and Retention for Large Language
Models" (ICML 2025, arXiv:2503.09117): of all directions that do not raise the retain loss to first
order, the nearest to the forget gradient g_f is taken. It is g_f itself unless the two conflict,
⟨g_f, g_r⟩ < 0, and then g_f without its part along g_r. The retain terms' own gradient is added,
as in the published code's form with a retain loss.

That code compares g_f with a moving average of g_r over steps; here g_r is that of the step.
"""

from typing import ClassVar

from torch import Tensor

from erasus_pl.linalg import rectify
from erasus_pl.mechanisms.gradient_rule import GradientRule

__all__ = ["GradientRectified"]


class GradientRectified(GradientRule):
    """Projects the forget gradient where it conflicts with the retain gradient (GRU)."""

    paper: ClassVar[dict] = {
        "title": "GRU: Mitigating the Trade-off between Unlearning and Retention for Large "
        "Language Models",
        "year": 2025,
        "arxiv": "2503.09117",
    }

    def combine(self, forget: Tensor, retain: Tensor) -> Tensor:
        """The rectified forget gradient, and the retain gradient."""
        return rectify(forget, retain) + retain
