"""Forgetting events: the samples that training learnt and lost again most often.

Toneva, Sordoni, Tachet des Combes, Trischler, Bengio and Gordon, "An Empirical Study of Example
Forgetting during Deep Neural Network Learning" (ICLR 2019, arXiv:1812.05159), Sec. 3 and Alg. 1: a
sample is forgotten where it was right when training visited it and is wrong at its next visit, as
seen in the minibatches before their updates. Samples that are never learnt count as forgotten
infinitely often, and the paper sorts by the count. Samples of a high count are the hard, atypical
or mislabelled ones; those of none can be left out of training with little harm.

A sequence is right where more than half of its labelled tokens are. Counts are small numbers, so
of samples with one count those come first whose loss was higher over all of training.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.callbacks import SampleHistory, TrainingRecord
from erasus_pl.selectors._rows import visits
from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["Forgetting", "forgetting_events"]


def forgetting_events(correct: Tensor) -> Tensor:
    """How often each sample went from right to wrong, ``(n,)``; infinity if never right (Alg. 1).

    Args:
        correct: ``(E, n)`` in [0, 1] over epochs, right above one half; NaN where a sample was not
            visited, whose state stays what it was.
    """
    events = correct.new_zeros(correct.shape[1])
    before = torch.zeros_like(events, dtype=torch.bool)
    learnt = before
    for visit in correct:
        right = torch.where(visit.isnan(), before, visit > 0.5)
        events += before & ~right
        before, learnt = right, learnt | right
    return events.masked_fill(~learnt, torch.inf)


class Forgetting(Selector):
    """Keep the samples that the original forgot most often while it was trained.

    Needs a record of that training: `fit` makes it where it trains the original.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        record: file that `erasus_pl.callbacks.SampleHistory` wrote while the original was trained.
    """

    requires: ClassVar[tuple[str, ...]] = ("targets",)
    paper: ClassVar[dict[str, Any]] = {
        "title": ("An Empirical Study of Example Forgetting during Deep Neural Network Learning"),
        "year": 2019,
        "arxiv": "1812.05159",
    }

    def __init__(
        self, fraction: float | None = None, k: int | None = None, record: str | None = None
    ) -> None:
        super().__init__(fraction, k)
        self.record = record

    def recorder(self) -> TrainingRecord:
        """The loss and correctness of each sample at each visit."""
        return SampleHistory(None)

    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Forgetting events of each sample, ``(n,)``; with a tie's rank below one added.

        Never learnt samples score one for each epoch, which no count reaches.
        """
        losses, correct = visits(self, strategy, dataset)
        counts = forgetting_events(correct).double().clamp(max=len(correct))
        total = losses.double().nansum(0)
        return counts + total / (1 + total.abs().max()) / 2
