"""Task arithmetic: learn the forget set still better, then go the other way.

Ilharco et al., "Editing Models with Task Arithmetic" (ICLR 2023, arXiv:2212.04089), Sec. 3. The
task vector of D_f is τ = θ_ft − θ_o, where θ_ft is the original fine-tuned on D_f; negating it
forgets: θ = θ_o − λ τ. The retain set is not read. At every step the task holds θ, so that what is
validated and saved is the unlearned model; θ_ft, which the optimiser moves, is θ_o + (θ_o − θ) / λ.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import OptimizerCallable, Task

__all__ = ["TaskArithmetic", "negate_task_vector"]


def negate_task_vector(original: Tensor, finetuned: Tensor, lam: float) -> Tensor:
    """θ_o − λ (θ_ft − θ_o) (arXiv:2212.04089, Sec. 3); with 1/λ for λ it goes back to θ_ft.

    Args:
        original: θ_o, any shape.
        finetuned: θ_ft, of that shape.
        lam: λ.
    """
    return original - lam * (finetuned - original)


class TaskArithmetic(Strategy):
    """Fine-tune on the forget set and subtract, instead of add, what that changed.

    Batch norms keep the original's statistics.

    Args:
        task: the trained model.
        optimizer: of the fine-tuning; AdamW with lr 1e-5 and weight decay 0.1 by default, as for
            CLIP in the paper.
        lam: scaling λ of the task vector, above 0; the paper searches it up to 1 in steps of 0.05
            for the most forgetting that keeps 95 % of the accuracy on a control task.
    """

    loader_mode = "forget"
    needs_original = True
    on_weights = "subtracts them from one another"
    paper: ClassVar[dict] = {
        "title": "Editing Models with Task Arithmetic",
        "year": 2023,
        "arxiv": "2212.04089",
    }
    limits: ClassVar[dict] = {
        "class": "its learning rate, made for large networks, hardly moves a small one; try 0.001",
        "random": "its learning rate, made for large networks, hardly moves a small one; try 0.001",
    }
    _tuning = False

    def __init__(
        self, task: Task, optimizer: OptimizerCallable | None = None, lam: float = 1.0
    ) -> None:
        super().__init__(task, optimizer)
        if not lam > 0:
            msg = f"`lam` must be above 0, got {lam}"
            raise ValueError(msg)
        self.lam = lam

    def on_train_start(self) -> None:
        """Train, but for what would take up the statistics of the forget set alone."""
        super().on_train_start()
        for module in self.task.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def unlearning_losses(self, forget: Any, retain: Any) -> dict[str, Tensor]:
        """The task loss of the fine-tuned model."""
        if not self._tuning:
            self._reflect(1 / self.lam)
            self._tuning = True
        return {"forget": self.task.loss(forget)}

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step the fine-tuned model, then put the unlearned one in its place."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._reflect(self.lam)
        self._tuning = False

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW with lr 1e-5."""
        return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1)

    @torch.no_grad()
    def _reflect(self, lam: float) -> None:
        original = dict(self.original.named_parameters())
        for name, parameter in self.trainable.items():
            parameter.copy_(negate_task_vector(original[name], parameter, lam))
