"""Models that a selector trains itself, by the task's own recipe, inside the run that it is of.

They are trained one after the other, shared out over processes. What is kept of each is written at
once, so a run that is killed goes on where it was.
"""

import copy
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from erasus_pl.callbacks import save_atomically
from erasus_pl.selectors._rows import watch
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Task
from erasus_pl.tasks.training import recipe_key, train_task
from erasus_pl.tasks.weights import load_safely

__all__ = ["keep_of_each", "member_seed", "trained_copy"]

_SEEDS = 1_000_003  # so that more models only add to those of one seed


def member_seed(seed: int, number: int) -> int:
    """Seed of the training of a selector's model of that number."""
    return seed * _SEEDS + number


def keep_of_each(
    strategy: Strategy,
    count: int,
    folder: str | Path,
    make: Callable[[int], Any],
    doing: str,
    **parts: Any,
) -> list[Any]:
    """What `make` gives of each model, on the CPU; what an earlier run made is read, not made.

    Args:
        strategy: of the run; its state, and that of the process, is as it was at the end.
        count: how many models.
        folder: where it is kept.
        make: trains the model of a number and gives what to keep of it, tensors and plain values.
        doing: what the progress bar names.
        parts: what `make` depends on, beside the recipe, the data and the number.
    """
    trainer = strategy.trainer
    key = recipe_key(strategy.task, strategy.data, **parts)
    paths = [Path(folder) / f"{key}-{i}.pt" for i in range(count)]
    mine = range(trainer.global_rank, count, trainer.world_size)
    missing = [i for i in mine if not paths[i].is_file()]
    for i in watch(missing, strategy, f"{doing}, {len(missing)} models to train"):
        with _world_kept(), torch.enable_grad():
            save_atomically(make(i), paths[i])
    trainer.strategy.barrier()
    return [load_safely(p, "cache", "delete it to train that model again") for p in paths]


def trained_copy(strategy: Strategy, data: Any, on: Literal["train", "retrain"], seed: int) -> Task:
    """A copy of the task, trained from scratch on the strategy's device, in evaluation mode."""
    task: Task = copy.deepcopy(strategy.task)
    device = strategy.device
    chosen = {"accelerator": device.type, "devices": 1 if device.index is None else [device.index]}
    quiet = {"enable_progress_bar": False, "precision": strategy.trainer.precision}
    train_task(task, data, on, seed, chosen | quiet)
    return task.to(device).eval()


@contextmanager
def _world_kept() -> Iterator[None]:
    """Keep what a training inside a run sets for the whole process: seeds and switches."""
    states = random.getstate(), np.random.get_state(), os.environ.get("PL_GLOBAL_SEED")
    exact, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if states[2] is None:
            os.environ.pop("PL_GLOBAL_SEED", None)
        else:
            os.environ["PL_GLOBAL_SEED"] = states[2]
        torch.use_deterministic_algorithms(exact, warn_only=warned)
        torch.backends.cudnn.benchmark = benchmark
