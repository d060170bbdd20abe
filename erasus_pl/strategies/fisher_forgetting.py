"""Fisher forgetting: noise on every weight, more of it where the retain set needs the weight less.

Golatkar, Achille and Soatto, "Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep
Networks" (CVPR 2020, arXiv:1911.04933). Scrubbing by Gaussian noise of covariance Σ costs
½ tr(FΣ) of loss on D_r, with F its Fisher information, and leaves information that falls with
½ λσ_h² tr(Σ⁻¹), with σ_h the distance between weights trained with and without D_f. The sum is
least at Σ = (λσ_h²)^{1/2} F^{-1/2}, hence θ = θ_o + (λσ_h²)^{1/4} F^{-1/4} n with n ~ N(0, I). The
published code draws with the standard deviation (α / F)^{1/2} instead, which is not that minimum.

F is the diagonal of E_{x ∈ D_r, y ~ p_θ(y|x)} [(∂ log p_θ(y|x) / ∂θ)²]: over the model's own
labels, so that it does not vanish where the model fits. Classifiers sum over all classes; for
sequences, whose labellings are too many, one is drawn from the model for each sample.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from erasus_pl.linalg import PerSampleGradients
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["FisherForgetting", "scrubbing_std"]


def scrubbing_std(fisher: Tensor, alpha: float, floor: float = 0.0) -> Tensor:
    """Standard deviation of the optimal noise, α^{1/4} F^{-1/4} (arXiv:1911.04933).

    Args:
        fisher: diagonal of F, any shape.
        alpha: λσ_h².
        floor: smaller values of F count as this, so that weights without any stay finite.
    """
    return (alpha / fisher.clamp(min=floor)).pow(0.25)


class FisherForgetting(Strategy):
    """Scrub, once, with noise in inverse proportion to what the retain set knows of each weight.

    Needs `trainer.max_epochs: 1`. The forget set is not read: what is not needed for D_r is noised.
    The noise follows the data's seed, and is the same on all processes. On trained digits no α
    forgets a class and keeps the rest.

    Args:
        task: the trained model.
        optimizer: not used; the weights are edited in closed form.
        alpha: λσ_h², at least 0; sets how much of the loss on D_r is paid. Search it for each
            model: the noise grows with its fourth root.
        floor: above 0; values of the Fisher diagonal below it count as it.
    """

    loader_mode = "retain"
    requires = ("targets", "log_likelihood")
    paper: ClassVar[dict] = {
        "title": "Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks",
        "year": 2020,
        "arxiv": "1911.04933",
    }
    limits: ClassVar[dict] = {
        "class": "noise of this strength breaks a small network before it forgets",
        "random": "noise of this strength breaks a small network before it forgets",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        alpha: float = 1e-9,
        floor: float = 1e-8,
    ) -> None:
        super().__init__(task, optimizer)
        if alpha < 0:
            msg = f"`alpha` must be at least 0, got {alpha}"
            raise ValueError(msg)
        if not floor > 0:
            msg = f"`floor` must be above 0, got {floor}"
            raise ValueError(msg)
        self.alpha = alpha
        self.floor = floor
        self._gradients: PerSampleGradients | None = None

    def accumulate(self, forget: Batch | None, retain: Batch | None) -> None:
        """Sum the squared per-sample gradients under the model's own labels."""
        if retain is None:
            return
        if self._gradients is None:
            self._gradients = PerSampleGradients(self.task, self._losses)
        for drawn, probability in self._labels(retain):
            batch = retain | {"drawn": drawn, "probability": probability}
            for name, squares in self._gradients.squares(batch).items():
                self.add(name, squares)
        samples = float(len(retain["index"]))
        self.add("samples", torch.tensor(samples, device=retain["index"].device))

    def edit(self) -> None:
        """Add the noise to every trainable weight."""
        generator = torch.Generator().manual_seed(self.data.seed)
        for name, parameter in self.trainable.items():
            fisher = self.totals[name] / self.totals["samples"]
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            std = scrubbing_std(fisher, self.alpha, self.floor)
            parameter.add_(std * noise.to(parameter.device))

    def _labels(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Labels and their probabilities `(B,)`: every class, or one drawn sequence."""
        with torch.no_grad():
            p = self.task(batch).softmax(-1)
        if p.dim() == 2:
            return [(torch.full_like(batch["index"], c), p[:, c]) for c in range(p.shape[1])]
        drawn = torch.multinomial(p.flatten(0, 1), 1).reshape(p.shape[:2])
        return [(drawn, p.new_ones(len(p)))]

    def _losses(self, batch: Batch) -> Tensor:
        outputs, drawn = self.task(batch), batch["drawn"]
        if outputs.dim() == 3:
            drawn = drawn[:, :-1].masked_fill(batch["labels"][:, 1:] == -100, -100)
            outputs = outputs[:, :-1].transpose(1, 2)
        losses = F.cross_entropy(outputs, drawn, reduction="none")
        return losses.reshape(len(outputs), -1).sum(1) * batch["probability"].sqrt()
