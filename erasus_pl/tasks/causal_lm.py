"""Next-token prediction: a sample is a sequence, its loss the mean over its labelled tokens."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from erasus_pl.tasks.base import Batch, OptimizerCallable, SchedulerCallable, Task

__all__ = ["IGNORE", "CausalLMTask"]

IGNORE = -100


class CausalLMTask(Task):
    """A causal language model: shifted cross-entropy over the labelled tokens of a sequence.

    A batch holds `input_ids` `(B, T)`, `labels` `(B, T)` with -100 where a token is not scored,
    and `attention_mask` `(B, T)`. The logits at position t are scored against the label at t + 1.

    Args:
        network: called as `network(input_ids=…, attention_mask=…)`; returns logits `(B, T, V)` or
            an object with `.logits`, as Hugging Face models do.
        optimizer: trains the original and the retrained model; Adam with lr 1e-3 by default.
        scheduler: learning-rate schedule of that training, stepped every epoch.
        epochs: how long the original and the retrained model are trained.
        checkpoint: weights of a trained original, read with `weights_only=True`.
    """

    provides: ClassVar[tuple[str, ...]] = (
        "targets", "log_likelihood", "divergence", "features", "linear_head", "shards",
    )  # fmt: skip

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable | None = None,
        scheduler: SchedulerCallable | None = None,
        epochs: int = 30,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(network, None, optimizer, scheduler, epochs, checkpoint)

    def forward(self, batch: Batch) -> Tensor:
        """Logits `(B, T, V)`."""
        out = self.network(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"))
        return getattr(out, "logits", out)

    def per_sample_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean negative log-likelihood of the labelled tokens of each sequence, `(B,)`, in nats."""
        labels = batch["labels"][:, 1:]
        nll = F.cross_entropy(
            outputs[:, :-1].transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
        )
        return _token_mean(nll, labels)

    def divergence(
        self, outputs: Tensor, reference: Tensor, batch: Batch, temperature: float = 1.0
    ) -> Tensor:
        """KL(reference ‖ outputs), averaged over the labelled tokens of each sequence, `(B,)`."""
        log_p = F.log_softmax(reference[:, :-1] / temperature, -1)
        log_q = F.log_softmax(outputs[:, :-1] / temperature, -1)
        kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        return _token_mean(kl, batch["labels"][:, 1:])

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Negative loss of each sequence, `(B,)`, in nats: the attack of Yeom et al. (2018).

        Averaging the logit-scaled confidence of tokens instead lets the few that are all but
        certain decide, and these differ from seed to seed (arXiv:1709.01604, Sec. III-A).
        """
        return -self.per_sample_loss(outputs, batch)

    def correct(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Fraction of the labelled tokens of each sequence that are predicted, `(B,)`."""
        labels = batch["labels"][:, 1:]
        return _token_mean((outputs[:, :-1].argmax(-1) == labels).float(), labels)

    def random_targets(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """A copy of the batch whose labelled tokens are drawn uniformly from the vocabulary."""
        labels = batch["labels"]
        drawn = torch.randint(
            self.head.out_features, labels.shape, generator=generator, dtype=labels.dtype
        )
        return {**batch, "labels": torch.where(labels == IGNORE, labels, drawn.to(labels.device))}

    def predictions(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `(N, V)` and labels `(N,)` of the labelled tokens."""
        labels = batch["labels"][:, 1:]
        kept = labels != IGNORE
        return outputs[:, :-1][kept], labels[kept]

    def pool(self, features: Tensor, batch: Batch) -> Tensor:
        """Mean of the features of the labelled positions, `(B, d)`."""
        kept = (batch["labels"][:, 1:] != IGNORE).unsqueeze(-1)
        return (features[:, :-1] * kept).sum(1) / kept.sum(1).clamp(min=1)

    def metrics(self) -> MetricCollection:
        """Accuracy over tokens."""
        return MetricCollection(
            {"accuracy": MulticlassAccuracy(None, average="micro", validate_args=False)}
        )


def _token_mean(values: Tensor, labels: Tensor) -> Tensor:
    kept = labels != IGNORE
    return (values * kept).sum(1) / kept.sum(1).clamp(min=1)
