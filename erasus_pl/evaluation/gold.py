"""Train the models that unlearning is held against: the original, and the retrained gold.

Both are kept in a folder under a hash of what they depend on, and read back when it is the same.
The original of a sharded ensemble also keeps the checkpoints of its slices, in a folder of that
name.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from erasus_pl.callbacks.atomic_io import save_atomically
from erasus_pl.callbacks.training_record import TrainingRecord
from erasus_pl.networks import ShardedEnsemble
from erasus_pl.tasks.base import Task
from erasus_pl.tasks.training import train_task
from erasus_pl.tasks.weights import load_safely

__all__ = ["Kept", "cache_key", "retrain", "train_task"]


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
        folder = path.with_suffix("")
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
            seconds = train_task(model, data, on, seed, self.trainer, recorders, folder)
            model.cpu()
            self._write(name, key, recorders)
            state = {"state_dict": model.network.state_dict(), "seconds": seconds, "seed": seed}
            save_atomically(state, path)
        if isinstance(model.network, ShardedEnsemble):
            if on == "retrain":
                shutil.rmtree(folder, ignore_errors=True)
            else:
                model.shards_folder = str(folder)
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
