"""Train the models that unlearning is held against: the original, and the retrained gold.

Both are kept in a folder under a hash of what they depend on, and read back when it is the same.
"""

import copy
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback

from erasus_pl.callbacks.atomic_io import save_atomically
from erasus_pl.callbacks.training_record import TrainingRecord
from erasus_pl.strategies.retrain import reset_trainable
from erasus_pl.tasks.base import Task
from erasus_pl.tasks.weights import load_safely

__all__ = ["Kept", "cache_key", "retrain", "train_task"]


def train_task(
    task: Task,
    data: Any,
    on: Literal["train", "retrain"],
    seed: int,
    trainer: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> float:
    """Train a task in place, from a fresh initialisation of all that is not frozen.

    Args:
        task: what to train; its weights are drawn anew.
        data: its datamodule.
        on: `train` for all of the training data, `retrain` for the retain set alone.
        seed: of the initialisation, the order of batches and every step.
        trainer: arguments of the Lightning Trainer, such as `accelerator`.
        callbacks: added to those of `trainer`, such as a `TrainingRecord`.

    Returns:
        Wall seconds.
    """
    pl.seed_everything(seed, verbose=False)
    reset_trainable(task.train(), task.reset, seed)
    task.loader_mode = on
    order, data.seed = data.seed, seed
    given = dict(trainer or {})
    given["callbacks"] = [*(given.get("callbacks") or []), *callbacks]
    start = time.perf_counter()
    try:
        pl.Trainer(
            max_epochs=task.epochs,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
            **given,
        ).fit(task, data)
    finally:
        data.seed = order
        task.loader_mode = "train"
    return time.perf_counter() - start


def retrain(
    task: Task,
    data: Any,
    seeds: tuple[int, ...] = (1, 2),
    trainer: Mapping[str, Any] | None = None,
) -> list[Task]:
    """Models trained from scratch on the retain set alone: the gold of an unlearning run.

    Args:
        task: what to train copies of; it is left as it is.
        data: the datamodule with the request.
        seeds: one model each; two show how far retrained models differ among themselves.
        trainer: arguments of the Lightning Trainer, such as `accelerator`.
    """
    models = [copy.deepcopy(task) for _ in seeds]
    for model, seed in zip(models, seeds, strict=True):
        train_task(model, data, "retrain", seed, trainer)
    return [model.eval() for model in models]


def cache_key(**parts: Any) -> str:
    """Twelve hex digits that change with any part; parts are what JSON can hold."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Kept:
    """Trained models on disk, by name and key.

    Args:
        folder: where they are; made when the first is kept.
        trainer: arguments of the Lightning Trainer that trains what is not there yet.
    """

    def __init__(self, folder: str | Path, trainer: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.trainer = dict(trainer or {})

    def get(
        self,
        name: str,
        key: str,
        task: Task,
        data: Any,
        on: Literal["train", "retrain"],
        seed: int,
        recorders: Sequence[TrainingRecord] = (),
    ) -> tuple[Task, float, bool]:
        """A trained copy of a task: read from disk, or trained and kept.

        Args:
            name: `original` or `retrained`; starts the file's name.
            key: `cache_key` of all that the model depends on.
            task: what to copy; it is left as it is.
            data: its datamodule.
            on: what to train on.
            seed: of that training.
            recorders: what records that training; each one's file is kept at `record(…)`. Where
                the model is there and a file is not, it is trained again to the same weights.

        Returns:
            The model in eval mode, the wall seconds its training took, and whether it was read.

        Raises:
            ValueError: the file is damaged, or holds more than tensors.
            RuntimeError: training again gave other weights.
        """
        path = self.folder / f"{name}-{key}.ckpt"
        model = copy.deepcopy(task)
        found = path.is_file()
        if found:
            seconds = _read(path, model)
            missing = [r for r in recorders if not self.record(name, key, r).is_file()]
            if missing:
                again = copy.deepcopy(task)
                train_task(again, data, on, seed, self.trainer, missing)
                _compare(again.cpu(), model, path)
                self._write(name, key, missing)
        else:
            seconds = train_task(model, data, on, seed, self.trainer, recorders)
            model.cpu()
            self._write(name, key, recorders)
            state = {"state_dict": model.network.state_dict(), "seconds": seconds, "seed": seed}
            save_atomically(state, path)
        return model.eval(), seconds, found

    def record(self, name: str, key: str, recorder: TrainingRecord) -> Path:
        """Where the record of a kept model's training is."""
        return self.folder / f"{name}-{key}.{recorder.name}.pt"

    def _write(self, name: str, key: str, recorders: Sequence[TrainingRecord]) -> None:
        for recorder in recorders:
            recorder.write(self.record(name, key, recorder))


def _read(path: Path, model: Task) -> float:
    remedy = "delete it to train that model again"
    content = load_safely(path, "evidence.cache", remedy)
    try:
        model.network.load_state_dict(content["state_dict"])
        return float(content["seconds"])
    except (RuntimeError, KeyError, TypeError) as error:
        msg = f"`evidence.cache`: {str(path)!r} is no kept model of this network; {remedy}"
        raise ValueError(msg) from error


def _compare(again: Task, kept: Task, path: Path) -> None:
    expected = kept.network.state_dict()
    for name, value in again.network.state_dict().items():
        if isinstance(value, torch.Tensor) and not torch.equal(value, expected[name]):
            msg = (
                f"`evidence.cache`: training {str(path)!r} again, to record it, gave another "
                f"{name}: it was trained on another machine, or its training does not repeat; "
                "delete it to train and record that model anew"
            )
            raise RuntimeError(msg)
