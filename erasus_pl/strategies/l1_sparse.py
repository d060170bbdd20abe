"""ℓ1-sparse: fine-tune on the retain set under a penalty that drives weights to zero.

Jia et al., "Model Sparsity Can Simplify Machine Unlearning" (NeurIPS 2023, arXiv:2304.04934),
sparsity-aware unlearning: min_θ L(θ; D_r) + γ_t ‖θ‖₁. A sparse model is nearer to its retrained
one, and weights that only D_f needed are not defended against the penalty. γ_t falls linearly,
γ_t = γ (1 − t/T) in epoch t = 0 … T − 1, since a penalty kept up to the end costs accuracy; this is
the schedule of the published code, without epochs that have no penalty at all.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["L1Sparse", "l1_penalty", "penalty_weight"]


def penalty_weight(gamma: float, epoch: int, epochs: int) -> float:
    """γ_t = γ (1 − t/T) (arXiv:2304.04934, linearly decreasing schedule).

    Args:
        gamma: γ.
        epoch: t, counted from 0.
        epochs: T.
    """
    return gamma * (1 - epoch / epochs)


def l1_penalty(parameters: list[Tensor]) -> Tensor:
    """‖θ‖₁, the sum of all magnitudes, scalar.

    Args:
        parameters: θ in parts of any shape, at least one.
    """
    return torch.stack([p.abs().sum() for p in parameters]).sum()


class L1Sparse(Strategy):
    """Go on training on the retain set, pulling all weights towards zero, less so each epoch.

    An epoch passes over the whole retain set; `trainer.max_epochs` is the T of the schedule.

    Args:
        task: the trained model.
        optimizer: SGD with lr 0.01, momentum 0.9 and weight decay 5e-4 by default, for 10 epochs.
        gamma: weight γ of ‖θ‖₁ in the first epoch, a sum over the trainable weights; at least 0.
    """

    loader_mode = "retain"
    on_weights = "penalises them"
    paper: ClassVar[dict] = {
        "title": "Model Sparsity Can Simplify Machine Unlearning",
        "year": 2023,
        "arxiv": "2304.04934",
    }

    def __init__(
        self, task: Task, optimizer: OptimizerCallable | None = None, gamma: float = 5e-4
    ) -> None:
        super().__init__(task, optimizer)
        if gamma < 0:
            msg = f"`gamma` must be at least 0, got {gamma}"
            raise ValueError(msg)
        self.gamma = gamma

    def setup(self, stage: str) -> None:
        """Check that the schedule can know its end."""
        super().setup(stage)
        epochs = self.trainer.max_epochs
        if stage == "fit" and (epochs is None or epochs < 1):
            msg = (
                "`gamma` falls to nothing over the epochs: set trainer.max_epochs to at least 1, "
                f"got {epochs}"
            )
            raise ValueError(msg)

    def unlearning_losses(self, forget: Any, retain: Batch) -> dict[str, Tensor]:
        """The task loss of the retain batch, and the weighted penalty."""
        weight = penalty_weight(self.gamma, self.current_epoch, self.trainer.max_epochs or 1)
        penalty = l1_penalty(list(self.trainable.values()))
        return {"retain": self.task.loss(retain), "penalty": weight * penalty}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 0.01."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
