"""Adaptive selective synaptic dampening: SSD that finds its α by itself.

Schoepf et al., "Parameter-tuning-free data entry error unlearning with adaptive selective synaptic
dampening" (2024, arXiv:2402.10098). Importance, selection and dampening are those of SSD
(arXiv:2308.07707): θ_i ← min(I_D,i / I_Df,i, 1) θ_i wherever I_Df,i > α I_D,i, with λ = 1. The
selection weighting α is the p-th percentile of the relative importances I_Df,i / I_D,i of all
weights, and p = 100 − ln(1 + 100 |D_f| / |D|): the more is to be forgotten, the more weights are
dampened, and that part, not a multiple of the importance, is what carries over between models.
"""

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from erasus_pl.linalg import PerSampleGradients, dampen, pooled_importance
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch

__all__ = ["ASSD", "adaptive_alpha", "forget_percentile"]


def forget_percentile(n_forget: int, n: int) -> float:
    """The percentile 100 − ln(1 + 100 |D_f| / |D|), in (95.3, 100) (arXiv:2402.10098)."""
    return 100 - math.log1p(100 * n_forget / n)


def adaptive_alpha(
    importances: Iterable[Tensor], forget_importances: Iterable[Tensor], percentile: float
) -> float:
    """The percentile of I_Df / I_D over all weights, linear between ranks (arXiv:2402.10098).

    Weights that matter to neither set have no relative importance and are left out; without any
    other the result is infinite.

    Args:
        importances: I_D, a tensor for each parameter.
        forget_importances: I_Df, of the same shapes.
        percentile: p in [0, 100].
    """
    pairs = zip(importances, forget_importances, strict=True)
    ratios = torch.cat([(forget / whole).flatten() for whole, forget in pairs])
    ordered = ratios[ratios.isfinite()].sort().values
    if not len(ordered):
        return math.inf
    rank = percentile / 100 * (len(ordered) - 1)
    below = math.floor(rank)
    low, high = ordered[below].item(), ordered[math.ceil(rank)].item()
    return low + (rank - below) * (high - low)


class ASSD(Strategy):
    """Dampen, once, the few weights most specific to the forget set; nothing to tune.

    Needs `trainer.max_epochs: 1`. With a coreset the importance to D_f is estimated on it; the
    percentile counts all of D_f.

    Args:
        task: the trained model.
        optimizer: not used; the weights are edited in closed form.
    """

    loader_mode = "single_pass"
    paper: ClassVar[dict] = {
        "title": "Parameter-tuning-free data entry error unlearning with adaptive selective "
        "synaptic dampening",
        "year": 2024,
        "arxiv": "2402.10098",
    }
    _gradients: PerSampleGradients | None = None

    def accumulate(self, forget: Batch | None, retain: Batch | None) -> None:
        """Sum the squared per-sample gradients of both sets."""
        if self._gradients is None:
            self._gradients = PerSampleGradients(self.task, self._losses)
        for name, batch in (("forget", forget), ("retain", retain)):
            if batch is None:
                continue
            for parameter, squares in self._gradients.squares(batch).items():
                self.add(f"{name}/{parameter}", squares)
            samples = torch.tensor(float(len(batch["index"])), device=batch["index"].device)
            self.add(name, batch["weight"].sum() if "weight" in batch else samples)

    def edit(self) -> None:
        """Find α over all trainable weights, then dampen them."""
        n_forget, n_retain = len(self.data.forget_set), len(self.data.retain_set)
        forget, whole = {}, {}
        for name in self.trainable:
            forget[name] = self.totals[f"forget/{name}"] / self.totals["forget"]
            retain = self.totals[f"retain/{name}"] / self.totals["retain"]
            whole[name] = pooled_importance(forget[name], retain, n_forget, n_retain)
        percentile = forget_percentile(n_forget, n_forget + n_retain)
        alpha = adaptive_alpha(whole.values(), forget.values(), percentile)
        for name, parameter in self.trainable.items():
            parameter.copy_(dampen(parameter, whole[name], forget[name], alpha, 1.0))

    def _losses(self, batch: Batch) -> Tensor:
        losses = self.task.per_sample_loss(self.task(batch), batch)
        return losses * batch["weight"].sqrt() if "weight" in batch else losses
