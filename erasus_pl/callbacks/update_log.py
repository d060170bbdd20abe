"""What each batch of a training did to the weights, so that it can be taken back."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from erasus_pl.callbacks.training_record import TrainingRecord
from erasus_pl.tasks.base import Task

__all__ = ["UpdateLog"]

_GB = 1e9


class UpdateLog(TrainingRecord):
    """Records the samples and the update of the weights of each optimiser step.

    The file's `samples` are a list of positions `(B,)`, its `updates` a list of vectors `(P,)` over
    all weights that train, in the order of `names`. Batches whose gradients are accumulated are
    one. It holds the update of every step that has a sample which may have to be deleted: up to
    steps × P numbers, in memory while training, in each of its checkpoints and in the file; how
    much that is at most is said before the first step. Buffers, such as the statistics of batch
    norms, and what the optimiser remembers are not recorded.

    Args:
        path: where the file is written when the training ends; none to call `write` oneself.
        indices: positions of the samples that may have to be deleted; all of them if not given.
        limit_gb: a training that might need more, in 10⁹ bytes, is refused.

    Raises:
        ValueError: the record might outgrow the limit.
    """

    def __init__(
        self,
        path: str | None,
        indices: Sequence[int] | None = None,
        limit_gb: float = 4.0,
    ) -> None:
        super().__init__(path)
        if not limit_gb > 0:
            msg = f"`limit_gb` must be above 0, got {limit_gb}"
            raise ValueError(msg)
        self.indices = None if indices is None else sorted({int(i) for i in indices})
        self.limit_gb = limit_gb
        self._before = torch.empty(0)
        self._seen = self._wanted = torch.empty(0, dtype=torch.bool)
        self._step = 0

    @property
    def options(self) -> dict[str, Any]:
        """Which samples are recorded."""
        return {} if self.indices is None else {"indices": self.indices}

    def begin(self, trainer: Trainer, task: Task) -> None:
        """See that there is room."""
        names = [k for k, p in task.named_parameters() if p.requires_grad]
        self.content = {"names": names, "samples": [], "updates": []}
        batches, epochs = int(trainer.num_training_batches), trainer.max_epochs or 1
        if self.indices is not None:
            batches = min(batches, len(self.indices))
        weights = sum(p.numel() for p in task.parameters() if p.requires_grad)
        size = sum(p.nbytes for p in task.parameters() if p.requires_grad) * batches * epochs / _GB
        if size > self.limit_gb:
            msg = (
                f"`limit_gb`: updates of up to {batches * epochs:,} steps, {weights:,} weights "
                f"each, take {size:.3g} GB, more than {self.limit_gb:g}; name the samples that may "
                "have to be deleted in `indices`, take larger batches, or raise the limit"
            )
            raise ValueError(msg)
        rank_zero_info(
            f"UpdateLog: up to {batches * epochs:,} steps of {weights:,} weights, {size:.3g} GB"
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on with the record of the training that is resumed."""
        super().on_train_start(trainer, pl_module)
        n = len(trainer.datamodule.train_set)  # type: ignore[attr-defined]
        self._seen = torch.zeros(n, dtype=torch.bool)
        self._wanted = torch.ones(n, dtype=torch.bool)
        if self.indices is not None:
            if self.indices and not 0 <= self.indices[0] <= self.indices[-1] < n:
                msg = f"`indices` must be in [0, {n}), got {self.indices[0]} to {self.indices[-1]}"
                raise ValueError(msg)
            self._wanted = torch.zeros(n, dtype=torch.bool)
            self._wanted[self.indices] = True
        self._before, self._step = _weights(pl_module), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the samples, and at an optimiser step what it did."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._seen[batch["index"].cpu()] = True
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        seen = self._seen
        if trainer.world_size > 1:
            counts = seen.int().to(pl_module.device)
            seen = trainer.strategy.reduce(counts, reduce_op="sum").cpu() > 0
        now = _weights(pl_module)
        if (seen & self._wanted).any():
            self.content["samples"].append(seen.nonzero().flatten())
            self.content["updates"].append(now - self._before)
        self._before = now
        self._seen = torch.zeros_like(self._seen)


def _weights(module: LightningModule) -> Tensor:
    found = [p.detach().reshape(-1) for p in module.parameters() if p.requires_grad]
    return torch.cat(found).to("cpu", copy=True)
