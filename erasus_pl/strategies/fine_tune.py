"""Fine-tuning on the retain set, hoping that the rest is forgotten.

From the original's weights, min_θ (1/|D_r|) Σ_{(x,y) ∈ D_r} ℓ(f_θ(x), y): the baseline of Golatkar
et al., "Eternal Sunshine of the Spotless Net" (CVPR 2020, arXiv:1911.04933), and FT of Fan et al.
(SalUn, ICLR 2024, arXiv:2310.12508). It forgets only as far as training on D_r overwrites.
"""

from typing import ClassVar

import torch
from torch import Tensor

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch

__all__ = ["FineTune"]


class FineTune(Strategy):
    """Go on training, on the retain set alone.

    An epoch passes over the whole retain set.

    Args:
        task: the trained model.
        optimizer: SGD with lr 0.01, momentum 0.9 and weight decay 5e-4 by default, for 10 epochs,
            as in Fan et al. (2024, arXiv:2310.12508).
    """

    loader_mode = "retain"
    paper: ClassVar[dict] = {
        "title": "Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks",
        "year": 2020,
        "arxiv": "1911.04933",
    }

    def unlearning_losses(self, forget: Batch | None, retain: Batch) -> dict[str, Tensor]:
        """The task loss of the retain batch."""
        return {"retain": self.task.loss(retain)}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 0.01."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
