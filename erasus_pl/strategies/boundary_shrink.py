"""Boundary Shrink: teach forget samples the class across their nearest decision boundary.

Chen et al., "Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the Decision
Boundary" (CVPR 2023, arXiv:2303.11570): each forget sample is moved by one step uphill on the
original's loss, x' = x + ε sign(∇_x ℓ(f_{θ_o}(x), y)); the incorrect class that is most likely
there, y_nbi = argmax_{c ≠ y} f_{θ_o}(x')_c, is the nearest; then ℓ(f_θ(x), y_nbi) is minimised over
D_f, which hands the class's region to its neighbours. No retain sample is seen.

The published code takes the argmax over all classes, so that a sample whose step ε is too short to
cross the boundary is taught its own class again; the paper's "nearest but incorrect" excludes
that. Inputs are not clamped to a range. Of tokens the step is taken in what the first embedding
gives, and every labelled token has its own nearest one: this implementation's reading.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task
from erasus_pl.tasks.inputs import continuous_input, forward_from, with_targets

__all__ = ["BoundaryShrink", "nearest_incorrect", "uphill"]


def uphill(inputs: Tensor, gradient: Tensor, bound: float) -> Tensor:
    """One step x' = x + ε sign(∇_x ℓ), in the shape of x (arXiv:2303.11570, boundary shrink).

    Args:
        inputs: x.
        gradient: ∇_x ℓ(f(x), y), of the same shape.
        bound: ε.
    """
    return inputs + bound * gradient.sign()


def nearest_incorrect(logits: Tensor, target: Tensor) -> Tensor:
    """y_nbi = argmax_{c ≠ y} f(x')_c, `(N,)` (arXiv:2303.11570, boundary shrink).

    Args:
        logits: f(x'), `(N, C)` with C ≥ 2.
        target: y, `(N,)`.
    """
    return logits.scatter(-1, target.unsqueeze(-1), float("-inf")).argmax(-1)


class BoundaryShrink(Strategy):
    """Learn the nearest wrong class of each forget sample; sees no retain sample.

    Made for forgetting a class. Single samples lie where others of their class stay, and teaching
    them a neighbouring class bends the boundary there.

    Args:
        task: the trained model.
        optimizer: SGD with lr 1e-5, momentum 0.9 and no weight decay by default, for 10 epochs.
            Search its lr: on a small network much more is needed.
        bound: ε, the length of the step in each input dimension, in units of the input; above 0.
    """

    loader_mode = "forget"
    needs_original = True
    requires = ("targets",)
    paper: ClassVar[dict] = {
        "title": "Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the Decision "
        "Boundary",
        "year": 2023,
        "arxiv": "2303.11570",
    }
    limits: ClassVar[dict] = {
        "class": "its learning rate, made for large networks, hardly moves a small one; try 0.003",
        "random": "a learning rate of 1e-5 is felt by no small network; made for classes",
    }

    def __init__(
        self, task: Task, optimizer: OptimizerCallable | None = None, bound: float = 0.1
    ) -> None:
        super().__init__(task, optimizer)
        if bound <= 0:
            msg = f"`bound` must be above 0, got {bound}"
            raise ValueError(msg)
        self.bound = bound

    def unlearning_losses(self, forget: Batch, retain: Any) -> dict[str, Tensor]:
        """The task loss of the forget batch under the nearest incorrect classes."""
        moved = with_targets(forget, self._nearest(forget))
        return {"forget_nearest": self.task.loss(moved)}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 1e-5."""
        return torch.optim.SGD(parameters, lr=1e-5, momentum=0.9)

    def _nearest(self, batch: Batch) -> Tensor:
        original = self.original
        clean = continuous_input(original, batch)
        with torch.enable_grad():
            x = clean.clone().requires_grad_()
            loss = original.per_sample_loss(forward_from(original, batch, x), batch).sum()
            (gradient,) = torch.autograd.grad(loss, [x])
        with torch.no_grad():
            outputs = forward_from(original, batch, uphill(clean, gradient, self.bound))
            return nearest_incorrect(*original.predictions(outputs, batch))
