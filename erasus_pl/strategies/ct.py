"""CT: transpose the kernels of every convolution, then train on the retain set.

The fifth solution of the NeurIPS 2023 unlearning challenge, as Cadet et al. name and publish it,
"Deep Unlearn: Benchmarking Machine Unlearning" (2024, arXiv:2410.01276): every 2-D convolution's
weight `(out, in, h, w)` has its last two axes exchanged, which ruins what the network sees of rows
and columns but keeps the size of every weight; then the whole network is fine-tuned on D_r with a
learning rate annealed by a cosine over the epochs. No forget sample is read.

Transposing undoes what a small network has learnt: on digits, two convolutions take as many epochs
to come back as they took to train, and only then come near a retrained model.

Their code makes a new parameter of each weight, trainable even if it was frozen, and of another
shape where a kernel is not square. Here weights are changed in place, frozen ones and kernels that
are not square keep theirs, and a network with nothing to transpose is refused.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["CT", "transposed"]


def transposed(kernel: Tensor) -> Tensor:
    """A kernel with rows and columns exchanged (arXiv:2410.01276, CT).

    Args:
        kernel: `(out, in, k, k)`.
    """
    return kernel.transpose(-2, -1)


class CT(Strategy):
    """Transpose every square convolution kernel and fine-tune on the retain set.

    An epoch passes over the whole retain set. Needs `trainer.max_epochs`, which the learning rate
    is annealed over.

    Args:
        task: the trained model.
        optimizer: SGD with lr 1e-3, momentum 0.9 and weight decay 5e-4 by default, for 3 epochs.
    """

    loader_mode = "retain"
    requires = ("convolutions",)
    on_weights = "transposes them"
    paper: ClassVar[dict] = {
        "title": "Deep Unlearn: Benchmarking Machine Unlearning",
        "year": 2024,
        "arxiv": "2410.01276",
    }

    def __init__(self, task: Task, optimizer: OptimizerCallable | None = None) -> None:
        super().__init__(task, optimizer)

    def setup(self, stage: str) -> None:
        """Transpose, before a resume overwrites the weights."""
        super().setup(stage)
        if stage != "fit":
            return
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            msg = f"CT anneals over all epochs: set trainer.max_epochs to at least 1, got {epochs}"
            raise ValueError(msg)
        found = [m.weight for m in self.task.network.modules() if isinstance(m, nn.Conv2d)]
        chosen = [w for w in found if w.requires_grad and 1 < w.shape[-1] == w.shape[-2]]
        if not chosen:
            shapes = sorted({tuple(w.shape[-2:]) for w in found})
            msg = (
                "CT transposes square kernels above 1 by 1 that are not frozen, and this network "
                f"has none among its kernels {shapes}; take MSG or FineTune"
            )
            raise TypeError(msg)
        with torch.no_grad():
            for weight in chosen:
                weight.copy_(transposed(weight).clone())

    def unlearning_losses(self, forget: Any, retain: Batch) -> dict[str, Tensor]:
        """The task loss of the retain batch."""
        return {"retain": self.task.loss(retain)}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 1e-3."""
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def configure_optimizers(self) -> Any:
        """The optimiser, annealed to 0 by a cosine over the epochs."""
        optimizer = super().configure_optimizers()
        schedule = CosineAnnealingLR(optimizer, T_max=self.trainer.max_epochs or 1)
        return {"optimizer": optimizer, "lr_scheduler": schedule}
