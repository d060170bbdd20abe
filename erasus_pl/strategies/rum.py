"""RUM: refine the forget set by how much of it is memorised, and unlearn each part its own way.

Zhao et al., "What makes unlearning hard and what to do about it" (NeurIPS 2024, arXiv:2406.01257),
RUM: D_f is refined into homogeneous parts S_1, …, S_k by memorisation score, low to high, and θ_i =
A_i(θ_{i−1}, S_i, R_i) unlearns them in this order, each with a method that suits it. As in the
published code R_i = D − (S_1 ∪ … ∪ S_i): what is not yet unlearned is still to be kept. Its
combination, and the default here, does nothing about the low part, whose samples a model that never
saw them predicts as well, fine-tunes to forget the middle one, and unlearns the high one by SalUn.
The paper makes up D_f of the extremes and the middle of all training data; a request's D_f is what
it is, and is cut into parts of equal size.

The score is mem(i) = P[f(x_i) = y_i | i ∈ D] − P[f(x_i) = y_i | i ∉ D] (Feldman 2020,
arXiv:1906.05271), which takes many models. Its proxy here takes none: 1 − exp(−ℓ_i) under the
original, so one less the confidence in the true class, or in a sequence's tokens by their geometric
mean. Zhao and Triantafillou, "Scalability of memorization-based machine unlearning" (2024,
arXiv:2410.16516), find confidence a usable proxy; they average it over training, which a trained
model alone no longer shows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import erasus_pl.strategies as room
from erasus_pl.strategies._stages import Staged
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import OptimizerCallable, Task
from erasus_pl.tasks.weights import load_safely

__all__ = ["RUM", "memorisation_proxy", "refine"]


def memorisation_proxy(losses: Tensor) -> Tensor:
    """1 − exp(−ℓ), in [0, 1), `(n,)`: one less the confidence in the truth (arXiv:2410.16516).

    Args:
        losses: cross-entropies ℓ under the original, `(n,)`.
    """
    return -torch.expm1(-losses)


def refine(scores: Tensor, parts: int) -> list[Tensor]:
    """Positions of k parts by ascending score (arXiv:2406.01257, refinement), of equal size.

    Those that must be one larger come first; equal scores keep their order.

    Args:
        scores: `(n,)` with n ≥ k.
        parts: k.

    Returns:
        k tensors of positions, each in ascending order.
    """
    order = scores.sort(stable=True).indices
    return [part.sort().values for part in order.tensor_split(parts)]


class RUM(Staged, Strategy):
    """Unlearn the forget set part by part, from the least to the most memorised.

    Needs `trainer.max_epochs` to be the sum of `epochs`, or -1. With a coreset that is what is
    refined, and the rest of the forget set is neither forgotten nor retained.

    Args:
        task: the trained model.
        optimizer: of stages that name none; if not given, each has its own default.
        stages: the strategies, one for each part, each by `class_path` and `init_args` without
            `task`. If not given, FineTune, FineTune and SalUn.
        epochs: how long each stage runs; 0 to do nothing about its part, 1 for one that edits the
            weights once.
        scores: file of memorisation scores, `torch.save` of `(|D|,)` in the order of the training
            data; if not given, the confidence of the original is the proxy.
    """

    needs_original = True
    requires = ("targets",)  # of the default stages; given ones have their own
    paper: ClassVar[dict] = {
        "title": "What makes unlearning hard and what to do about it",
        "year": 2024,
        "arxiv": "2406.01257",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        stages: list[Callable[[Task], Strategy]] | None = None,
        epochs: tuple[int, ...] = (0, 10, 5),
        scores: str | None = None,
    ) -> None:
        super().__init__(task, optimizer)
        default = [room.FineTune, room.FineTune, room.SalUn]  # type: ignore[attr-defined]
        given = stages if stages is not None else default
        self.compose("stages", given, epochs, optimizer)
        self.scores = scores
        self.parts: list[Tensor] = []

    def at_start(self) -> None:
        """Refine the forget set by the original, the same whenever the run is resumed."""
        data = self.data
        whole = data.forget_set.positions if data.coreset is None else data.coreset
        if len(whole) < len(self.stages):
            msg = (
                f"`stages`: {len(whole)} forget samples do not make {len(self.stages)} parts; give "
                "fewer stages"
            )
            raise ValueError(msg)
        found = self._proxy() if self.scores is None else self._read(self.scores)[whole]
        self.parts = [whole[part].sort().values for part in refine(found, len(self.stages))]
        self.between(self.running or 0)

    def between(self, stage: int) -> None:
        """Narrow the data to the part of a stage: what comes later is still to be kept."""
        data = self.data
        data.use_part(None)
        kept = torch.cat([data.retain_set.positions, *self.parts[stage + 1 :]])
        data.use_part(self.parts[stage], kept.sort().values)

    def teardown(self, stage: str) -> None:
        """What is measured is the whole request."""
        super().teardown(stage)
        if self.parts:
            self.data.use_part(None)

    @torch.no_grad()
    def _proxy(self) -> Tensor:
        losses = [
            self.original.per_sample_loss(self.original(batch), batch)
            for batch in self.data.forget_batches()
        ]
        return memorisation_proxy(torch.cat(losses)).cpu()

    def _read(self, path: str) -> Tensor:
        remedy = "write it with torch.save(scores, path)"
        found: Any = load_safely(Path(path), "scores", remedy)
        n = len(self.data.train_set)
        if not isinstance(found, Tensor) or found.shape != (n,) or not found.isfinite().all():
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            msg = (
                f"`scores`: {path!r} must hold a finite number for each of the {n} training "
                f"samples, got {shape}; {remedy}"
            )
            raise ValueError(msg)
        return found
