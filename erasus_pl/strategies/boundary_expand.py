"""Boundary Expand: send the forget samples to a class that is taken away afterwards.

Chen et al., "Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the Decision
Boundary" (CVPR 2023, arXiv:2303.11570): the head gets a shadow unit, class C + 1, drawn anew;
ℓ(f_θ(x), C + 1) is minimised over D_f; then the unit is dropped, and the forget samples fall to
whatever class is left nearest. No retain sample is seen.

With z the logits of the C classes and s that of the shadow unit, the loss is
−log softmax((z, s))_{C+1} = softplus(logsumexp(z) − s). The unit lives beside the network, whose
shape never changes: dropping it is leaving it away, and models are evaluated without it all along.
It is drawn from U(−1/√d, 1/√d), as torch draws a linear layer, and learns with the optimiser of
the rest. Of text every labelled token is sent to a shadow token: this implementation's reading.
"""

import os
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["BoundaryExpand", "shadow_loss"]


def shadow_loss(logits: Tensor, shadow: Tensor) -> Tensor:
    """Cross-entropy against the shadow class, in nats, `(…,)` (arXiv:2303.11570, expanding).

    Args:
        logits: z, `(…, C)`.
        shadow: s, `(…,)`.
    """
    return F.softplus(logits.logsumexp(-1) - shadow)


class BoundaryExpand(Strategy):
    """Learn a class that does not exist for forget samples; sees no retain sample.

    Args:
        task: the trained model.
        optimizer: SGD with lr 1e-5, momentum 0.9 and no weight decay by default, for 10 epochs.
            Search its lr: on a small network much more is needed.
        seed: of the shadow unit; if not given it follows `seed_everything`.
    """

    loader_mode = "forget"
    requires = ("linear_head", "targets")
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
        self, task: Task, optimizer: OptimizerCallable | None = None, seed: int | None = None
    ) -> None:
        super().__init__(task, optimizer)
        self.seed = seed

    @property
    def shadow(self) -> nn.Parameter:
        """The shadow unit's weights and its bias, `(d + 1,)`; outside the module tree."""
        return self.__dict__["_shadow"]

    def setup(self, stage: str) -> None:
        """Draw the shadow unit."""
        super().setup(stage)
        if stage == "fit":
            head = self.task.head
            run = int(os.environ.get("PL_GLOBAL_SEED", 0)) + 10_007
            generator = torch.Generator().manual_seed(self.seed if self.seed is not None else run)
            drawn = torch.rand(head.in_features + 1, generator=generator) * 2 - 1
            drawn = drawn.to(head.weight) * head.in_features**-0.5
            self.__dict__["_shadow"] = nn.Parameter(drawn)

    def unlearning_losses(self, forget: Batch, retain: Any) -> dict[str, Tensor]:
        """The loss of the forget batch against the shadow class."""
        seen: list[Tensor] = []
        hook = self.task.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            outputs = self.task(forget)
        finally:
            hook.remove()
        shadow = seen[-1] @ self.shadow[:-1] + self.shadow[-1]
        losses = shadow_loss(outputs, shadow)
        return {"forget_shadow": self.task.reduce(_rows(losses, forget), forget)}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 1e-5."""
        return torch.optim.SGD(parameters, lr=1e-5, momentum=0.9)

    def configure_optimizers(self) -> Any:
        """One optimiser for the network and the shadow unit."""
        self.shadow.data = self.shadow.data.to(self.device)
        parameters = [*self.trainable.values(), self.shadow]
        return (self.optimizer or self.default_optimizer)(parameters)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average over processes the one gradient that is not in the module tree."""
        if self.shadow.grad is not None:
            reduced = self.trainer.strategy.reduce(self.shadow.grad, reduce_op="mean")
            self.shadow.grad.copy_(reduced)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the shadow unit, which a resumed run goes on from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["shadow"] = self.shadow.detach().clone()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the shadow unit."""
        super().on_load_checkpoint(checkpoint)
        if "_shadow" in self.__dict__:
            with torch.no_grad():
                self.shadow.copy_(checkpoint["shadow"])


def _rows(losses: Tensor, batch: Batch) -> Tensor:
    if losses.dim() == 1:
        return losses
    kept = batch["labels"][:, 1:] != -100
    return (losses[:, :-1] * kept).sum(1) / kept.sum(1).clamp(min=1)
