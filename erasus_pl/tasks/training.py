"""Train a task by its own recipe, from scratch."""

import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from torch import nn

from erasus_pl.networks import ShardedEnsemble
from erasus_pl.tasks.base import Task
from erasus_pl.tasks.shards import ShardTraining
from erasus_pl.tasks.weights import reset_trainable

__all__ = ["recipe_key", "train_task"]

_NOT_THE_MODEL = (
    "seed", "step", "num_workers", "pin_memory", "epoch", "forget_batch_size", "holdout_fraction",
)  # fmt: skip


def train_task(
    task: Task,
    data: Any,
    on: Literal["train", "retrain"],
    seed: int,
    trainer: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    folder: str | Path | None = None,
) -> float:
    """Train a task in place, from a fresh initialisation of all that is not frozen.

    A task over a `ShardedEnsemble` is trained shard by shard, slice by slice.

    Args:
        task: what to train; its weights are drawn anew.
        data: its datamodule.
        on: `train` for all of the training data, `retrain` for the retain set alone.
        seed: of the initialisation, the order of batches and every step.
        trainer: arguments of the Lightning Trainer, such as `accelerator`.
        callbacks: added to those of `trainer`, such as a `TrainingRecord`.
        folder: where a sharded ensemble's checkpoints are kept, one for each shard and slice; what
            is there and fits is not trained again. Without it they are thrown away, and SISA
            cannot delete from that model. Other networks use none.

    Returns:
        Wall seconds, those of what is not trained again included.

    Raises:
        TypeError: the training of a sharded ensemble is to be recorded.
    """
    if isinstance(task.network, ShardedEnsemble):
        for callback in callbacks:
            msg = (
                f"`network`: {type(callback).__name__} cannot record a ShardedEnsemble, which is "
                "trained shard by shard; give the task a plain network"
            )
            raise TypeError(msg)
        return _train_shards(task, task.network, data, on, seed, trainer, folder)
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


def recipe_key(task: Task, data: Any, **parts: Any) -> str:
    """Twelve hex digits that change with whatever `train_task` depends on, its seed excepted.

    That is the network's structure and what of it is frozen, the loss, optimiser, schedule and
    epochs, and the training data with the datamodule's plain options. Functions count by name.

    Args:
        task: whose recipe it is; weights that are drawn anew do not count.
        data: its datamodule, after `setup`.
        parts: whatever else decides, that JSON can hold.
    """
    found = copy.deepcopy(task).configure_optimizers()
    found = found if isinstance(found, dict) else {"optimizer": found}
    schedule = found.get("lr_scheduler")
    frozen = hashlib.sha256()
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            frozen.update(name.encode() + parameter.detach().cpu().double().numpy().tobytes())
    recipe = {
        "task": f"{type(task).__module__}.{type(task).__qualname__}",
        "network": repr(task.network),
        "dtypes": sorted({str(p.dtype) for p in task.parameters()}),
        "frozen": frozen.hexdigest(),
        "loss": _name(task.loss_fn),
        "epochs": task.epochs,
        "optimizer": repr(found["optimizer"]),
        "schedule": [type(schedule).__name__, _plain(getattr(schedule, "__dict__", {}))],
        "data": [type(data).__qualname__, data.fingerprint, _plain(vars(data))],
        "parts": parts,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def _train_shards(
    task: Task,
    network: ShardedEnsemble,
    data: Any,
    on: Literal["train", "retrain"],
    seed: int,
    trainer: Mapping[str, Any] | None,
    folder: str | Path | None,
) -> float:
    data.setup()
    with tempfile.TemporaryDirectory() as scratch:
        kept = data.retain_set.positions if on == "retrain" else torch.arange(len(data.train_set))
        training = ShardTraining(task, data, kept, seed, Path(folder or scratch))
        training.record()
        training.train(trainer=trainer)
        training.assemble(network)
        task.shards_folder = None if folder is None else str(folder)
        return training.seconds(stage for stages in training.stages for stage in stages)


def _name(function: Any) -> str:
    if isinstance(function, nn.Module):
        return repr(function)
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = (str, int, float, bool, type(None), list, tuple, torch.dtype)
    return {
        k: str(v)
        for k, v in values.items()
        if not k.startswith("_") and k not in _NOT_THE_MODEL and isinstance(v, plain)
    }
