"""SFRon: ascend on salient weights, then let the retain set repair, in fast and slow steps.

Huang et al., "Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement"
(NeurIPS 2024, arXiv:2409.19732), saliency forgetting in the remain-preserving manifold, online.
Descent on the divergence to the retrained model splits into three parts: ascent on D_f weighted by
sample, descent on D_r, and a saliency of weights. Here an epoch is one round of the outer loop:

1. forget steps: θ ← θ + η m ⊙ ∇ α_t Σ_i ε̃_i ℓ_i over a batch of D_f, where
   ε̃_i = ℓ_i^{−λ} / Σ_j ℓ_j^{−λ}, held constant, lets go first of what is known best, and
   m = 1[F_f / F_r ≥ γ], F the diagonal empirical Fisher information of the original on a set;
2. repair steps: descent on ℓ over D_r, whose fast weights stand in for the inverse Hessian of D_r;
3. slow step: θ_s ← θ_s + β (θ − θ_s), where the next round starts.

α_t and the learning rate fall along a cosine over the epochs, and forget gradients are clipped to a
norm. As in the published code one optimiser takes all steps, so that m masks gradients and not what
momentum and weight decay do. Unlike there F averages squares over samples and not over squared
batch means, whose size depends on the batch.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from erasus_pl.linalg import diagonal_fisher
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["SFRon", "adaptive_weights", "saliency", "strength"]

_TINY = 1e-15


def adaptive_weights(losses: Tensor, lambd: float) -> Tensor:
    """ℓ_i^{−λ}, not normalised, without a gradient, `(B,)` (arXiv:2409.19732, ε̃).

    Args:
        losses: ℓ_i ≥ 0, `(B,)`.
        lambd: λ; 0 weighs all samples alike.
    """
    return 1 / (losses.detach().pow(lambd) + _TINY)


def saliency(forget: Tensor, retain: Tensor, gamma: float) -> Tensor:
    """The mask m = 1[F_f / F_r ≥ γ], bool, of the shape given (arXiv:2409.19732).

    Args:
        forget: F_f, diagonal Fisher information on the forget set.
        retain: F_r, the same on the retain set.
        gamma: γ.
    """
    return (forget + _TINY) / (retain + _TINY) >= gamma


def strength(alpha: float, epoch: int, epochs: int) -> float:
    """α_t = α (1 + cos(π t / T)) / 2 (arXiv:2409.19732, published schedule).

    Args:
        alpha: α.
        epoch: t, counted from 0.
        epochs: T.
    """
    return alpha * (1 + math.cos(math.pi * epoch / epochs)) / 2


class SFRon(Strategy):
    """Adaptive ascent on salient weights, repaired on retain samples, round by round.

    The paper repairs for several steps after each forget step; data.init_args.epoch: retain makes a
    round pass over the whole retain set.

    Args:
        task: the trained model.
        optimizer: SGD with lr 0.01, momentum 0.9 and weight decay 5e-4 by default.
        alpha: strength α of the ascent in the first epoch; at least 0.
        lambd: exponent λ of the sample weights; at least 0.
        gamma: threshold γ on the ratio of Fisher informations; 0 lets every weight move.
        beta: step β of the slow weights, in (0, 1]; 1 is the published code's, the fast ones.
            Below it the slow weights are in checkpoints too.
        max_norm: what forget gradients are clipped to; above 0.
    """

    loader_mode = "sequential"
    needs_original = True
    paper: ClassVar[dict] = {
        "title": "Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement",
        "year": 2024,
        "arxiv": "2409.19732",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        alpha: float = 25.0,
        lambd: float = 0.5,
        gamma: float = 1.0,
        beta: float = 1.0,
        max_norm: float = 7.0,
    ) -> None:
        super().__init__(task, optimizer)
        for name, value in (("alpha", alpha), ("lambd", lambd), ("gamma", gamma)):
            if value < 0:
                msg = f"`{name}` must be at least 0, got {value}"
                raise ValueError(msg)
        if not 0 < beta <= 1:
            msg = f"`beta` must be in (0, 1], got {beta}"
            raise ValueError(msg)
        if max_norm <= 0:
            msg = f"`max_norm` must be above 0, got {max_norm}"
            raise ValueError(msg)
        self.alpha = alpha
        self.lambd = lambd
        self.gamma = gamma
        self.beta = beta
        self.max_norm = max_norm
        self.mask: dict[str, Tensor] = {}
        self._slow: dict[str, Tensor] = {}
        self._forgetting = False

    def setup(self, stage: str) -> None:
        """Check that the schedule can know its end, and keep where the first round starts."""
        super().setup(stage)
        if stage != "fit":
            return
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            msg = (
                f"`alpha` falls over the epochs: set trainer.max_epochs to at least 1, got {epochs}"
            )
            raise ValueError(msg)
        if self.beta < 1:
            self._slow = {k: p.detach().clone() for k, p in self.trainable.items()}

    def on_fit_start(self) -> None:
        """Find the salient weights of the original, the same whenever the run is resumed."""
        super().on_fit_start()
        original, trainable = self.original, self.trainable
        for name, parameter in original.named_parameters():
            parameter.requires_grad_(name in trainable)
        forget = diagonal_fisher(original, self._losses, self.data.forget_batches())
        retain = diagonal_fisher(original, self._losses, self.data.retain_batches())
        original.requires_grad_(False)
        self.mask = {k: saliency(forget[k], retain[k], self.gamma) for k in trainable}
        self._slow = {k: v.to(self.device) for k, v in self._slow.items()}

    def unlearning_losses(self, forget: Any, retain: Any) -> dict[str, Tensor]:
        """The weighted ascent of a forget batch, or the task loss of a retain batch."""
        self._forgetting = forget is not None
        if forget is None:
            return {"retain": self.task.loss(retain)}
        losses = self.task.per_sample_loss(self.task(forget), forget)
        weights = adaptive_weights(losses, self.lambd) * forget.get("weight", 1.0)
        whole = self.trainer.strategy.reduce(weights.sum(), reduce_op="mean")
        alpha = strength(self.alpha, self.current_epoch, self.trainer.max_epochs or 1)
        return {"forget_ascent": -alpha * (weights * losses).sum() / whole}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Mask, then clip, what a forget batch asks for."""
        if self._forgetting:
            for name, parameter in self.trainable.items():
                if parameter.grad is not None:
                    parameter.grad.mul_(self.mask[name])
            torch.nn.utils.clip_grad_norm_(list(self.trainable.values()), self.max_norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step; the slow step ends a round, before anything is saved or validated."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._slow and self.trainer.is_last_batch:
            with torch.no_grad():
                for name, parameter in self.trainable.items():
                    self._slow[name].lerp_(parameter, self.beta)
                    parameter.copy_(self._slow[name])

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 0.01."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)

    def configure_optimizers(self) -> Any:
        """The optimiser, with its learning rate on a cosine over the epochs."""
        optimizer = super().configure_optimizers()
        schedule = CosineAnnealingLR(optimizer, cast(int, self.trainer.max_epochs))
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the round started."""
        super().on_save_checkpoint(checkpoint)
        if self._slow:
            checkpoint["slow"] = {k: v.clone() for k, v in self._slow.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up where the round started."""
        super().on_load_checkpoint(checkpoint)
        if self._slow:
            self._slow = {k: v.clone() for k, v in checkpoint["slow"].items()}

    def _losses(self, batch: Batch) -> Tensor:
        return self.original.per_sample_loss(self.original(batch), batch)
