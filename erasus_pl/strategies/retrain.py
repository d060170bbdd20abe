"""Retraining from scratch without the forget set: the gold that unlearning is held against.

θ_r = argmin_θ (1/|D_r|) Σ_{(x,y) ∈ D_r} ℓ(f_θ(x), y) from a fresh initialisation: exact unlearning
by definition (Bourtoule et al., "Machine Unlearning", IEEE S&P 2021, arXiv:1912.03817). Every layer
is initialised anew: resetting only the layers at the top level of a network would leave the
original's weights in all others.
"""

import os
from typing import Any, ClassVar

from torch import Tensor

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task
from erasus_pl.tasks.weights import reset_trainable

__all__ = ["Retrain"]


class Retrain(Strategy):
    """Forget everything, then learn the retain set.

    An epoch passes over the whole retain set, so give `trainer.max_epochs` the epochs the original
    was trained for.

    Args:
        task: the trained model; of its weights only those that are frozen survive.
        optimizer: the task's own recipe (optimiser and schedule) if not given, since the retrained
            model must be trained as the original was.
        seed: of the new initialisation; if not given it follows `seed_everything`, without
            drawing the original's initialisation a second time.
    """

    loader_mode = "retain"
    on_weights = "draws them anew"
    paper: ClassVar[dict] = {
        "title": "Machine Unlearning",
        "year": 2021,
        "arxiv": "1912.03817",
    }

    def __init__(
        self, task: Task, optimizer: OptimizerCallable | None = None, seed: int | None = None
    ) -> None:
        super().__init__(task, optimizer)
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Reset before a resume overwrites the weights, so that it never undoes one."""
        super().setup(stage)
        if stage == "fit":
            run = int(os.environ.get("PL_GLOBAL_SEED", 0))
            seed = self.seed if self.seed is not None else run + 10_007
            reset_trainable(self.task, self.task.reset, seed)

    def unlearning_losses(self, forget: Batch | None, retain: Batch) -> dict[str, Tensor]:
        """The task loss of the retain batch."""
        return {"retain": self.task.loss(retain)}

    def configure_optimizers(self) -> Any:
        """The given optimiser, or the recipe the original was trained with."""
        if self.optimizer is None:
            return self.task.configure_optimizers()
        return super().configure_optimizers()
