"""Parts that benchmarks name in YAML: data in memory, networks that say when they are called."""

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from _measure import clock

from datamodules import ArrayDataset, Pools, UnlearningDataModule
from erasus_pl.networks import MLP, ResNet18
from erasus_pl.requests import ForgetRequest

__all__ = ["RACE", "MemoryData", "Race", "TimedMLP", "TimedResNet18", "pixels"]


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


class Race:
    """Lets a rival make a few steps whenever a network under test has made as many.

    So both sides see the same second of a machine whose speed changes. The rival's CPU seconds are
    those of its own thread; all other CPU seconds of the process, a progress bar's thread among
    them, are counted against the side under test.
    """

    def __init__(self) -> None:
        self.start(iter(()), 1, 1)

    def start(self, rival: Iterator[Any], burst: int, forwards: int) -> None:
        """Begin anew.

        Args:
            rival: makes a step whenever it is asked for the next.
            burst: steps that each side makes in turn.
            forwards: forward passes to a step of the side under test.
        """
        self.rival, self.burst, self.forwards = rival, burst, forwards
        self.calls = 0
        self.moments: list[tuple[float, float]] = []
        self.rivals: list[tuple[float, float]] = []

    @property
    def steps(self) -> int:
        """Steps that the side under test has begun."""
        return -(-self.calls // self.forwards)

    def forward(self) -> None:
        """Note a forward pass of training."""
        step, rest = divmod(self.calls, self.forwards)
        self.calls += 1
        if rest or step % self.burst:
            return
        cpu, wall = clock()
        thread = time.thread_time()
        for _ in islice(self.rival, self.burst):
            pass
        self.rivals.append((time.thread_time() - thread, time.perf_counter() - wall))
        self.moments.append((cpu, wall))

    def bursts(self, skip: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """`(cpu, wall)` seconds of a step, of the side under test and of its rival, by burst."""
        found = []
        for i in range(skip, len(self.moments) - 1):
            begin, end, theirs = self.moments[i], self.moments[i + 1], self.rivals[i]
            ours = tuple(e - b - t for b, e, t in zip(begin, end, theirs, strict=True))
            found.append(tuple((c / self.burst, w / self.burst) for c, w in (ours, theirs)))
        return found


RACE = Race()


class TimedMLP(MLP):
    """Tells the race of every forward pass of training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            RACE.forward()
        return super().forward(x)


class TimedResNet18(ResNet18):
    """Tells the race of every forward pass of training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            RACE.forward()
        return super().forward(x)
