"""Pipeline: one strategy after another, such as one that impairs and one that repairs.

Tarun et al., "Fast yet Effective Machine Unlearning" (IEEE TNNLS 2023, arXiv:2111.08947), Sec. IV,
unlearn in two phases: an impair step moves the weights away from what fits D_f, and a repair step
trains on D_r what the first one broke. θ_0 is the original and θ_k = A_k(θ_{k−1}) what the k-th
strategy makes of what the one before left; here any strategies, as many as are given, each for
its own epochs. A stage equals a run of its own on θ_{k−1}, bit for bit, down to the order of
samples; but the original that a stage may hold on to is θ_0.
"""

from collections.abc import Callable
from typing import ClassVar

import erasus_pl.strategies as room
from erasus_pl.strategies._stages import Staged
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import OptimizerCallable, Task

__all__ = ["Pipeline"]


class Pipeline(Staged, Strategy):
    """Run strategies one after another, each on what the one before left.

    Needs `trainer.max_epochs` to be the sum of `epochs`, or -1. What a stage remembers of its start
    beside the original must be in its own part of checkpoints for a resume to be exact.

    Args:
        task: the trained model.
        optimizer: of stages that name none; if not given, each has its own default.
        stages: the strategies, each by `class_path` and `init_args` without `task`. If not given,
            NegGradPlus to impair and FineTune to repair, at their defaults.
        epochs: how long each stage runs; 1 for one that edits the weights once. The paper takes one
            epoch for either phase.
    """

    paper: ClassVar[dict] = {
        "title": "Fast Yet Effective Machine Unlearning",
        "year": 2023,
        "arxiv": "2111.08947",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        stages: list[Callable[[Task], Strategy]] | None = None,
        epochs: tuple[int, ...] = (1, 1),
    ) -> None:
        super().__init__(task, optimizer)
        given = stages if stages is not None else [room.NegGradPlus, room.FineTune]  # type: ignore[attr-defined]
        self.compose("stages", given, epochs, optimizer)
