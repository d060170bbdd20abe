"""Random labels: learn the forget set wrong, then the retain set right.

Golatkar et al., "Eternal Sunshine of the Spotless Net" (CVPR 2020, arXiv:1911.04933),
baseline "random labels", in the form that Fan et al. (SalUn, ICLR 2024, arXiv:2310.12508) call RL:
every epoch first descends on ℓ(f_θ(x), y') over D_f, with y' uniform over all classes and drawn
anew for each batch, then on ℓ(f_θ(x), y) over D_r. The true class is among those drawn, as in both
codes; the papers' equations leave it out.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from erasus_pl.strategies.base import Strategy

__all__ = ["RandomLabel"]


class RandomLabel(Strategy):
    """Train on random labels over the forget set, on true ones over the retain set.

    Args:
        task: the trained model.
        optimizer: SGD with lr 0.01, momentum 0.9 and weight decay 5e-4 by default, for 10 epochs.
    """

    loader_mode = "sequential"
    requires = ("targets",)
    paper: ClassVar[dict] = {
        "title": "Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks",
        "year": 2020,
        "arxiv": "1911.04933",
    }

    def unlearning_losses(self, forget: Any, retain: Any) -> dict[str, Tensor]:
        """The task loss: of a forget batch under drawn targets, of a retain batch as it is."""
        if forget is not None:
            return {"forget_random": self.task.loss(self.task.random_targets(forget))}
        return {"retain": self.task.loss(retain)}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 0.01."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
