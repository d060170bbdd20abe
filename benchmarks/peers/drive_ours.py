"""Drive this project's strategies on plain problems: every option as in conf/strategy."""

import copy
import functools
import importlib
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from _common import Job, Problem, serve  # noqa: E402
from lightning.pytorch import Trainer, seed_everything  # noqa: E402
from torch import nn  # noqa: E402

from datamodules import ArrayDataset, Pools, UnlearningDataModule  # noqa: E402
from erasus_pl.requests import ForgetIndices  # noqa: E402
from erasus_pl.tasks import ClassificationTask  # noqa: E402

__all__ = ["PlainData", "prepare", "strategy"]


class PlainData(UnlearningDataModule):
    """A problem's four sets; an epoch is a pass over the retain set."""

    def __init__(self, problem: Problem) -> None:
        n = len(problem.data["forget"][1])
        super().__init__(
            ForgetIndices(list(range(n))),
            batch_size=problem.about["batch_size"],
            epoch="retain",
            seed=problem.about["seed"],
        )
        self.problem = problem

    def load(self) -> Pools:
        sides = []
        for pair in (("forget", "retain"), ("test", "holdout")):
            x, y = (torch.cat([self.problem.data[s][i] for s in pair]) for i in (0, 1))
            sides.append(ArrayDataset({"input": x, "target": y}))
        train, held_out = sides
        rows = {"row": np.arange(len(train))}
        is_holdout = np.arange(len(held_out)) >= len(self.problem.data["test"][1])
        return Pools("plain", train, held_out, rows, {}, rows, is_holdout)


def _import(path: str) -> Any:
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def _made(value: Any) -> Any:
    """What YAML says, with classes as functions of what the caller gives them, however deep."""
    if isinstance(value, list):
        return [_made(v) for v in value]
    if isinstance(value, dict) and "class_path" in value:
        arguments = {k: _made(v) for k, v in value.get("init_args", {}).items()}
        return functools.partial(_import(value["class_path"]), **arguments)
    return value


def strategy(name: str, task: ClassificationTask, options: dict[str, Any]) -> Any:
    """A strategy as its YAML in conf/strategy has it, but for `options`."""
    conf = yaml.safe_load((ROOT / "conf/strategy" / f"{name}.yaml").read_text("utf-8"))
    conf["init_args"] |= options
    return _made(conf)(task)


def prepare(problem: Problem, job: Job) -> Callable[[], nn.Module]:
    """The call is `Trainer.fit`. Strategies that edit once, or count their own epochs, do so."""
    seed_everything(problem.about["seed"], verbose=False)
    model = strategy(job.method, ClassificationTask(copy.deepcopy(problem.network)), job.options)
    data = PlainData(problem)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1 if model.one_shot else -1 if hasattr(model, "epochs") else job.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )

    def call() -> nn.Module:
        trainer.fit(model, data)
        return model.task.network

    return call


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    serve(prepare)
