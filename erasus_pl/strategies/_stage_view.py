"""How a stage sees the run that it is part of, and how the run goes on from one to the next."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from erasus_pl.strategies.base import Strategy

FORWARDED = (
    "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end", "on_before_zero_grad",
    "on_before_backward", "on_after_backward", "on_before_optimizer_step", "optimizer_step",
    "optimizer_zero_grad", "backward", "configure_gradient_clipping", "lr_scheduler_step",
    "on_validation_start", "on_validation_end", "on_validation_epoch_start",
    "on_validation_epoch_end",
)  # fmt: skip


class StageTrainer:
    """The trainer as one stage sees it: the stage's epochs and steps are all there are.

    Args:
        trainer: of the run.
        epoch: where the stage begins.
        step: where it begins, in optimiser steps.
        epochs: how long it runs.
    """

    def __init__(self, trainer: Trainer, epoch: int, step: int, epochs: int) -> None:
        vars(self).update(_trainer=trainer, first_epoch=epoch, first_step=step, max_epochs=epochs)

    @property
    def current_epoch(self) -> int:
        return int(self._trainer.current_epoch) - int(self.first_epoch)

    @property
    def global_step(self) -> int:
        return int(self._trainer.global_step) - int(self.first_step)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_trainer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._trainer, name, value)


class Forwarded:
    """A hook of the stage that runs, if that defines it; else it is as if none were defined.

    So the lean loop, which looks hooks up, runs for stages that it would run for alone.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, kind: type) -> Any:
        inherited = getattr(Strategy, self.name)
        if owner is None:
            return inherited
        stage = owner.stage
        if stage is None or getattr(type(stage), self.name) is inherited:
            return inherited.__get__(owner, kind)

        def hook(*args: Any, **kwargs: Any) -> Any:
            stage._current_fx_name = owner._current_fx_name  # what `self.log` goes by
            if self.name.startswith("optimizer_"):  # the first argument is the run's epoch
                args = (stage.trainer.current_epoch, *args[1:])
            return getattr(stage, self.name)(*args, **kwargs)

        return hook


def no_loss(staged: Strategy) -> Tensor:
    """The constant loss of a step that takes in a batch and leaves the weights alone."""
    (optimizer,) = staged.trainer.optimizers
    unused = [p for group in optimizer.param_groups for p in group["params"]]
    if staged.trainer.world_size > 1:  # or processes wait for gradients that never come
        unused += staged.trainable.values()
    return 0.0 * torch.stack([p.sum().float().to(staged.device) for p in unused]).sum()


def between_epochs(loop: Any) -> None:
    """A resumed loop that had finished an epoch goes on as one that was not interrupted.

    Lightning compares the steps of the epoch before with the length of the next, and leaves out
    what begins an epoch.
    """
    inner = loop.epoch_loop
    if inner.restarted_on_train_batch_end:
        inner._batches_that_stepped += 1
    for progress in (loop.epoch_progress, inner.batch_progress):
        progress.total.completed = progress.total.processed
        progress.current.completed = progress.current.processed
    loop.restarting = False
    for part in (loop, inner, inner.val_loop):
        part.reset_restart_stage()
