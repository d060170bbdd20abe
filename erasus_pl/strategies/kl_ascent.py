"""Gradient ascent held by a divergence: "KL minimisation".

Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs" (2024, arXiv:2401.06121),
baseline KL Minimization: L(θ) = −L(D_f, θ) + (1/|D_r|) Σ_{s ∈ D_r} KL(p_{θ_o}(· | s) ‖ p_θ(· | s)),
with the divergence averaged over the tokens of a sequence. The retained divergence was introduced
by Yao et al., "Large Language Model Unlearning" (2023, arXiv:2310.10683), beside a term of random
answers that this strategy leaves out. It constrains what the model says on D_r, not D_r's labels,
so it works as well for a classifier, where a sample is one "token".
"""

from typing import ClassVar

import torch
from torch import Tensor

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["KLAscent"]


class KLAscent(Strategy):
    """Ascend on the forget set; stay with the original on the retain set.

    Args:
        task: the trained model.
        optimizer: AdamW with lr 1e-5 and weight decay 0.01 by default, as in the paper for models
            of billions of parameters; small models need a larger lr.
        alpha: weight of the divergence on the retain set; 1 in the paper.
    """

    needs_original = True
    requires = ("divergence",)
    paper: ClassVar[dict] = {
        "title": "TOFU: A Task of Fictitious Unlearning for LLMs",
        "year": 2024,
        "arxiv": "2401.06121",
    }

    def __init__(
        self, task: Task, optimizer: OptimizerCallable | None = None, alpha: float = 1.0
    ) -> None:
        super().__init__(task, optimizer)
        if alpha < 0:
            msg = f"`alpha` must be at least 0, got {alpha}"
            raise ValueError(msg)
        self.alpha = alpha

    def unlearning_losses(self, forget: Batch, retain: Batch) -> dict[str, Tensor]:
        """The negative task loss of the forget batch, and the divergence on the retain batch."""
        with torch.no_grad():
            reference = self.original(retain)
        divergence = self.task.divergence(self.task(retain), reference, retain)
        return {
            "forget_ascent": -self.task.loss(forget),
            "retain_divergence": self.alpha * self.task.reduce(divergence, retain),
        }

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW with lr 1e-5 and weight decay 0.01."""
        return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01)
