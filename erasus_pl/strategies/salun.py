"""SalUn: random labels, learnt by the salient half of the weights alone.

Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency" (ICLR 2024,
arXiv:2310.12508): the weight saliency map m_S = 1[|∇_θ L(θ_o; D_f)| ≥ γ], with γ the median, and
θ_u = m_S ⊙ (Δθ + θ_o) + (1 − m_S) ⊙ θ_o, where Δθ minimises the random-label objective: every epoch
ℓ(f_θ(x), y') over D_f with y' uniform over all classes, drawn anew for each batch, then
ℓ(f_θ(x), y) over D_r. The gradient is the mean over all samples of D_f or its coreset, so that a
short last batch weighs no more than others; the rest of the weights keep their value to the bit,
whatever weight decay and momentum would do.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from erasus_pl.linalg import mean_gradient, top_fraction, unflatten
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["SalUn", "salient_mask"]


def salient_mask(gradient: Tensor, fraction: float) -> Tensor:
    """The entries of largest magnitude (arXiv:2310.12508, weight saliency map), bool `(P,)`.

    Exactly round(fraction · P) are chosen, by rank as in the published code; of equal ones the
    first.

    Args:
        gradient: ∇_θ L(θ_o; D_f), `(P,)`.
        fraction: part to choose, in [0, 1]; 0.5 puts the threshold γ at the median.
    """
    return top_fraction(gradient.abs(), fraction)


class SalUn(Strategy):
    """Random-label unlearning of the weights that the forget set's gradient singles out.

    Args:
        task: the trained model.
        optimizer: SGD with lr 0.013, momentum 0.9 and weight decay 5e-4 by default, for 10 epochs.
        salient: part of the trainable weights that may change.
    """

    loader_mode = "sequential"
    needs_original = True
    requires = ("targets",)
    paper: ClassVar[dict] = {
        "title": "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both "
        "Image Classification and Generation",
        "year": 2024,
        "arxiv": "2310.12508",
    }

    def __init__(
        self, task: Task, optimizer: OptimizerCallable | None = None, salient: float = 0.5
    ) -> None:
        super().__init__(task, optimizer)
        if not 0 < salient <= 1:
            msg = f"`salient` must be in (0, 1], got {salient}"
            raise ValueError(msg)
        self.salient = salient
        self.mask: dict[str, Tensor] = {}

    def on_fit_start(self) -> None:
        """Find the salient weights of the original, the same whenever the run is resumed."""
        super().on_fit_start()
        trainable, original = self.trainable, self.original
        for name, parameter in original.named_parameters():
            parameter.requires_grad_(name in trainable)
        gradient = mean_gradient(original, self._original_losses, self.data.forget_batches())
        original.requires_grad_(False)
        chosen = salient_mask(gradient, self.salient).to(gradient.dtype)
        self.mask = {k: m.bool() for k, m in unflatten(chosen, trainable).items()}

    def unlearning_losses(self, forget: Any, retain: Any) -> dict[str, Tensor]:
        """The task loss: of a forget batch under drawn targets, of a retain batch as it is."""
        if forget is not None:
            return {"forget_random": self.task.loss(self.task.random_targets(forget))}
        return {"retain": self.task.loss(retain)}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the other weights out of the gradient, and so out of its norm."""
        for name, parameter in self.trainable.items():
            if parameter.grad is not None:
                parameter.grad.mul_(self.mask[name])

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then put the other weights back: weight decay and momentum move them too."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        original = dict(self.original.named_parameters())
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(torch.where(self.mask[name], parameter, original[name]))

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 0.013."""
        return torch.optim.SGD(parameters, lr=0.013, momentum=0.9, weight_decay=5e-4)

    def _original_losses(self, batch: Batch) -> Tensor:
        losses = self.original.per_sample_loss(self.original(batch), batch)
        return losses * batch["weight"] if "weight" in batch else losses
