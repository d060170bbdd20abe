"""Memorisation: the samples that a model gets right because it was trained on them.

Feldman and Zhang, "What Neural Networks Memorize and Why: Discovering the Long Tail via Influence
Estimation" (NeurIPS 2020, arXiv:2008.03703), Sec. 1.1 and Alg. 1:

    mem(A, S, i) = P_{h ~ A(S)} [h(x_i) = y_i] - P_{h ~ A(S without i)} [h(x_i) = y_i],

estimated by training m models on random subsets of a fraction r = 0.7 of the data: the accuracy on
sample i of those models whose subset holds i, less that of the others. The paper trains 2,000 to
4,000 models; with few the estimate is coarse, so samples are left out equally often here, while
each subset by itself is still a uniform one, and samples of one estimate are told apart by the same
difference of their losses. On a sequence the accuracy is the fraction of its tokens that are right.
What the recipe does not learn even where it is trained on, such as a wrong label in a training that
stops early, scores 0.

The models are trained by the task's own recipe, one after the other, shared out over processes.
What each gets right is kept in the run's folder, so a run that is killed goes on where it was, and
a run with another forget set on the same data trains nothing.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors._trained import keep_of_each, member_seed, trained_copy
from erasus_pl.selectors.base import Selector, refuse_nonfinite
from erasus_pl.strategies.base import Strategy

__all__ = ["Memorization", "memorization", "subsets"]

_TIE = 1e-9


def memorization(correct: Tensor, members: Tensor) -> Tensor:
    """Memorisation score of each sample, ``(n,)``; in [-1, 1] for correctness (Alg. 1).

    Args:
        correct: ``(m, n)`` whether each model gets each sample right, or any other value of it.
        members: ``(m, n)`` bool, whether the model was trained on it; each sample is in the subset
            of some model and missing from that of another.
    """
    inside = (correct * members).sum(0) / members.sum(0)
    return inside - (correct * ~members).sum(0) / (~members).sum(0)


def subsets(n: int, models: int, size: int, seed: int) -> Tensor:
    """Random subsets, each uniform among those of its size; ``(models, n)`` bool.

    Samples are left out equally often, or once more: each time those that were left out least,
    drawn at random among equals.

    Args:
        n: how many samples there are.
        models: how many subsets to draw.
        size: of each subset, less than n.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    left_out = torch.zeros(n, dtype=torch.float64)
    members = torch.ones(models, n, dtype=torch.bool)
    for member in members:
        draw = torch.rand(n, generator=generator, dtype=torch.float64)
        out = (left_out + draw).argsort()[: n - size]
        member[out] = False
        left_out[out] += 1
    return members


class Memorization(Selector):
    """Keep the samples that models get right only where they were trained on them.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        models: to train; the paper takes 2,000 or more.
        subset: part of the training data that each is trained on, in (0, 1); the paper's r.
        cache: folder of what was trained; `memorization` in the run's folder if not given.
        seed: of the subsets and of the models.
    """

    requires: ClassVar[tuple[str, ...]] = ("targets",)
    paper: ClassVar[dict[str, Any]] = {
        "title": (
            "What Neural Networks Memorize and Why: Discovering the Long Tail via Influence "
            "Estimation"
        ),
        "year": 2020,
        "arxiv": "2008.03703",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        models: int = 20,
        subset: float = 0.7,
        cache: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, k, seed)
        if not 0 < subset < 1:
            msg = f"`subset` must be in (0, 1), got {subset}"
            raise ValueError(msg)
        if models < 2:
            msg = f"`models` must be at least 2, got {models}"
            raise ValueError(msg)
        self.models = models
        self.subset = subset
        self.cache = cache

    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Memorisation score of each sample, ``(n,)``, with a tie's rank below 1e-9 added."""
        data, trainer = strategy.data, strategy.trainer
        n = len(data.train_set)
        size = min(max(round(self.subset * n), 1), n - 1)
        if self.models * (n - size) < n or self.models * size < n:
            msg = (
                f"`models`: {self.models} on subsets of {size} of {n} samples do not leave each "
                f"sample out, and take it in, once; give at least {-(-n // min(size, n - size))}"
            )
            raise ValueError(msg)
        members = subsets(n, self.models, size, self.seed)
        found = keep_of_each(
            strategy,
            self.models,
            self.cache or Path(trainer.default_root_dir) / "memorization",
            lambda i: _train(strategy, members[i], member_seed(self.seed, i)),
            "memorisation",
            size=size,
            seed=self.seed,
        )
        losses, correct = (torch.stack([f[name] for f in found]) for name in ("losses", "correct"))
        positions = torch.cat([b["index"].cpu() for b in self.batches(strategy, dataset)])
        losses, correct, members = (x[:, positions] for x in (losses, correct, members))
        refuse_nonfinite(losses.T, dataset, "Memorization")
        gap = -memorization(losses, members)
        return memorization(correct, members) + _TIE * gap / (1 + gap.abs().max())


def _train(strategy: Strategy, members: Tensor, seed: int) -> dict[str, Tensor]:
    """Losses and correctness ``(n,)`` on all training data of a model trained on a part of it."""
    data = strategy.data.retaining(members.nonzero()[:, 0])
    task = trained_copy(strategy, data, "retrain", seed)
    losses, correct = [], []
    with torch.no_grad():
        for batch in data.sweep(data.train_set):
            batch = strategy.trainer.strategy.batch_to_device(batch)
            outputs = task(batch)
            losses.append(task.per_sample_loss(outputs, batch).double().cpu())
            correct.append(task.correct(outputs, batch).double().cpu())
    return {"losses": torch.cat(losses), "correct": torch.cat(correct)}
