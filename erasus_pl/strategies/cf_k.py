"""CF-k: fine-tune the last k layers on the retain set, and let the rest be forgotten there.

Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning" (2022,
arXiv:2201.06640), catastrophically forgetting the last k layers: from the original's weights,
min over θ_{L−k+1..L} of (1/|D_r|) Σ_{(x,y) ∈ D_r} ℓ(f_θ(x), y), the first L − k layers fixed. It
rests on what networks that go on learning forget by themselves, and on forgetting being deepest in
the last layers; what the fixed ones hold of D_f they keep. A layer is what owns a weight of two or
more dimensions, together with the normalisations registered after it.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task
from erasus_pl.tasks.layers import Hold, layers

__all__ = ["CFk"]


class CFk(Strategy):
    """Go on training the last k layers alone, on the retain set.

    An epoch passes over the whole retain set. Fixed layers keep every bit, the running statistics
    of their batch norms included.

    Args:
        task: the trained model.
        optimizer: SGD with lr 0.01, momentum 0.9 and weight decay 5e-4 by default, for 10 epochs.
        k: how many layers learn, counted from the output; at least 1.
    """

    loader_mode = "retain"
    on_weights = "counts the layers that hold them"
    paper: ClassVar[dict] = {
        "title": "Towards Adversarial Evaluations for Inexact Machine Unlearning",
        "year": 2022,
        "arxiv": "2201.06640",
    }

    def __init__(self, task: Task, optimizer: OptimizerCallable | None = None, k: int = 1) -> None:
        super().__init__(task, optimizer)
        found = len(layers(task.network))
        if not 1 <= k <= found:
            msg = f"`k` must be in [1, {found}], the layers of this network, got {k}"
            raise ValueError(msg)
        self.k = k
        self._hold = Hold([])

    def setup(self, stage: str) -> None:
        """Hold all but the last k layers for this run."""
        super().setup(stage)
        if stage == "fit":
            self._hold = Hold([m for layer in layers(self.task.network)[: -self.k] for m in layer])

    def on_train_start(self) -> None:
        """Hold the statistics of batch norms too."""
        super().on_train_start()
        self._hold.buffers()

    def teardown(self, stage: str) -> None:
        """Let go; what the user froze stays frozen."""
        self._hold.release()

    def unlearning_losses(self, forget: Any, retain: Batch) -> dict[str, Tensor]:
        """The task loss of the retain batch."""
        return {"retain": self.task.loss(retain)}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 0.01."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
