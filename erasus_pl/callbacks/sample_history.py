"""What training made of each sample at each visit: its loss, and whether it was right."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from erasus_pl.callbacks.training_record import TrainingRecord
from erasus_pl.tasks.base import Batch, Task

__all__ = ["SampleHistory"]


class SampleHistory(TrainingRecord):
    """Records the loss and the correctness of each sample, epoch by epoch.

    Both are those of the minibatch that the sample was trained on, before the step's update and
    with dropout and batch norms as they train: no forward pass is added. The file's `visited`,
    `losses` and `correct` are ``(E, n)`` over epochs and training positions; the latter two are NaN
    where a sample was not visited, and `correct` is the fraction of what is predicted of a sample
    that was right, NaN where the task knows no right and wrong.

    Args:
        path: where the file is written when the training ends; none to call `write` oneself.
    """

    def __init__(self, path: str | None) -> None:
        super().__init__(path)
        self._task: Task | None = None
        self._trainer: Trainer | None = None
        self._epoch = torch.zeros(0)

    def begin(self, trainer: Trainer, task: Task) -> None:
        """No epoch yet."""
        n = len(trainer.datamodule.train_set)  # type: ignore[attr-defined]
        none = torch.zeros(0, n)
        self.content = {"visited": none.bool(), "losses": none, "correct": none}
        self._epoch = torch.zeros(3, n)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on with the record of the training that is resumed."""
        super().on_train_start(trainer, pl_module)
        assert isinstance(pl_module, Task)
        self._task, self._trainer = pl_module, trainer
        mine = self._epoch if trainer.is_global_zero else torch.zeros_like(self._epoch)
        self._epoch = mine.to(pl_module.device)

    def observe(self, batch: Batch, outputs: Tensor) -> None:
        """Add up visits, losses and correctness of this epoch."""
        assert self._task is not None
        loss = self._task.per_sample_loss(outputs, batch).float()
        correct = self._task.correct(outputs, batch).float()
        seen = torch.stack([torch.ones_like(loss), loss, correct])
        self._epoch.index_add_(1, batch["index"].to(seen.device), seen)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add this epoch to the history."""
        visits, losses, correct = self._summed().cpu()
        epoch = {"visited": visits > 0, "losses": losses / visits, "correct": correct / visits}
        self.content = {k: torch.cat([self.content[k], v[None]]) for k, v in epoch.items()}
        self._epoch.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The history, and what there is of this epoch, summed over processes."""
        return {**super().state_dict(), "epoch": self._summed().cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on within the epoch."""
        super().load_state_dict(state_dict)
        self._epoch = state_dict["epoch"]

    def _summed(self) -> Tensor:
        if self._trainer is None or self._trainer.world_size == 1:
            return self._epoch.clone()
        return self._trainer.strategy.reduce(self._epoch.clone(), reduce_op="sum")
