"""Parts that benchmarks name in YAML: data in memory, networks that note when they are called."""

import numpy as np
import torch
from _measure import clock

from datamodules import ArrayDataset, Pools, UnlearningDataModule
from erasus_pl.networks import MLP, ResNet18
from erasus_pl.requests import ForgetRequest

__all__ = ["MARKS", "MemoryData", "TimedMLP", "TimedResNet18", "pixels"]

MARKS: list[tuple[float, float]] = []


def pixels(n: int, shape: list[int], classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs `(n, *shape)` and targets `(n,)`: what is timed does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, *shape, generator=generator)
    return inputs, torch.randint(classes, (n,), generator=generator)


class MemoryData(UnlearningDataModule):
    """`pixels`, with a request that names what is forgotten.

    Args:
        request: what must go.
        n: training samples.
        shape: of an input.
        batch_size: samples of a batch.
    """

    def __init__(
        self, request: ForgetRequest, n: int, shape: list[int], batch_size: int = 64
    ) -> None:
        super().__init__(request, batch_size)
        self.n, self.shape = n, shape

    def load(self) -> Pools:
        inputs, target = pixels(self.n, self.shape)
        train = ArrayDataset({"input": inputs, "target": target})
        held_out = ArrayDataset({"input": inputs[:128].clone(), "target": target[:128]})
        return Pools("memory", train, held_out, {"row": np.arange(self.n)}, {})


class TimedMLP(MLP):
    """Appends a moment to `MARKS` at every forward pass of training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            MARKS.append(clock())
        return super().forward(x)


class TimedResNet18(ResNet18):
    """Appends a moment to `MARKS` at every forward pass of training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            MARKS.append(clock())
        return super().forward(x)
