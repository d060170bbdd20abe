"""Error norm of each prediction.

Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples Early in
Training" (NeurIPS 2021, arXiv:2107.07075), Def. 2.2: the EL2N score of a sample is
``||p(x) - y||_2`` with ``y`` one-hot, the norm of the loss's gradient with respect to the logits.
It needs a forward pass only. A sequence scores the mean over its labelled tokens.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, Task

__all__ = ["EL2N", "el2n"]


def el2n(probabilities: Tensor, targets: Tensor) -> Tensor:
    """``||p - onehot(y)||_2`` of each row, ``(N,)``, in [0, sqrt 2] (arXiv:2107.07075, Def. 2.2).

    Args:
        probabilities: ``(N, C)``, rows sum to one.
        targets: ``(N,)`` class numbers.
    """
    return (probabilities - F.one_hot(targets, probabilities.shape[-1])).norm(dim=-1)


class EL2N(Selector):
    """Keep the samples that the model predicts worst.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
    """

    requires: ClassVar[tuple[str, ...]] = ("targets",)
    sees_losses = True
    paper: ClassVar[dict[str, Any]] = {
        "title": "Deep Learning on a Data Diet: Finding Important Examples Early in Training",
        "year": 2021,
        "arxiv": "2107.07075",
    }

    def __init__(self, fraction: float | None = None, k: int | None = None) -> None:
        super().__init__(fraction, k)

    @torch.no_grad()
    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Error norm of each sample, ``(n,)``."""
        return torch.cat(
            [_errors(strategy.task, batch) for batch in self.batches(strategy, dataset)]
        )


def _errors(task: Task, batch: Batch) -> Tensor:
    outputs = task(batch)
    samples = len(outputs)
    logits, targets = task.predictions(outputs, batch)
    errors = el2n(logits.softmax(-1), targets)
    if outputs.dim() == 2:
        return errors
    # Which sample each row that the task scores belongs to, by the task's own choice of rows.
    number = torch.arange(samples, device=outputs.device)
    spread = number.view(-1, *[1] * (outputs.dim() - 1)).expand(*outputs.shape[:-1], 1)
    owner = task.predictions(spread, batch)[0].reshape(-1)
    total = errors.new_zeros(samples).index_add_(0, owner, errors)
    return total / torch.bincount(owner, minlength=samples).clamp(min=1)
