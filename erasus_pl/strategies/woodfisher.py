"""Influence unlearning: the step that influence functions say leaving D_f out would have taken.

Jia et al., "Model Sparsity Can Simplify Machine Unlearning" (NeurIPS 2023, arXiv:2304.04934), their
baseline IU, after Izzo et al. (AISTATS 2021, arXiv:2002.10077): training weighs sample i by 1/N;
with weights w of 1/|D_r| on D_r and 0 on D_f the minimum moves, to first order, by
H⁻¹ Σ_i (1/N − w_i) ∇ℓ_i = H⁻¹ (|D_f| / N) (ḡ_f − ḡ_r), with ḡ the mean gradients of the two sets.
H is replaced by WoodFisher, the empirical Fisher F = λI + (1/m) Σ g gᵀ of single retain samples
(Singh and Alistarh 2020, arXiv:2004.14340), and the step is scaled by α.
F⁻¹ is applied exactly; the published code carries on the first sample's direction instead of each
sample's own, and skips the first sample itself.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Subset

from erasus_pl.linalg import (
    PerSampleGradients,
    inverse_fisher_product,
    unflatten,
)
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["WoodFisher", "reweighting_gradient"]


def reweighting_gradient(forget: Tensor, retain: Tensor, n_forget: int, n_retain: int) -> Tensor:
    """Σ_i (1/N − w_i) ∇ℓ_i for w = 1/|D_r| on D_r and 0 on D_f (arXiv:2304.04934).

    Args:
        forget: mean gradient over D_f, any shape.
        retain: mean gradient over D_r, of that shape.
        n_forget: |D_f|.
        n_retain: |D_r|.
    """
    return n_forget / (n_forget + n_retain) * (forget - retain)


class WoodFisher(Strategy):
    """Take the one influence-function step from all of D towards D_r, with a low-rank Fisher.

    Needs `trainer.max_epochs: 1`. Holds the gradients of `samples` retain samples, as many numbers
    as that times the trainable weights. With a coreset the gradient of D_f is estimated on it.

    Args:
        task: the trained model.
        optimizer: not used; the weights are edited in closed form.
        alpha: scale of the step; 1 is what the theory gives, the paper searches 1 to 20.
        samples: retain samples m that make up the Fisher, drawn under the data's seed; 1000 in
            the paper's code.
        damping: λ, above 0; 1 in the paper's code.
    """

    loader_mode = "single_pass"
    paper: ClassVar[dict] = {
        "title": "Model Sparsity Can Simplify Machine Unlearning",
        "year": 2023,
        "arxiv": "2304.04934",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        alpha: float = 1.0,
        samples: int = 1000,
        damping: float = 1.0,
    ) -> None:
        super().__init__(task, optimizer)
        if samples < 1:
            msg = f"`samples` must be at least 1, got {samples}"
            raise ValueError(msg)
        if not damping > 0:
            msg = f"`damping` must be above 0, got {damping}"
            raise ValueError(msg)
        self.alpha = alpha
        self.samples = samples
        self.damping = damping

    def accumulate(self, forget: Batch | None, retain: Batch | None) -> None:
        """Sum the gradients of both sets."""
        weights = self.trainable
        for name, batch in (("forget", forget), ("retain", retain)):
            if batch is None:
                continue
            losses = self._losses(batch)
            weight = batch.get("weight", torch.ones_like(losses))
            total = (losses * weight).sum()
            found = torch.autograd.grad(total, list(weights.values()), materialize_grads=True)
            self.add(name, torch.cat([gradient.flatten() for gradient in found]))
            self.add(f"{name}/samples", weight.sum())

    def edit(self) -> None:
        """Take the step."""
        totals, data = self.totals, self.data
        v = reweighting_gradient(
            totals["forget"] / totals["forget/samples"],
            totals["retain"] / totals["retain/samples"],
            len(data.forget_set),
            len(data.retain_set),
        )
        step = inverse_fisher_product(self._retain_gradients(), v, self.damping)
        for name, change in unflatten(step, self.trainable).items():
            self.trainable[name].add_(self.alpha * change)

    def _retain_gradients(self) -> Tensor:
        """Gradients `(m, P)` of single retain samples, the same on every process."""
        generator = torch.Generator().manual_seed(self.data.seed)
        retain = self.data.retain_set
        drawn = torch.randperm(len(retain), generator=generator)[: self.samples].sort().values
        gradients = PerSampleGradients(self.task, self._losses)
        found = []
        for batch in self.data.sweep(Subset(retain, drawn.tolist())):
            made = gradients.gradients(self.trainer.strategy.batch_to_device(batch))
            found.append(torch.cat([g.flatten(1) for g in made.values()], 1))
        return torch.cat(found)

    def _losses(self, batch: Batch) -> Tensor:
        return self.task.per_sample_loss(self.task(batch), batch)
