"""Train the models that unlearning is held against: the original, and the retrained gold.

Both are kept in a folder under a hash of what they depend on, and read back when it is the same.
"""

import copy
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from erasus_pl.callbacks.atomic_io import save_atomically
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
) -> float:
    """Train a task in place, from a fresh initialisation of all that is not frozen.

    Args:
        task: what to train; its weights are drawn anew.
        data: its datamodule.
        on: `train` for all of the training data, `retrain` for the retain set alone.
        seed: of the initialisation, the order of batches and every step.
        trainer: arguments of the Lightning Trainer, such as `accelerator`.

    Returns:
        Wall seconds.
    """
    pl.seed_everything(seed, verbose=False)
    reset_trainable(task.train(), task.reset, seed)
    task.loader_mode = on
    order, data.seed = data.seed, seed
    start = time.perf_counter()
    try:
        pl.Trainer(
            max_epochs=task.epochs,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
            **(trainer or {}),
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
    ) -> tuple[Task, float, bool]:
        """A trained copy of a task: read from disk, or trained and kept.

        Args:
            name: `original` or `retrained`; starts the file's name.
            key: `cache_key` of all that the model depends on.
            task: what to copy; it is left as it is.
            data: its datamodule.
            on: what to train on.
            seed: of that training.

        Returns:
            The model in eval mode, the wall seconds its training took, and whether it was read.

        Raises:
            ValueError: the file is damaged, or holds more than tensors.
        """
        path = self.folder / f"{name}-{key}.ckpt"
        model = copy.deepcopy(task)
        found = path.is_file()
        if found:
            seconds = _read(path, model)
        else:
            seconds = train_task(model, data, on, seed, self.trainer)
            model.cpu()
            state = {"state_dict": model.network.state_dict(), "seconds": seconds, "seed": seed}
            save_atomically(state, path)
        return model.eval(), seconds, found


def _read(path: Path, model: Task) -> float:
    remedy = "delete it to train that model again"
    content = load_safely(path, "evidence.cache", remedy)
    try:
        model.network.load_state_dict(content["state_dict"])
        return float(content["seconds"])
    except (RuntimeError, KeyError, TypeError) as error:
        msg = f"`evidence.cache`: {str(path)!r} is no kept model of this network; {remedy}"
        raise ValueError(msg) from error
