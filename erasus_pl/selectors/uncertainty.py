"""Uncertainty: the samples that the model is least, or most, sure of.

Of a softmax ``p``: entropy ``H(p)``, and the margin of the two likeliest classes (Scheffer,
Decomain and Wrobel 2001). Of ``p_t`` under T draws of the weights: ``H(mean_t p_t) =
mean_t H(p_t) + I``, the aleatoric part, which more data would not lessen, and the epistemic part,
the mutual information of prediction and weights, by which BALD picks (Houlsby et al. 2011,
arXiv:1112.5745, eq. 2).

The draws are of dropout masks (Gal and Ghahramani, ICML 2016, arXiv:1506.02142), of the members of
a deep ensemble (Lakshminarayanan et al., NeurIPS 2017, arXiv:1612.01474), or of last layers from
their Laplace posterior (Daxberger et al., NeurIPS 2021, arXiv:2106.14806); ``_posteriors`` has
them. All samples are predicted by the same draws. A sequence scores the mean over its labelled
tokens.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors._posteriors import Draws, dropout, ensemble, laplace, softmax
from erasus_pl.selectors._rows import owners, sample_means
from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, Task

__all__ = ["Uncertainty", "decompose", "entropy", "margin"]

_MEASURES = ("entropy", "margin", "aleatoric", "epistemic")
_POSTERIORS = ("dropout", "ensemble", "laplace")


def entropy(probabilities: Tensor) -> Tensor:
    """``-sum_c p_c log p_c`` over the last dimension, in nats; 0 log 0 is 0.

    Args:
        probabilities: ``(…, C)``, sum to one.
    """
    return -torch.special.xlogy(probabilities, probabilities).sum(-1)


def margin(probabilities: Tensor) -> Tensor:
    """Largest less second largest probability, in [0, 1]; small where the model is unsure.

    Args:
        probabilities: ``(…, C)`` with C ≥ 2, sum to one.
    """
    best = probabilities.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def decompose(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Aleatoric and epistemic part of the entropy of the mean, each ``(N,)``, in nats.

    Args:
        probabilities: ``(T, N, C)`` of T draws of the weights.
    """
    aleatoric = entropy(probabilities).mean(0)
    return aleatoric, (entropy(probabilities.mean(0)) - aleatoric).clamp(min=0)


class Uncertainty(Selector):
    """Keep the samples that the model is least, or most, sure of.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        measure: `entropy` or `margin` of the prediction, or the `aleatoric` or `epistemic` part
            of its entropy under the posterior. With `dropout` the prediction is the model's own,
            otherwise the mean of the draws.
        keep: the `most` or the `least` uncertain.
        posterior: where draws come from: `dropout` masks; an `ensemble` of models trained by the
            task's recipe on all of the training data, the model to be unlearned not among them;
            or last layers from their `laplace` posterior.
        passes: draws of dropout masks or of last layers, at least 2.
        members: models of the ensemble, at least 2; the paper's M is 5.
        cache: folder of the ensemble; `uncertainty` in the run's folder if not given.
        prior: precision of the last layer's Gaussian prior, above 0; 1 in the authors' library
            where it is not tuned.
        samples: of the training data, by which the last layer's precision is computed, drawn
            uniformly and scaled up to all; all of them where there are fewer.
        seed: of the masks, the trainings or the last layers.
    """

    requires: ClassVar[tuple[str, ...]] = ("targets",)
    paper: ClassVar[dict[str, Any]] = {
        "title": "Bayesian Active Learning for Classification and Preference Learning",
        "year": 2011,
        "arxiv": "1112.5745",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        measure: Literal["entropy", "margin", "aleatoric", "epistemic"] = "entropy",
        keep: Literal["most", "least"] = "most",
        posterior: Literal["dropout", "ensemble", "laplace"] = "dropout",
        passes: int = 20,
        members: int = 5,
        cache: str | None = None,
        prior: float = 1.0,
        samples: int = 10_000,
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, k, seed)
        if measure not in _MEASURES:
            msg = f"`measure` must be one of {_MEASURES}, got {measure!r}"
            raise ValueError(msg)
        if keep not in ("most", "least"):
            msg = f"`keep` must be 'most' or 'least', got {keep!r}"
            raise ValueError(msg)
        if posterior not in _POSTERIORS:
            msg = f"`posterior` must be one of {_POSTERIORS}, got {posterior!r}"
            raise ValueError(msg)
        for name, value, least in (
            ("passes", passes, 2), ("members", members, 2), ("samples", samples, 1),
        ):  # fmt: skip
            if value < least:
                msg = f"`{name}` must be at least {least}, got {value}"
                raise ValueError(msg)
        if not 0 < prior < float("inf"):
            msg = f"`prior` must be above 0 and finite, got {prior}"
            raise ValueError(msg)
        self.measure = measure
        self.keep = keep
        self.posterior = posterior
        self.passes = passes
        self.members = members
        self.cache = cache
        self.prior = prior
        self.samples = samples

    @property
    def needs(self) -> frozenset[str]:
        """What the task must provide; for `laplace` the last layer of a softmax too."""
        more = ("linear_head", "log_likelihood") if self.posterior == "laplace" else ()
        return super().needs.union(more)

    @torch.no_grad()
    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Uncertainty of each sample, or its negative, ``(n,)``."""
        task, draws = strategy.task, self._draws(strategy)
        found = torch.cat([self._of(task, b, draws) for b in self.batches(strategy, dataset)])
        return found if self.keep == "most" else -found

    def _draws(self, strategy: Strategy) -> Draws:
        if self.posterior == "ensemble":
            return ensemble(strategy, self.members, self.seed, self.cache)
        if self.posterior == "laplace":
            return laplace(self, strategy, self.passes, self.prior, self.samples)
        return dropout(strategy.task, self.passes, self.seed)

    def _of(self, task: Task, batch: Batch, draws: Draws) -> Tensor:
        outputs = task(batch)
        owner = owners(task, outputs, batch)
        if self.measure in ("aleatoric", "epistemic"):
            values = decompose(draws(batch))[self.measure == "epistemic"]
        else:
            plain = self.posterior == "dropout"
            p = softmax(task, outputs, batch) if plain else draws(batch).mean(0)
            values = entropy(p) if self.measure == "entropy" else 1 - margin(p)
        return sample_means(values, owner, len(outputs))
