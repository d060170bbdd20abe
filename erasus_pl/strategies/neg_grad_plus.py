"""NegGrad+: descent on the retain set and ascent on the forget set, in one step.

Kurmanji et al., "Towards Unbounded Machine Unlearning" (NeurIPS 2023, arXiv:2302.09880),
baseline NegGrad+: L(θ) = α (1/|D_r|) Σ_{D_r} ℓ − (1 − α) (1/|D_f|) Σ_{D_f} ℓ. Each step takes a
batch of either set, the smaller set cycled. The retain term keeps the ascent from running away,
as long as α leaves it the upper hand.
"""

from typing import ClassVar

import torch
from torch import Tensor

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["NegGradPlus", "neg_grad_plus_terms"]


def neg_grad_plus_terms(
    forget_loss: Tensor, retain_loss: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """−(1 − α) L_f and α L_r, whose sum NegGrad+ minimises (arXiv:2302.09880).

    Args:
        forget_loss: L_f, mean loss on forget samples, scalar.
        retain_loss: L_r, mean loss on retain samples, scalar.
        alpha: α in [0, 1].
    """
    return -(1 - alpha) * forget_loss, alpha * retain_loss


class NegGradPlus(Strategy):
    """Descend on the retain set, ascend on the forget set.

    Args:
        task: the trained model.
        optimizer: SGD with lr 0.01, momentum 0.9 and weight decay 5e-4 by default.
        alpha: weight α of the retain loss; the forget loss has −(1 − α). The paper searches
            [0.95, 0.9999]; on a small model less is needed.
    """

    paper: ClassVar[dict] = {
        "title": "Towards Unbounded Machine Unlearning",
        "year": 2023,
        "arxiv": "2302.09880",
    }

    def __init__(
        self, task: Task, optimizer: OptimizerCallable | None = None, alpha: float = 0.9999
    ) -> None:
        super().__init__(task, optimizer)
        if not 0 <= alpha <= 1:
            msg = f"`alpha` must be in [0, 1], got {alpha}"
            raise ValueError(msg)
        self.alpha = alpha

    def unlearning_losses(self, forget: Batch, retain: Batch) -> dict[str, Tensor]:
        """Both weighted task losses."""
        ascent, descent = neg_grad_plus_terms(
            self.task.loss(forget), self.task.loss(retain), self.alpha
        )
        return {"forget_ascent": ascent, "retain": descent}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 0.01."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
