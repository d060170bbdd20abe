"""NegMerge: subtract what several fine-tunings on the forget set agree to change.

Kim et al., "NegMerge: Sign-Consensual Weight Merging for Machine Unlearning" (ICML 2025,
arXiv:2410.05583). Task arithmetic hangs on the hyper-parameters of one fine-tuned model. Here m
models θ_k are fine-tuned on D_f with different ones; their task vectors τ_k = θ_k − θ_o are
averaged where all m have the same sign and are zero elsewhere (`sign_consensus`), and the merged
vector is negated: θ = θ_o − λ τ. The retain set is not read.

The members differ in their learning rate; the published code varies augmentation for CLIP. They
learn side by side from the same batches, so that after every step the task holds the θ of what they
have learnt so far. This takes the memory of m models and their optimiser states.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["NegMerge", "sign_consensus"]


def sign_consensus(vectors: Tensor) -> Tensor:
    """The mean of task vectors where all have one sign, 0 elsewhere (arXiv:2410.05583).

    An entry that is 0 in any vector has no consensus.

    Args:
        vectors: τ of each member, `(m, …)`.
    """
    agreed = vectors.sign().sum(0).abs() == len(vectors)
    return torch.where(agreed, vectors.mean(0), torch.zeros_like(vectors[0]))


class NegMerge(Strategy):
    """Fine-tune several models on the forget set and subtract the changes they agree on.

    Batch norms keep the original's statistics.

    Args:
        task: the trained model.
        optimizer: of the fine-tuning; AdamW with lr 1e-5 and weight decay 0.1 by default, as for
            CLIP in the published code.
        lr_scales: learning rate of each member as a multiple of the optimiser's, all above 0; with
            a single 1 this is task arithmetic.
        lam: scaling λ of the merged vector, above 0; the published code searches it up to 1 for
            the most forgetting that keeps 95 % of the accuracy on a control task.
    """

    loader_mode = "forget"
    needs_original = True
    on_weights = "subtracts them from one another"
    paper: ClassVar[dict] = {
        "title": "NegMerge: Sign-Consensual Weight Merging for Machine Unlearning",
        "year": 2025,
        "arxiv": "2410.05583",
    }
    limits: ClassVar[dict] = {
        "class": "its learning rate, made for large networks, hardly moves a small one; try 0.001",
        "random": "its learning rate, made for large networks, hardly moves a small one; try 0.001",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        lr_scales: Sequence[float] = (0.5, 1.0, 2.0),
        lam: float = 1.0,
    ) -> None:
        super().__init__(task, optimizer)
        if not lr_scales or not all(scale > 0 for scale in lr_scales):
            msg = f"`lr_scales` must be one or more numbers above 0, got {list(lr_scales)}"
            raise ValueError(msg)
        if not lam > 0:
            msg = f"`lam` must be above 0, got {lam}"
            raise ValueError(msg)
        self.lr_scales = list(lr_scales)
        self.lam = lam

    @property
    def members(self) -> list[dict[str, nn.Parameter]]:
        """Trainable weights of each fine-tuned model, by name; outside the module tree."""
        return self.__dict__["_members"]

    def setup(self, stage: str) -> None:
        """Start every member at the original."""
        super().setup(stage)
        if stage == "fit":
            self.__dict__["_members"] = [
                {k: nn.Parameter(p.detach().clone()) for k, p in self.trainable.items()}
                for _ in self.lr_scales
            ]

    def on_train_start(self) -> None:
        """Train, but for what would take up the statistics of the forget set alone."""
        super().on_train_start()
        for module in self.task.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def unlearning_losses(self, forget: Batch, retain: Any) -> dict[str, Tensor]:
        """The task loss of every member."""
        loss = _Loss(self.task)
        terms = {
            f"forget_{k}": functional_call(loss, {f"task.{n}": p for n, p in m.items()}, (forget,))
            for k, m in enumerate(self.members)
        }
        if self.trainer.world_size > 1:  # each process waits for a gradient of the task's own
            own = torch.stack([p.sum() for p in self.trainable.values()]).sum()
            terms["forget_0"] = terms["forget_0"] + 0.0 * own
        return terms

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average over processes the gradients that are not in the module tree."""
        for member in self.members:
            for parameter in member.values():
                if parameter.grad is not None:
                    reduced = self.trainer.strategy.reduce(parameter.grad, reduce_op="mean")
                    parameter.grad.copy_(reduced)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step the members, then put the model with their consensus taken back in the task."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        original = dict(self.original.named_parameters())
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                vectors = torch.stack([m[name] - original[name] for m in self.members])
                parameter.copy_(original[name] - self.lam * sign_consensus(vectors))

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW with lr 1e-5."""
        return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1)

    def configure_optimizers(self) -> Any:
        """One optimiser, with a group of weights and a learning rate for each member."""
        groups: list[Any] = []
        for member in self.members:
            for parameter in member.values():
                parameter.data = parameter.data.to(self.device)
            groups.append({"params": list(member.values())})
        if not groups[0]["params"]:
            return super().configure_optimizers()
        optimizer = (self.optimizer or self.default_optimizer)(groups)
        for group, scale in zip(optimizer.param_groups, self.lr_scales, strict=True):
            group["lr"] *= scale
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the members, which a resumed run goes on from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["members"] = [
            {name: p.detach().clone() for name, p in member.items()} for member in self.members
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the members."""
        super().on_load_checkpoint(checkpoint)
        if "_members" in self.__dict__:
            with torch.no_grad():
                for member, saved in zip(self.members, checkpoint["members"], strict=True):
                    for name, parameter in member.items():
                        parameter.copy_(saved[name])


class _Loss(nn.Module):
    """Gives a task's loss the face of a module, so that its weights can be swapped."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Batch) -> Tensor:
        return self.task.loss(batch)
