"""Selective synaptic dampening: shrink the weights that matter more to D_f than to D.

Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening"
(AAAI 2024, arXiv:2308.07707). One pass measures the importance of every weight as the
diagonal Fisher information, E[(∂ℓ/∂θ_i)²], over D_f and over all of D; then, without training,
θ_i ← β θ_i with β = min(λ I_D,i / I_Df,i, 1) wherever I_Df,i > α I_D,i. The expectation is over
samples: squaring a batch's mean gradient, as the published code does, would make α depend on the
batch size.
"""

import warnings
from typing import ClassVar

import torch
from torch import Tensor

from erasus_pl.linalg import PerSampleGradients, dampen, pooled_importance
from erasus_pl.strategies.base import NoEffectWarning, Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["SSD"]


class SSD(Strategy):
    """Dampen, once, the weights that are specific to the forget set.

    Needs `trainer.max_epochs: 1`. With a coreset the importance to D_f is estimated on it.

    Args:
        task: the trained model.
        optimizer: not used; the weights are edited in closed form.
        alpha: selection weighting α; 10 in the paper's experiments on ResNet-18. Since D contains
            D_f, I_Df is at most |D| / |D_f| times I_D: at or above that nothing is selected.
        lam: dampening constant λ; 1 in the paper.
    """

    loader_mode = "single_pass"
    paper: ClassVar[dict] = {
        "title": "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
        "year": 2024,
        "arxiv": "2308.07707",
    }
    limits: ClassVar[dict] = {
        "class": "with one of ten classes `alpha` 10 selects no weight; try 3",
        "random": "random samples have no weights to themselves: dampening breaks the rest",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        alpha: float = 10.0,
        lam: float = 1.0,
    ) -> None:
        super().__init__(task, optimizer)
        for name, value in (("alpha", alpha), ("lam", lam)):
            if value < 0:
                msg = f"`{name}` must be at least 0, got {value}"
                raise ValueError(msg)
        self.alpha = alpha
        self.lam = lam
        self._gradients: PerSampleGradients | None = None

    def on_train_start(self) -> None:
        """Say so where no weight can be selected, whatever the data."""
        super().on_train_start()
        data = self.data
        limit = (len(data.forget_set) + len(data.retain_set)) / len(data.forget_set)
        if self.alpha >= limit:
            warnings.warn(
                f"`alpha` must be below |D| / |D_f| = {limit:.1f} for any weight to be selected, "
                f"got {self.alpha}",
                NoEffectWarning,
                stacklevel=2,
            )

    def accumulate(self, forget: Batch | None, retain: Batch | None) -> None:
        """Sum the squared per-sample gradients of both sets."""
        if self._gradients is None:
            self._gradients = PerSampleGradients(self.task, self._losses)
        for name, batch in (("forget", forget), ("retain", retain)):
            if batch is None:
                continue
            for parameter, squares in self._gradients.squares(batch).items():
                self.add(f"{name}/{parameter}", squares)
            self.add(name, batch["weight"].sum() if "weight" in batch else _count(batch))

    def edit(self) -> None:
        """Dampen every trainable weight."""
        data = self.data
        for name, parameter in self.trainable.items():
            forget = self.totals[f"forget/{name}"] / self.totals["forget"]
            retain = self.totals[f"retain/{name}"] / self.totals["retain"]
            whole = pooled_importance(forget, retain, len(data.forget_set), len(data.retain_set))
            parameter.copy_(dampen(parameter, whole, forget, self.alpha, self.lam))

    def _losses(self, batch: Batch) -> Tensor:
        losses = self.task.per_sample_loss(self.task(batch), batch)
        return losses * batch["weight"].sqrt() if "weight" in batch else losses


def _count(batch: Batch) -> Tensor:
    return torch.tensor(float(len(batch["index"])), device=batch["index"].device)
