"""Where the input of any network is continuous, and outputs from there; targets by prediction.

Noise and gradients need a continuous input. Images and tables are one themselves; of tokens it is
what the network's first embedding makes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from erasus_pl.tasks.base import Batch, Task

__all__ = ["continuous_input", "forward_from", "with_targets"]


def continuous_input(task: Task, batch: Batch) -> Tensor:
    """`batch["input"]` if it is floating, else what the first embedding gives, detached, `(B, …)`.

    Raises:
        TypeError: the batch has no floating input and the network no nn.Embedding.
    """
    given = batch.get("input")
    if isinstance(given, Tensor) and given.is_floating_point():
        return given.detach()
    seen: list[Tensor] = []
    handle = _embedding(task).register_forward_hook(lambda *call: seen.append(call[-1]))
    try:
        with torch.no_grad():
            task(batch)
    finally:
        handle.remove()
    return seen[0].detach()


def forward_from(task: Task, batch: Batch, continuous: Tensor) -> Tensor:
    """The task's outputs with its continuous input replaced.

    Args:
        task: the model.
        batch: what else the network reads, such as an attention mask.
        continuous: of the shape that `continuous_input` gives.
    """
    given = batch.get("input")
    if isinstance(given, Tensor) and given.is_floating_point():
        return task({**batch, "input": continuous})
    handle = _embedding(task).register_forward_hook(lambda *_: continuous)
    try:
        return task(batch)
    finally:
        handle.remove()


def with_targets(batch: Batch, classes: Tensor) -> Batch:
    """A copy of the batch with other targets.

    Args:
        batch: holds `target` `(B,)`, or `labels` `(B, T)` with -100 where a token is not scored.
        classes: `(N,)`, in the order of `task.predictions`: samples, or the labelled tokens of all
            sequences, the first position apart.
    """
    if "labels" not in batch:
        return {**batch, "target": classes}
    labels: Any = batch["labels"].clone()
    labels[:, 1:][labels[:, 1:] != -100] = classes
    return {**batch, "labels": labels}


def _embedding(task: Task) -> nn.Embedding:
    for module in task.network.modules():
        if isinstance(module, nn.Embedding):
            return module
    msg = (
        f"{type(task.network).__name__} takes no floating `input` and has no nn.Embedding: noise "
        "and gradients need a continuous input"
    )
    raise TypeError(msg)
