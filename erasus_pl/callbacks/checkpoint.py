"""Save a run so that it can be continued exactly."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

__all__ = ["RunCheckpoint"]


class RunCheckpoint(Checkpoint):
    """Writes `last.ckpt` at the end of every epoch, after validation, and within epochs if asked.

    A stock ModelCheckpoint that counts steps also saves after an epoch's last step, before its
    validation; a run resumed from there never validates that epoch. Only optimiser steps count, so
    that no accumulated gradient is lost. For the best of several checkpoints add Lightning's
    ModelCheckpoint to `trainer.callbacks`.

    Args:
        every_n_train_steps: also save after every so many optimiser steps; 0 for epochs only.
        dirpath: folder of `last.ckpt`; `checkpoints` in the run's folder if not given.
    """

    def __init__(self, every_n_train_steps: int = 0, dirpath: str | None = None) -> None:
        if every_n_train_steps < 0:
            msg = f"`every_n_train_steps` must be at least 0, got {every_n_train_steps}"
            raise ValueError(msg)
        self.every_n_train_steps = every_n_train_steps
        self.dirpath = dirpath
        self._saved = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch."""
        n, step = self.every_n_train_steps, trainer.global_step
        if n and step != self._saved and step % n == 0 and not trainer.is_last_batch:
            # Lightning logs a step after this hook; a run that ends here would never log it.
            trainer._logger_connector.update_train_step_metrics()
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of an epoch."""
        self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a run of no epochs: a strategy may have done its work before the first."""
        if trainer.max_epochs == 0:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        for logger in trainer.loggers:
            logger.save()
        folder = Path(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
        trainer.save_checkpoint(folder / "last.ckpt")
