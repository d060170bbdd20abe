"""How far a model's predictions are from a reference model's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

__all__ = ["KLToReference"]


class KLToReference(Metric):
    r"""Mean Kullback-Leibler divergence from a reference model's predictions to a model's.

    .. math::
        \frac{1}{N} \sum_{i=1}^{N} \sum_{c=1}^{C}
            p^{\text{ref}}_{ic} \log \frac{p^{\text{ref}}_{ic}}{p_{ic}}

    with :math:`p = \text{softmax}(\text{logits})`, in nats. The classes are summed, never averaged.
    With the retrained model as reference this is the distance to the gold; the same between two
    retrained models is its noise floor. Logits of half precision are
    widened to float32 first.

    ``update(logits, reference)`` takes ``(..., C)`` logits of both models; the leading dimensions
    count as samples. ``compute()`` gives a float32 scalar; NaN before the first sample.

    Example:
        >>> import torch
        >>> metric = KLToReference()
        >>> metric.update(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0986123, 0.0]]))
        >>> round(metric.compute().item(), 4)
        0.1308
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, logits: Tensor, reference: Tensor) -> None:
        """Add a batch.

        Args:
            logits: ``(..., C)`` of the model that is judged.
            reference: ``(..., C)`` of the model it is held against.

        Raises:
            ValueError: The shapes differ.
        """
        if logits.shape != reference.shape:
            msg = (
                "`logits` and `reference` must have one shape, "
                f"got {tuple(logits.shape)} and {tuple(reference.shape)}"
            )
            raise ValueError(msg)
        ours, theirs = (F.log_softmax(x.detach().float(), dim=-1) for x in (logits, reference))
        divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
        self.total += divergence.sum()
        self.count += divergence.numel()

    def compute(self) -> Tensor:
        """Return the mean over every sample seen, in nats."""
        return self.total / self.count
