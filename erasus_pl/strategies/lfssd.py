"""Loss-free selective synaptic dampening: importance without labels.

Foster et al., "Loss-Free Machine Unlearning" (ICLR 2024 tiny paper, arXiv:2402.19308). Selection
and dampening are those of SSD (arXiv:2308.07707): θ_i ← min(λ I_D,i / I_Df,i, 1) θ_i wherever
I_Df,i > α I_D,i. The importance is the sensitivity of the output's size instead of the Fisher
information of the loss, I_i = E|∂‖f_θ(x)‖₂² / ∂θ_i| (after Aljundi et al. 2018, arXiv:1711.09601),
so no label is read. The expectation is over samples: the magnitude of a batch's mean gradient, as
in the published code, lets samples of opposite sign cancel and makes α depend on the batch size.
"""

import warnings
from typing import ClassVar

import torch
from torch import Tensor

from erasus_pl.linalg import PerSampleGradients, dampen, pooled_importance
from erasus_pl.strategies.base import NoEffectWarning, Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["LFSSD", "squared_output_norm"]


def squared_output_norm(outputs: Tensor, mask: Tensor | None = None) -> Tensor:
    """‖f_θ(x)‖₂² of each sample, `(B,)` (arXiv:2402.19308).

    Args:
        outputs: f_θ(x), `(B, …)`.
        mask: `(B, T)`, zero where an output `(B, T, …)` is of padding and does not count.
    """
    squares = outputs.square()
    if mask is not None:
        squares = squares.flatten(2).sum(2) * mask
    return squares.flatten(1).sum(1)


class LFSSD(Strategy):
    """Dampen, once and without labels, the weights that move the output on the forget set most.

    Needs `trainer.max_epochs: 1`. With a coreset the importance to D_f is estimated on it.

    Args:
        task: the trained model.
        optimizer: not used; the weights are edited in closed form.
        alpha: selection weighting α, at least 0; SSD's 10 for ResNet-18. Importances of magnitudes
            differ less between sets than those of squares do, so that smaller values select. Since
            D contains D_f, at or above |D| / |D_f| nothing is selected.
        lam: dampening constant λ, at least 0; 1 in SSD.
    """

    loader_mode = "single_pass"
    paper: ClassVar[dict] = {
        "title": "Loss-Free Machine Unlearning",
        "year": 2024,
        "arxiv": "2402.19308",
    }
    limits: ClassVar[dict] = {
        "class": "at `alpha` 10 a small network has no weight that is selected; try 2",
        "random": "at `alpha` 10 a small network has no weight that is selected",
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
        """Sum the magnitudes of the per-sample gradients of both sets."""
        if self._gradients is None:
            self._gradients = PerSampleGradients(self.task, self._sizes)
        for name, batch in (("forget", forget), ("retain", retain)):
            if batch is None:
                continue
            for parameter, magnitudes in self._gradients.magnitudes(batch).items():
                self.add(f"{name}/{parameter}", magnitudes)
            samples = torch.tensor(float(len(batch["index"])), device=batch["index"].device)
            self.add(name, batch["weight"].sum() if "weight" in batch else samples)

    def edit(self) -> None:
        """Dampen every trainable weight."""
        data = self.data
        for name, parameter in self.trainable.items():
            forget = self.totals[f"forget/{name}"] / self.totals["forget"]
            retain = self.totals[f"retain/{name}"] / self.totals["retain"]
            whole = pooled_importance(forget, retain, len(data.forget_set), len(data.retain_set))
            parameter.copy_(dampen(parameter, whole, forget, self.alpha, self.lam))

    def _sizes(self, batch: Batch) -> Tensor:
        sizes = squared_output_norm(self.task(batch), batch.get("attention_mask"))
        return sizes * batch["weight"] if "weight" in batch else sizes
