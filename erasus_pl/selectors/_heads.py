"""The last layer learnt anew by least squares: the learner of selectors that value samples.

With inputs x of the last layer, ending in a one, and one-hot labels y, the ridge fit to a coalition
is ``W = (lambda I + sum x x^T)^-1 sum x y^T``. Its performance on held rows is
``1 - mean ||y - W^T x||^2 = 2 tr(W^T Q) - tr(W^T G W)`` with their moments ``G = mean x x^T`` and
``Q = mean x y^T``: 1 for a perfect head, 0 for that of nobody, and no dearer for more held rows.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset

from erasus_pl.selectors._rows import label_rows, refuse_nonfinite
from erasus_pl.selectors.base import Selector
from erasus_pl.selectors.random import sample
from erasus_pl.strategies.base import Strategy

__all__ = ["TARGETS", "Game", "check_game", "fit", "moments", "play", "worth"]

TARGETS = ("retain", "holdout")
_BUDGET = 2**24


@dataclass(frozen=True)
class Game:
    """Samples that a head is fitted to, and the moments of the rows it is held against.

    Args:
        features: ``(n, T, d)`` rows of each sample, filled up with zeros.
        labels: ``(n, T)`` in [0, C), -1 where a row is filled up.
        gram: ``G``, ``(d, d)``.
        cross: ``Q``, ``(d, C)``; a label that no sample has needs no column, it is never predicted.
        ridge: ``lambda``, positive.
    """

    features: Tensor
    labels: Tensor
    gram: Tensor
    cross: Tensor
    ridge: float

    @property
    def classes(self) -> int:
        """``C``."""
        return self.cross.shape[1]

    def one_hot(self, labels: Tensor) -> Tensor:
        """``(…, C)`` of labels ``(…,)``; zero where they are negative."""
        hot = F.one_hot(labels.clamp(min=0), self.classes).to(self.features.dtype)
        return hot * (labels >= 0).unsqueeze(-1)


def moments(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """``G`` and ``Q``, ``(d, d)`` and ``(d, C)``, of rows ``(m, d)`` with labels ``(m,)``.

    Labels that are negative count in the mean, and have no column.
    """
    cross = features.new_zeros(classes, features.shape[1])
    known = labels >= 0
    cross.index_add_(0, labels[known], features[known])
    return features.T @ features / len(features), cross.T / len(features)


def worth(heads: Tensor, game: Game) -> Tensor:
    """Performance of heads ``(…, d, C)`` on the held rows, ``(…,)``, at most 1."""
    return (heads * (2 * game.cross - game.gram @ heads)).sum((-2, -1))


def fit(game: Game, selections: Tensor) -> Tensor:
    """Heads fitted to weighted coalitions, ``(K, d, C)``.

    Args:
        game: n samples.
        selections: ``(K, n)`` weight of each sample, in [0, 1].
    """
    _, rows, d = game.features.shape
    x, labels = game.features.reshape(-1, d), game.labels.reshape(-1)
    known = labels >= 0
    x, labels = x[known], labels[known]
    weights = selections.to(x.dtype).repeat_interleave(rows, 1)[:, known]
    eye = game.ridge * torch.eye(d, dtype=x.dtype, device=x.device)
    heads = []
    for part in weights.split(max(1, _BUDGET // (x.numel() or 1))):
        scaled = part[..., None] * x
        cross = x.new_zeros(len(part), game.classes, d).index_add_(1, labels, scaled)
        heads.append(torch.linalg.solve(eye + scaled.mT @ x, cross.mT))
    return torch.cat(heads)


def play(
    selector: Selector,
    strategy: Strategy,
    dataset: Dataset[Any],
    target: Literal["retain", "holdout"],
    samples: int,
    ridge: float,
) -> Game:
    """The game of a forget set, its rows scaled to a mean squared length of one before the one.

    Args:
        selector: reads the rows; its seed draws the held samples.
        strategy: has the task.
        dataset: the samples, n of them.
        target: set whose prediction is the performance.
        samples: of the target set, drawn uniformly; all of them where there are fewer.
        ridge: ``lambda``, in samples of mean squared length.
    """
    held = getattr(strategy.data, f"{target}_set")
    drawn = sample(len(held), min(samples, len(held)), selector.seed)
    features, labels, owner = label_rows(selector, strategy, dataset)
    queries, answers, _ = label_rows(selector, strategy, Subset(held, drawn.tolist()))
    for values in (features, queries):
        refuse_nonfinite(values, type(selector).__name__)
    features, queries = features.double(), queries.double()
    scale = float(features.square().sum(1).mean().sqrt()) or 1.0
    features, queries = (F.pad(x / scale, (0, 1), value=1.0) for x in (features, queries))
    known, own = labels.unique(return_inverse=True)
    place = torch.searchsorted(known, answers).clamp(max=len(known) - 1)
    answers = torch.where(known[place] == answers, place, -1)
    count = torch.bincount(owner, minlength=len(dataset))  # type: ignore[arg-type]
    number = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
    shape = (len(count), int(count.max()))
    padded = features.new_zeros(*shape, features.shape[1])
    padded[owner, number] = features
    padded_labels = own.new_full(shape, -1)
    padded_labels[owner, number] = own
    return Game(padded, padded_labels, *moments(queries, answers, len(known)), ridge)


def check_game(target: str, samples: int, ridge: float) -> None:
    """Refuse what no game can be played with.

    Raises:
        ValueError: an argument is out of range.
    """
    if target not in TARGETS:
        msg = f"`target` must be one of {TARGETS}, got {target!r}"
        raise ValueError(msg)
    if samples < 1:
        msg = f"`samples` must be at least 1, got {samples}"
        raise ValueError(msg)
    if not ridge > 0:
        msg = f"`ridge` must be positive, got {ridge}"
        raise ValueError(msg)
