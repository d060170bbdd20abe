"""Gradient norm of each sample.

Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples Early in
Training" (NeurIPS 2021, arXiv:2107.07075), Def. 2.1: the GraNd score of a sample is
``||grad_theta loss(f_theta(x), y)||_2``. The paper averages it over initialisations early in
training; here the model to be unlearned is the one at hand. Samples with a large gradient are
those that a step of a gradient-based strategy moves the model for.

The norms are exact and cost about two backward passes over the forget set: they are taken from
each layer's inputs and output gradients and never form a sample's gradient (``linalg``).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.linalg import PerSampleGradients
from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["GradNorm"]


class GradNorm(Selector):
    """Keep the samples whose loss has the largest gradient.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
    """

    sees_losses = True
    paper: ClassVar[dict[str, Any]] = {
        "title": "Deep Learning on a Data Diet: Finding Important Examples Early in Training",
        "year": 2021,
        "arxiv": "2107.07075",
    }

    def __init__(self, fraction: float | None = None, k: int | None = None) -> None:
        super().__init__(fraction, k)

    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Norm of each sample's gradient over the trainable parameters, ``(n,)``."""
        task = strategy.task
        gradients = PerSampleGradients(task, lambda batch: task.per_sample_loss(task(batch), batch))
        return torch.cat([gradients.norms(batch) for batch in self.batches(strategy, dataset)])
