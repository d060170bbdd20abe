"""Representer points: the part that each training sample has in what the last layer says.

Yeh, Kim, Yen and Ravikumar, "Representer Point Selection for Explaining Deep Neural Networks"
(NeurIPS 2018, arXiv:1811.09720). With features f of the last layer's input and weights W that
minimise ``(1/n) sum_i loss(W f_i, y_i) + lambda ||W||^2``, stationarity gives (Theorem 3.1)

    W f = sum_i alpha_i f_i^T f,    alpha_i = -(1 / (2 lambda n)) d loss / d (W f_i),

so ``alpha_ij f_i^T f`` is the sample's part in the logit of class j. A network is not trained that
way, hence the last layer is fitted anew, to a stationary point, on a copy: as in their Sec. 3.2 to
the model's own predictions, or as in Sec. 3.1 to the data's labels. The loss is cross-entropy of
the softmax; the fit is Newton's method, whose error in the logits is below 1e-6. As in the authors'
code the features end in a one where the layer has a bias, and the bias is regularised too.

The score of a sample is the size of its part in the logit of its own label at itself, or its mean
part in the logits of the labels of a target set: positive where it holds them up. A sequence is its
labelled tokens, and its score the sum of theirs.
"""

import warnings
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.linalg import conjugate_gradient
from erasus_pl.selectors._rows import drawn, owners
from erasus_pl.selectors.base import Selector, refuse_nonfinite
from erasus_pl.strategies.base import Strategy

__all__ = ["Representer", "fit_head", "representer_weights"]

_TARGETS = ("self", "forget", "retain", "test", "holdout")
_ACCURACY = 1e-6


def fit_head(features: Tensor, labels: Tensor, lam: float, max_steps: int = 100) -> Tensor:
    """``argmin_W (1/n) sum_i H(labels_i, softmax(W f_i)) + lam ||W||^2``, ``(C, d)``.

    Args:
        features: ``f (n, d)``, double.
        labels: ``(n, C)``, a distribution over classes for each.
        lam: ``lambda``, above 0.
        max_steps: Newton steps at most.

    Warns:
        UserWarning: when the representer theorem holds less well than to 1e-6 in the logits.
    """
    n = len(features)
    weight = features.new_zeros(labels.shape[1], features.shape[1])
    longest = float(features.norm(dim=1).max())

    def objective(w: Tensor) -> float:
        return float(F.cross_entropy(features @ w.T, labels) + lam * w.square().sum())

    error = torch.inf
    for _ in range(max_steps):
        p = (features @ weight.T).softmax(1)
        slope = (p - labels).T @ features / n + 2 * lam * weight
        error = float(slope.norm()) * longest / (2 * lam)
        if error <= _ACCURACY:
            return weight

        def product(vector: Tensor, p: Tensor = p) -> Tensor:
            along = features @ vector.view(p.shape[1], -1).T
            bent = p * (along - (p * along).sum(1, keepdim=True))
            return (bent.T @ features / n).reshape(-1)

        closeness = min(0.1, float(slope.norm()))
        step = conjugate_gradient(product, slope.reshape(-1), 2 * lam, closeness, 1000).x
        step, size, before = step.view_as(weight), 1.0, objective(weight)
        fall = float((slope * step).sum())
        # Near the minimum rounding hides the fall of the objective: a full step is right there.
        while size > 1e-6 and objective(weight - size * step) > before - 1e-4 * size * fall:
            if fall < 1e-12 * max(1.0, before):
                break
            size /= 2
        weight = weight - size * step
    warnings.warn(
        f"representer: the last layer is fitted to {error:.1e} of {_ACCURACY:.0e} in the logits; "
        "raise `lam`",
        stacklevel=2,
    )
    return weight


def representer_weights(features: Tensor, labels: Tensor, weight: Tensor, lam: float) -> Tensor:
    """``alpha (n, C)`` (Theorem 3.1), of ``W f = sum_i alpha_i f_i^T f`` at a stationary W.

    Args:
        features: ``f (n, d)``.
        labels: ``(n, C)``, a distribution over classes for each.
        weight: ``W (C, d)`` of ``fit_head``.
        lam: ``lambda``, above 0.
    """
    return (labels - (features @ weight.T).softmax(1)) / (2 * lam * len(features))


class Representer(Selector):
    """Keep the samples with the largest part in the last layer's logits.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        target: `self`, for a sample's part in the logit of its own label at itself, in size, or
            the set in whose labels' logits its mean part is taken: forget, retain, test, holdout.
        labels: what the last layer is fitted to: the `model`'s predictions or the `data`'s labels.
        lam: weight decay of that fit, the paper's lambda, above 0; 0.003 in the authors' code.
        samples: retained samples in the fit, beside all of the forget set, and samples of the
            target, drawn uniformly; all of them where there are fewer.
        seed: of the draw.
    """

    requires: ClassVar[tuple[str, ...]] = ("linear_head", "log_likelihood", "targets")
    paper: ClassVar[dict[str, Any]] = {
        "title": "Representer Point Selection for Explaining Deep Neural Networks",
        "year": 2018,
        "arxiv": "1811.09720",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        target: Literal["self", "forget", "retain", "test", "holdout"] = "self",
        labels: Literal["model", "data"] = "model",
        lam: float = 0.003,
        samples: int = 10_000,
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, k, seed)
        if target not in _TARGETS:
            msg = f"`target` must be one of {_TARGETS}, got {target!r}"
            raise ValueError(msg)
        if labels not in ("model", "data"):
            msg = f"`labels` must be 'model' or 'data', got {labels!r}"
            raise ValueError(msg)
        if not lam > 0:
            msg = f"`lam` must be above 0, got {lam}"
            raise ValueError(msg)
        if samples < 1:
            msg = f"`samples` must be at least 1, got {samples}"
            raise ValueError(msg)
        self.target = target
        self.labels = labels
        self.lam = lam
        self.samples = samples

    @torch.no_grad()
    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Representer value of each sample, ``(n,)``."""
        features, predicted, own, owner = self._rows(strategy, dataset, "training data")
        kept = drawn(self, strategy, "retain", self.samples)
        others = self._rows(strategy, kept, "training data")
        rows = torch.cat([features, others[0]])
        if self.labels == "model":
            labels = torch.cat([predicted, others[1]])
        else:
            labels = F.one_hot(torch.cat([own, others[2]]), predicted.shape[1]).to(rows)
        alpha = representer_weights(rows, labels, fit_head(rows, labels, self.lam), self.lam)
        alpha = alpha[: len(features)]
        name = self.target
        if name == "self":
            values = alpha.gather(1, own[:, None])[:, 0].abs() * features.square().sum(1)
        else:
            where = "training data" if name == "retain" else "held-out data"
            at, _, wanted, _ = (
                (features, predicted, own, owner)
                if name == "forget"
                else self._rows(strategy, drawn(self, strategy, name, self.samples), where)
            )
            mean = features.new_zeros(alpha.shape[1], features.shape[1])
            mean.index_add_(0, wanted, at / len(at))
            values = ((features @ mean.T) * alpha).sum(1)
        return values.new_zeros(len(cast(Any, dataset))).index_add_(0, owner, values)

    def _rows(
        self, strategy: Strategy, dataset: Dataset[Any], name: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features ``(N, d)``, predictions ``(N, C)`` and labels ``(N,)``, and whose they are."""
        task, found, seen = strategy.task, [], 0
        for batch in self.batches(strategy, dataset):
            inputs, outputs = task._head_input(batch), task(batch)
            features, labels = task.predictions(inputs, batch)
            predicted = task.predictions(outputs, batch)[0].double().softmax(-1)
            owner = owners(task, outputs, batch) + seen
            found.append((features.double(), predicted, labels, owner))
            seen += len(outputs)
        features, predicted, labels, owner = (torch.cat(p) for p in zip(*found, strict=True))
        total = predicted.sum(1) + features.sum(1)
        each = total.new_zeros(seen).index_add_(0, owner, total)
        refuse_nonfinite(each, dataset, "Representer", name)
        if task.head.bias is not None:
            features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        return features, predicted, labels, owner
