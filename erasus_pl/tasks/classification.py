"""Classification with a softmax over classes, on any input a network takes."""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from erasus_pl.tasks.base import Batch, OptimizerCallable, SchedulerCallable, Task

__all__ = ["ClassificationTask", "logit_scaled"]


def logit_scaled(logits: Tensor, target: Tensor) -> Tensor:
    """Logit-scaled confidence φ = log p_y − log(1 − p_y), shape `(N,)`.

    Computed as z_y − logsumexp_{j≠y} z_j, which neither saturates nor overflows (Carlini et al.,
    "Membership Inference Attacks From First Principles", 2022, arXiv:2112.03570, eq. 5 and §VI).

    Args:
        logits: `(N, C)` with C ≥ 2.
        target: `(N,)` class numbers.
    """
    own = logits.gather(-1, target.unsqueeze(-1))
    others = logits.scatter(-1, target.unsqueeze(-1), float("-inf"))
    return own.squeeze(-1) - others.logsumexp(-1)


class ClassificationTask(Task):
    """A classifier: softmax over classes, cross-entropy, accuracy.

    Args:
        network: maps `batch["input"]` to logits `(B, C)`.
        loss: an nn.CrossEntropyLoss with class weights or label smoothing; plain by default.
        optimizer: trains the original and the retrained model; Adam with lr 1e-3 by default.
        scheduler: learning-rate schedule of that training, stepped every epoch.
        epochs: how long the original and the retrained model are trained.
        checkpoint: weights of a trained original, read with `weights_only=True`.
    """

    provides: ClassVar[tuple[str, ...]] = (
        "targets", "log_likelihood", "divergence", "features", "linear_head", "vector_outputs",
        "convolutions", "shards",
    )  # fmt: skip

    def __init__(
        self,
        network: nn.Module,
        loss: Callable | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: SchedulerCallable | None = None,
        epochs: int = 30,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(network, loss, optimizer, scheduler, epochs, checkpoint)

    def per_sample_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of each sample, `(B,)`, in nats."""
        if self.loss_fn is not None:
            return super().per_sample_loss(outputs, batch)
        return F.cross_entropy(outputs, batch["target"], reduction="none")

    def divergence(
        self, outputs: Tensor, reference: Tensor, batch: Batch, temperature: float = 1.0
    ) -> Tensor:
        """KL(softmax(reference/T) ‖ softmax(outputs/T)) of each sample, `(B,)`, in nats."""
        log_p = F.log_softmax(reference / temperature, -1)
        log_q = F.log_softmax(outputs / temperature, -1)
        return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Logit-scaled confidence in the true class, `(B,)`."""
        return logit_scaled(outputs, batch["target"])

    def correct(self, outputs: Tensor, batch: Batch) -> Tensor:
        """1 where the most likely class is the target, `(B,)`."""
        return (outputs.argmax(-1) == batch["target"]).float()

    def random_targets(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """A copy of the batch with targets drawn uniformly from all classes."""
        target = batch["target"]
        drawn = torch.randint(
            self.head.out_features, target.shape, generator=generator, dtype=target.dtype
        )
        return {**batch, "target": drawn.to(target.device)}

    def metrics(self) -> MetricCollection:
        """Accuracy."""
        return MetricCollection(
            {"accuracy": MulticlassAccuracy(None, average="micro", validate_args=False)}
        )
