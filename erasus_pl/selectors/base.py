"""The contract of a selector: pick the part of the forget set that is worth the work."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from erasus_pl.callbacks.training_record import TrainingRecord
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch

__all__ = ["Coreset", "Selector", "check_coreset", "highest"]


@dataclass(frozen=True)
class Coreset:
    """What a selector picked.

    Args:
        indices: `(k,)` positions into the dataset it was given.
        weights: `(k,)` positive weights of those samples in every mean, or none.
    """

    indices: Tensor
    weights: Tensor | None = None


class Selector(Callback):
    """Picks a coreset of the forget set before the first step.

    Fill in `scores(strategy, dataset)`, higher meaning more worth the work, or, for methods that
    pick a set as a whole, `select(strategy, dataset, k)`. The pick is kept in checkpoints, so that
    a resumed run does not pick again.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        seed: of whatever the selector draws.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[dict[str, Any]] = {}
    record: str | None = None

    def __init__(self, fraction: float | None = None, k: int | None = None, seed: int = 0) -> None:
        if (fraction is None) == (k is None):
            msg = f"give exactly one of `fraction` and `k`, got fraction={fraction} and k={k}"
            raise ValueError(msg)
        if fraction is not None and not 0 < fraction <= 1:
            msg = f"`fraction` must be in (0, 1], got {fraction}"
            raise ValueError(msg)
        if k is not None and k < 1:
            msg = f"`k` must be at least 1, got {k}"
            raise ValueError(msg)
        self.fraction = fraction
        self.k = k
        self.seed = seed
        self.seconds: float | None = None
        self._picked: dict[str, Tensor | None] = {}

    def recorder(self) -> TrainingRecord | None:
        """What must record the original's training for this selector; none where nothing must.

        `read_record(self, strategy)` reads the file; `fit` sets `record` where it trains the
        original, so give that option and nothing else for it.
        """
        return None

    def scores(self, strategy: Strategy, dataset: Any) -> Tensor:
        """Score every sample of the dataset, `(n,)`; the highest are kept."""
        msg = f"{type(self).__name__} must define `scores` or `select`"
        raise NotImplementedError(msg)

    def select(self, strategy: Strategy, dataset: Any, k: int) -> Coreset:
        """Pick k samples: here those with the highest score; ties go to the first."""
        return Coreset(highest(self.finite_scores(strategy, dataset), k))

    def finite_scores(self, strategy: Strategy, dataset: Any) -> Tensor:
        """The scores, `(n,)`, on the CPU.

        Raises:
            ValueError: there is not one for each sample, or one is not finite.
        """
        scores = self.scores(strategy, dataset)
        if scores.shape != (len(dataset),):
            msg = (
                f"{type(self).__name__}.scores must return one score per sample, "
                f"({len(dataset)},), got {tuple(scores.shape)}"
            )
            raise ValueError(msg)
        if not scores.isfinite().all():
            msg = (
                f"{type(self).__name__}: {int((~scores.isfinite()).sum())} of {len(scores)} scores "
                "are not finite; the model has diverged on them, or its input holds NaN"
            )
            raise ValueError(msg)
        return scores.cpu()

    def batches(self, strategy: Strategy, dataset: Any) -> Iterator[Batch]:
        """The dataset in its own order, as collated batches on the strategy's device."""
        for batch in strategy.data.sweep(dataset):
            yield strategy.trainer.strategy.batch_to_device(batch)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pick, or take up the pick of the run that is resumed, and hand it to the data."""
        if not isinstance(pl_module, Strategy):
            msg = (
                f"{type(self).__name__} selects for a Strategy, and the model is a "
                f"{type(pl_module).__name__}; remove it from trainer.callbacks"
            )
            raise TypeError(msg)
        data = pl_module.data
        if not self._picked:
            missing = sorted(self.needs - pl_module.task.capabilities)
            if missing:
                msg = (
                    f"{type(self).__name__} needs a task with {missing}, and "
                    f"{type(pl_module.task).__name__} over "
                    f"{type(pl_module.task.network).__name__} has none"
                )
                raise TypeError(msg)
            start = time.perf_counter()
            dataset = data.forget_set
            modes = {m: m.training for m in pl_module.modules()}
            pl_module.eval()
            try:
                with torch.random.fork_rng():
                    torch.manual_seed(self.seed)
                    k = self.budget(pl_module, dataset)
                    coreset = self.select(pl_module, dataset, k)
            finally:
                for module, mode in modes.items():
                    module.training = mode
            check_coreset(coreset, k, len(dataset), type(self).__name__)
            self._picked = {
                "indices": trainer.strategy.broadcast(coreset.indices.cpu().long()),
                "weights": trainer.strategy.broadcast(coreset.weights),
            }
            self.seconds = time.perf_counter() - start
            for logger in trainer.loggers:
                logger.log_metrics(
                    {"coreset/size": float(k), "coreset/seconds": self.seconds}, step=0
                )
        data.use_coreset(self._picked["indices"], self._picked["weights"])

    @property
    def needs(self) -> frozenset[str]:
        """What the task must provide: `requires`, or what the arguments make of it."""
        return frozenset(self.requires)

    def budget(self, strategy: Strategy, dataset: Any) -> int:
        """How many samples to keep: as `fraction` or `k` says."""
        return self.size(len(dataset))

    def size(self, n: int) -> int:
        """How many of n samples to keep."""
        if self.fraction is not None:
            return max(1, round(self.fraction * n))
        if self.k is None or self.k > n:
            msg = f"`k` must be at most the size of the forget set, {n}, got {self.k}"
            raise ValueError(msg)
        return self.k

    def state_dict(self) -> dict[str, Any]:
        """The pick and what it cost."""
        return {**self._picked, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the pick of the run that is resumed."""
        self.seconds = state_dict["seconds"]
        self._picked = {k: v for k, v in state_dict.items() if k != "seconds"}


def highest(scores: Tensor, k: int) -> Tensor:
    """Positions of the k highest of `(n,)` scores, ascending; ties go to the first."""
    return scores.sort(descending=True, stable=True).indices[:k].sort().values


def check_coreset(coreset: Coreset, k: int, n: int, name: str) -> None:
    """Refuse what is not a coreset of k of n samples.

    Raises:
        ValueError: positions or weights are not as they must be.
    """
    indices = coreset.indices
    if indices.shape != (k,) or indices.unique().numel() != k:
        msg = f"{name}.select must return {k} distinct positions, got {indices.shape}"
        raise ValueError(msg)
    if indices.min() < 0 or indices.max() >= n:
        msg = f"{name}.select must return positions in [0, {n}), got {indices}"
        raise ValueError(msg)
    if coreset.weights is not None and (
        coreset.weights.shape != (k,) or not bool((coreset.weights > 0).all())
    ):
        msg = f"{name}.select must return {k} positive weights, got {coreset.weights}"
        raise ValueError(msg)
