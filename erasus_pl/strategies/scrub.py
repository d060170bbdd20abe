"""SCRUB: disobey the teacher on the forget set, obey it on the retain set.

Kurmanji et al., "Towards Unbounded Machine Unlearning" (NeurIPS 2023, arXiv:2302.09880), min-max
objective. The original is the teacher T, the model the student S, and d is KL(T ‖ S) of a sample,
both softened by a temperature. Each of the first `msteps` epochs first maximises the mean of d over
D_f, then, like all later epochs, minimises γ ℓ + α d over D_r. Divergences are multiplied by the
squared temperature, as in the published code, so that their gradients keep their size. At the very
start S = T, where d has no gradient: without dropout or batch norm to part them the first pass of
max-steps does next to nothing, so `msteps` of 1 is too few.

SCRUB+R, of the same paper, rewinds: since an error on D_f that is too high gives membership
away, it goes back to the end of the epoch whose error on D_f is nearest to the last model's error
on data distributed like D_f that was never trained on (here the holdout set).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.lr_scheduler import MultiStepLR

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["SCRUB", "max_term", "min_terms", "nearest_epoch"]


def max_term(divergence: Tensor, kd_T: float) -> Tensor:
    """−T² KL(T ‖ S) of the max-steps, to be minimised (arXiv:2302.09880, forget part).

    Args:
        divergence: mean over forget samples at temperature T, scalar.
        kd_T: T.
    """
    return -(kd_T**2) * divergence


def min_terms(
    loss: Tensor, divergence: Tensor, alpha: float, gamma: float, kd_T: float
) -> tuple[Tensor, Tensor]:
    """γ ℓ and α T² KL(T ‖ S) of the min-steps (arXiv:2302.09880, retain part).

    Args:
        loss: mean task loss over retain samples, scalar.
        divergence: mean over retain samples at temperature T, scalar.
        alpha: α.
        gamma: γ.
        kd_T: T.
    """
    return gamma * loss, alpha * kd_T**2 * divergence


def nearest_epoch(errors: Sequence[float], reference: float) -> int:
    """The epoch whose error on D_f is nearest to the reference; of equal ones the last."""
    return min(range(len(errors)), key=lambda e: (abs(errors[e] - reference), -e))


class SCRUB(Strategy):
    """Max-steps away from the original on forget, min-steps towards it on retain samples.

    Args:
        task: the trained model.
        optimizer: SGD with lr 5e-4, momentum 0.9 and weight decay 5e-4 by default, for 3 epochs.
        msteps: epochs that begin with a pass of max-steps.
        alpha: weight α of the divergence on the retain set.
        gamma: weight γ of the task loss on the retain set.
        kd_T: temperature of all divergences.
        decay_epochs: epochs after which the learning rate is multiplied by `decay_rate`; none for
            a constant one.
        decay_rate: by what.
        rewind: end as SCRUB+R; needs `trainer.max_epochs`, and keeps the weights of every epoch,
            in checkpoints too, until the last.
    """

    loader_mode = "sequential"
    needs_original = True
    requires = ("divergence",)
    paper: ClassVar[dict] = {
        "title": "Towards Unbounded Machine Unlearning",
        "year": 2023,
        "arxiv": "2302.09880",
    }
    limits: ClassVar[dict] = {
        "class": "its learning rate, made for large networks, hardly moves a small one; try 0.01",
        "random": "its learning rate, made for large networks, hardly moves a small one; try 0.01",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        msteps: int = 2,
        alpha: float = 0.001,
        gamma: float = 0.99,
        kd_T: float = 4.0,
        decay_epochs: Sequence[int] = (3, 5, 9),
        decay_rate: float = 0.1,
        rewind: bool = False,
    ) -> None:
        super().__init__(task, optimizer)
        for name, value in (("msteps", msteps), ("alpha", alpha), ("gamma", gamma)):
            if value < 0:
                msg = f"`{name}` must be at least 0, got {value}"
                raise ValueError(msg)
        if kd_T <= 0:
            msg = f"`kd_T` must be above 0, got {kd_T}"
            raise ValueError(msg)
        self.msteps = msteps
        self.alpha = alpha
        self.gamma = gamma
        self.kd_T = kd_T
        self.decay_epochs = list(decay_epochs)
        self.decay_rate = decay_rate
        self.rewind = rewind
        self.errors: list[float] = []
        self.rewound_to: int | None = None
        self._epochs: list[dict[str, Tensor]] = []
        self._passed_over = False

    def setup(self, stage: str) -> None:
        """Check that rewinding can know its end."""
        super().setup(stage)
        epochs = self.trainer.max_epochs
        if stage == "fit" and self.rewind and (epochs is None or epochs < 1):
            msg = (
                f"`rewind` goes back when the last epoch ends: set trainer.max_epochs to at least "
                f"1, got {epochs}"
            )
            raise ValueError(msg)

    def on_train_batch_start(self, batch: dict[str, Batch | None], batch_idx: int) -> None:
        """Once the max-steps are done, forget batches are passed over."""
        self._passed_over = batch["forget"] is not None and self.current_epoch >= self.msteps

    def training_step(self, batch: dict[str, Batch | None], batch_idx: int) -> Tensor | None:
        """As in the base; a step that is passed over has a loss that is constant."""
        if self._passed_over:
            return 0.0 * torch.stack([p.sum() for p in self.trainable.values()]).sum()
        return super().training_step(batch, batch_idx)

    def unlearning_losses(self, forget: Any, retain: Any) -> dict[str, Tensor]:
        """The term of a max-step, or the two of a min-step."""
        if forget is not None:
            divergence = self._divergence(self.task(forget), forget)
            return {"forget_max": max_term(divergence, self.kd_T)}
        outputs = self.task(retain)
        loss = self.task.reduce(self.task.per_sample_loss(outputs, retain), retain)
        loss, divergence = min_terms(
            loss, self._divergence(outputs, retain), self.alpha, self.gamma, self.kd_T
        )
        return {"retain": loss, "retain_divergence": divergence}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 5e-4."""
        return torch.optim.SGD(parameters, lr=5e-4, momentum=0.9, weight_decay=5e-4)

    def configure_optimizers(self) -> Any:
        """The optimiser, with its learning rate decayed after `decay_epochs`."""
        optimizer = super().configure_optimizers()
        schedule = MultiStepLR(optimizer, self.decay_epochs, self.decay_rate)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step; SCRUB+R keeps what an epoch ends with before anything is saved or validated."""
        if self._passed_over and optimizer_closure is not None:
            optimizer_closure()
            return
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.rewind and self.trainer.is_last_batch:
            self.errors.append(self._error(self.data.forget_set))
            state = self.task.network.state_dict()
            self._epochs.append({k: v.detach().cpu().clone() for k, v in state.items()})
            if epoch + 1 == self.trainer.max_epochs:
                self._go_back()

    def on_train_end(self) -> None:
        """Go back even where training was stopped before its last epoch."""
        if self._epochs:
            self._go_back()
        super().on_train_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what SCRUB+R may go back to."""
        super().on_save_checkpoint(checkpoint)
        if self.rewind:
            checkpoint["rewind"] = {"errors": list(self.errors), "epochs": list(self._epochs)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what SCRUB+R may go back to."""
        super().on_load_checkpoint(checkpoint)
        if self.rewind and "rewind" in checkpoint:
            self.errors = list(checkpoint["rewind"]["errors"])
            self._epochs = list(checkpoint["rewind"]["epochs"])

    def _go_back(self) -> None:
        reference = self._error(self.data.holdout_set)
        self.rewound_to = nearest_epoch(self.errors, reference)
        self.task.network.load_state_dict(self._epochs[self.rewound_to])
        self._epochs = []

    def _divergence(self, outputs: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            reference = self.original(batch)
        kl = self.task.divergence(outputs, reference, batch, self.kd_T)
        return self.task.reduce(kl, batch)

    def _error(self, dataset: Any) -> float:
        """Error rate on a dataset, with the network in eval mode."""
        modes = {module: module.training for module in self.task.modules()}
        self.task.eval()
        with torch.no_grad():
            correct = torch.cat([self._correct(b) for b in self._sweep(dataset)])
        for module, mode in modes.items():
            module.training = mode
        return 1 - correct.mean().item()

    def _correct(self, batch: Batch) -> Tensor:
        return self.task.correct(self.task(batch), batch)

    def _sweep(self, dataset: Any) -> Iterable[Batch]:
        for batch in self.data.sweep(dataset):
            yield self.trainer.strategy.batch_to_device(batch)
