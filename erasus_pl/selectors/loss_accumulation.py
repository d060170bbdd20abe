"""Loss accumulation: the samples that were costly to train on, over all of training.

``score_i = (1 / |V_i|) sum_{t in V_i} l(f_{theta_t}(x_i), y_i)`` over the visits ``V_i`` of
training to sample i, each loss that of the minibatch before its update: the area under the sample's
loss curve, by which samples rank as by the plain sum over epochs, since each is visited once in
each. It is large for what is learnt late or never. Jiang, Zhang, Talwar and Mozer, "Characterizing
Structural Regularities of Labeled Data in Overparameterized Models" (ICML 2021, arXiv:2002.03206),
use such statistics, cumulated over training, as proxies of how regular a sample is by how fast it
is learnt. Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking"
(NeurIPS 2020, arXiv:2001.10528), average the margin of the logits in the same way.
"""

from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.callbacks import SampleHistory, TrainingRecord
from erasus_pl.selectors._rows import visits
from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["LossAccumulation", "loss_accumulation"]


def loss_accumulation(losses: Tensor) -> Tensor:
    """Mean loss of each sample over the visits of training, ``(n,)``; NaN where there was none.

    Args:
        losses: ``(E, n)`` over epochs; NaN where a sample was not visited.
    """
    return losses.double().nanmean(0)


class LossAccumulation(Selector):
    """Keep the samples of the highest loss over all of the original's training.

    Needs a record of that training: `fit` makes it where it trains the original.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        record: file that `erasus_pl.callbacks.SampleHistory` wrote while the original was trained.
    """

    paper: ClassVar[dict[str, Any]] = {
        "title": (
            "Characterizing Structural Regularities of Labeled Data in Overparameterized Models"
        ),
        "year": 2021,
        "arxiv": "2002.03206",
    }

    def __init__(
        self, fraction: float | None = None, k: int | None = None, record: str | None = None
    ) -> None:
        super().__init__(fraction, k)
        self.record = record

    def recorder(self) -> TrainingRecord:
        """The loss of each sample at each visit."""
        return SampleHistory(None)

    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Mean loss of each sample over training, ``(n,)``."""
        return loss_accumulation(visits(self, strategy, dataset)[0])
