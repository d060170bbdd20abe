"""The weights that training went through, at a few epochs, and the learning rates there."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from erasus_pl.callbacks.training_record import TrainingRecord
from erasus_pl.tasks.base import Task

__all__ = ["WeightHistory"]


class WeightHistory(TrainingRecord):
    """Records the network at the end of some epochs, evenly spaced, the last among them.

    The file's `weights.<name>` are ``(T, …)`` over the T epochs recorded, one for each entry of
    the network's state; `epochs` ``(T,)`` counts from 1, and `rates` is ``(T, p)``: the learning
    rate of each of the network's p parameters in the last step before, 0 for those not trained.

    Args:
        path: where the file is written when the training ends; none to call `write` oneself.
        count: epochs to record; all of them where there are fewer. The file is as large as that
            many models, and so is what a checkpoint of that training holds beside its own.
    """

    def __init__(self, path: str | None, count: int = 5) -> None:
        super().__init__(path)
        if count < 1:
            msg = f"`count` must be at least 1, got {count}"
            raise ValueError(msg)
        self.count = count
        self._rates = torch.zeros(0)

    @property
    def options(self) -> dict[str, Any]:
        """How many epochs are recorded."""
        return {"count": self.count}

    def begin(self, trainer: Trainer, task: Task) -> None:
        """Nothing yet."""
        state = {f"weights.{k}": v for k, v in task.network.state_dict().items()}
        self.content = {k: v.new_zeros(0, *v.shape, device="cpu") for k, v in state.items()}
        self.content["epochs"] = torch.zeros(0, dtype=torch.long)
        self.content["rates"] = torch.zeros(0, len(list(task.network.parameters())))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that it is known where the training ends."""
        super().on_train_start(trainer, pl_module)
        if not trainer.max_epochs or trainer.max_epochs < 1:
            msg = "WeightHistory spaces its epochs over `trainer.max_epochs`; give that number"
            raise ValueError(msg)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rates, which a schedule changes after the step."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._due(trainer):
            assert isinstance(pl_module, Task)
            self._rates = _rates(trainer, pl_module.network)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights, if it is time."""
        if not self._due(trainer):
            return
        assert isinstance(pl_module, Task)
        state = {f"weights.{k}": v.cpu() for k, v in pl_module.network.state_dict().items()}
        state |= {"epochs": torch.tensor(trainer.current_epoch + 1), "rates": self._rates}
        self.content = {k: torch.cat([self.content[k], v[None]]) for k, v in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """What was recorded, and the learning rates of the last step."""
        return {**super().state_dict(), "rates": self._rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with both."""
        super().load_state_dict(state_dict)
        self._rates = state_dict["rates"]

    def _due(self, trainer: Trainer) -> bool:
        """Whether this epoch fills another of `count` equal parts of the training."""
        whole, epoch = trainer.max_epochs or 1, trainer.current_epoch
        count = min(self.count, whole)
        return (epoch + 1) * count // whole > epoch * count // whole


def _rates(trainer: Trainer, network: nn.Module) -> Tensor:
    rates = {
        parameter: float(group["lr"])
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return torch.tensor(
        [rates.get(p, 0.0) if p.requires_grad else 0.0 for p in network.parameters()]
    )
