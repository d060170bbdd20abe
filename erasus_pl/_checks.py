"""What is looked at before a run costs anything: checkpoint, data, request, and that all fit."""

from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer

from datamodules import UnlearningDataModule
from erasus_pl._words import UsageError
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import Task

__all__ = ["check", "checkpoint_path"]


def checkpoint_path(verb: str, settings: Any, run_dir: Path, model: LightningModule) -> str | None:
    """The checkpoint that a verb reads.

    Args:
        verb: `fit` reads one only if told to, the others the last one of the run, unless the task
            brings weights of its own.
        settings: of the verb; `ckpt_path` is a path or `last`.
        run_dir: the run's folder.
        model: what the checkpoint is for.

    Raises:
        UsageError: it is not there, or `fit` would go on with another strategy than it began with.
    """
    given = settings.get("ckpt_path")
    last = run_dir / "checkpoints" / "last.ckpt"
    if given is None and verb != "fit":
        own = getattr(_task(model), "checkpoint", None)
        given = "last" if last.is_file() or own is None else None
    if given is None:
        return None
    path = last if given == "last" else Path(given)
    if not path.is_file():
        hint = f"; the last of this run is {str(last)!r}" if last.is_file() else ", or run fit"
        msg = f"`ckpt_path`: there is no checkpoint {str(path)!r}; give the path of a .ckpt file"
        raise UsageError(msg + hint)
    record = path.parent.parent / "config.yaml"
    if verb == "fit" and record.is_file():
        before = yaml.safe_load(record.read_text(encoding="utf-8"))["model"]["class_path"]
        if before != settings.model.class_path:
            msg = (
                f"`ckpt_path`: {str(path)!r} was made by {before}, and `model` is "
                f"{settings.model.class_path}; resume with the same, or start without --ckpt_path"
            )
            raise UsageError(msg)
    return str(path)


def check(
    verb: str, model: LightningModule, data: UnlearningDataModule | None, trainer: Trainer
) -> None:
    """Load the data, and see that request, strategy, task and trainer fit together.

    Raises:
        UsageError: data or request are missing.
        ValueError: the data does not fit the network, or the trainer the strategy.
        TypeError: the task lacks what the strategy requires.
    """
    if data is None:
        msg = "`data` is missing; give a datamodule, such as data: data/digits.yaml in a run file"
        raise UsageError(msg)
    data.setup("validate")
    if isinstance(model, Strategy):
        if data.request is None:
            msg = (
                f"`request` is missing: {type(model).__name__} needs to know what must go; give a "
                "forget request, such as ForgetClass or ForgetRandom"
            )
            raise UsageError(msg)
        model.trainer = trainer
        model.setup(verb)
        model.teardown(verb)  # what it holds still would be still while the original is trained
    task = _task(model)
    if isinstance(task, Task):
        _try(task, data)


def _task(model: LightningModule) -> LightningModule:
    return model.task if isinstance(model, Strategy) else model


def _try(task: Task, data: UnlearningDataModule) -> None:
    batch = next(iter(data.sweep(data.retain_set)))
    training = task.training
    try:
        with torch.no_grad():
            task.eval().per_sample_loss(task(batch), batch)
    except (RuntimeError, IndexError, KeyError, TypeError) as error:
        shapes = {k: tuple(v.shape) for k, v in batch.items() if isinstance(v, torch.Tensor)}
        msg = (
            f"`data`: batches of {shapes} do not fit {type(task).__name__} over "
            f"{type(task.network).__name__}: {error}"
        )
        raise ValueError(msg) from error
    finally:
        task.train(training)
