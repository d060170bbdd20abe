"""Drive the package `supreme-unlearning` on plain problems: the functions its pipeline calls."""

import copy
import importlib
import os
import random
from collections.abc import Callable
from typing import Any

# Its switch for loaders without worker processes, whose CPU seconds would not be seen.
os.environ["SCALENE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import _absent
import torch
from _common import Job, Problem, build, serve
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

_absent.install()
FABRIC = Fabric(accelerator="cpu", devices=1)


class Triples(Dataset):
    """Samples as its loaders give them: input, class, class."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.targets = x, y.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, int]:
        return self.x[i], self.targets[i], self.targets[i]


def _importance(method: str, kind: str) -> dict[str, float]:
    """α and λ that its pipeline takes for this kind of request (ResNet-18, CIFAR)."""
    alpha = 3.5 if method.startswith("lfssd") and kind == "random" else 10.0
    return {"selection_weighting": alpha, "dampening_constant": 1.0}


def prepare(problem: Problem, job: Job) -> Callable[[], nn.Module]:
    """The call is the method's function; epochs are those written into it."""
    random.seed(problem.about["seed"])
    module = importlib.import_module(f"supreme.methods.unlearning_methods.{job.method}")
    kind = problem.about["kind"]
    sets = {split: Triples(*pair) for split, pair in problem.data.items()}

    def batches(dataset: Dataset, shuffle: bool = True) -> Any:
        return FABRIC.setup_dataloaders(DataLoader(dataset, problem.about["batch_size"], shuffle))

    with torch.random.fork_rng():
        torch.manual_seed(problem.about["seed"] + 10_007)
        teacher = FABRIC.setup_module(build(problem.about["layers"]))
    arguments: dict[str, Any] = {
        "fabric": FABRIC,
        "num_gpus": 1,
        "wandb_logging_flag": False,
        "type_of_unlearning_strategy": "fullclass" if kind == "class" else "random_",
        "model": copy.deepcopy(problem.network),
        "model_name": "plain",
        "distributed_strategy_name": "ddp",
        "num_labels": problem.about["classes"],
        "forget_label_id": problem.about["forget_class"],
        "retain_train_dataloader": batches(sets["retain"]),
        "retain_test_dataloader": batches(sets["test"], shuffle=False),
        "forget_train_dataloader": batches(sets["forget"]),
        "forget_test_dataloader": batches(sets["holdout"], shuffle=False),
        "full_train_dataloader": batches(ConcatDataset([sets["retain"], sets["forget"]])),
        "trainset": Triples(
            *(torch.cat([problem.data[s][i] for s in ("retain", "forget")]) for i in (0, 1))
        ),
        "unlearning_teacher": teacher,
    }
    if "ssd" in job.method:
        arguments |= _importance(job.method, kind)
    arguments |= job.options

    def call() -> nn.Module:
        made = getattr(module, job.method)(**arguments)
        return made.module if hasattr(made, "module") else made

    return call


if __name__ == "__main__":
    FABRIC.launch()
    serve(prepare)
