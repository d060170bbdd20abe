"""Gradient ascent on the forget set, which others call NegGrad.

Graves et al., "Amnesiac Machine Learning" (AAAI 2021), and Thudi et al., "Unrolling SGD:
Understanding Factors Influencing Machine Unlearning" (EuroS&P 2022, arXiv:2109.13398):
the loss that training minimised is maximised on D_f alone,
L(θ) = −(1/|D_f|) Σ_{(x,y) ∈ D_f} ℓ(f_θ(x), y). It never looks at the retain set; nothing bounds it,
so the learning rate and the number of steps decide between no effect and collapse.
"""

from typing import ClassVar

import torch
from torch import Tensor

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch

__all__ = ["GradientAscent"]


class GradientAscent(Strategy):
    """Maximise the loss on the forget set alone.

    Args:
        task: the trained model.
        optimizer: SGD with lr 1e-4, momentum 0.9 and weight decay 5e-4 by default, as in
            the class-wise experiments of Fan et al. (2024, arXiv:2310.12508).
    """

    loader_mode = "forget"
    paper: ClassVar[dict] = {
        "title": "Unrolling SGD: Understanding Factors Influencing Machine Unlearning",
        "year": 2022,
        "arxiv": "2109.13398",
    }
    limits: ClassVar[dict] = {
        "class": "its learning rate, made for large networks, hardly moves a small one; try 0.01",
        "random": "nothing holds the retain set: a rate that is felt breaks it first",
    }

    def unlearning_losses(self, forget: Batch, retain: Batch | None) -> dict[str, Tensor]:
        """The negative task loss of the forget batch."""
        return {"forget_ascent": -self.task.loss(forget)}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 1e-4."""
        return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=5e-4)
