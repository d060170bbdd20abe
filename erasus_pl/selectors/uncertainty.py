"""Uncertainty: the samples that the model is least, or most, sure of.

Of the softmax ``p`` of the model: entropy ``H(p)``, and the margin of the two likeliest classes
(Scheffer, Decomain and Wrobel 2001). Of ``p_t`` under T draws of the dropout masks, which Gal and
Ghahramani, "Dropout as a Bayesian Approximation" (ICML 2016, arXiv:1506.02142) read as draws from
the posterior of the weights: ``H(mean_t p_t) = mean_t H(p_t) + I``, the aleatoric part, which more
data would not lessen, and the epistemic part, the mutual information of prediction and weights,
by which BALD picks (Houlsby et al. 2011, arXiv:1112.5745, eq. 2).

A draw is of the weights, so within one all samples, and all positions of a sequence, share their
masks. A sequence scores the mean over its labelled tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from erasus_pl.selectors._rows import owners, sample_means
from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, Task

__all__ = ["Uncertainty", "decompose", "entropy", "margin"]

_MEASURES = ("entropy", "margin", "aleatoric", "epistemic")
_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


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
            of its entropy under dropout.
        keep: the `most` or the `least` uncertain.
        passes: draws of the dropout masks; of no matter to `entropy` and `margin`.
        seed: of the masks.
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
        passes: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, k, seed)
        if measure not in _MEASURES:
            msg = f"`measure` must be one of {_MEASURES}, got {measure!r}"
            raise ValueError(msg)
        if keep not in ("most", "least"):
            msg = f"`keep` must be 'most' or 'least', got {keep!r}"
            raise ValueError(msg)
        if passes < 2:
            msg = f"`passes` must be at least 2, got {passes}"
            raise ValueError(msg)
        self.measure = measure
        self.keep = keep
        self.passes = passes

    @torch.no_grad()
    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """Uncertainty of each sample, or its negative, ``(n,)``."""
        task = strategy.task
        found = torch.cat([self._of(task, batch) for batch in self.batches(strategy, dataset)])
        return found if self.keep == "most" else -found

    def _of(self, task: Task, batch: Batch) -> Tensor:
        outputs = task(batch)
        owner = owners(task, outputs, batch)
        if self.measure == "entropy":
            values = entropy(_softmax(task, outputs, batch))
        elif self.measure == "margin":
            values = 1 - margin(_softmax(task, outputs, batch))
        else:
            draws = []
            with _dropout(task.network) as generator:
                for number in range(self.passes):
                    generator.manual_seed(self.seed * self.passes + number)
                    draws.append(_softmax(task, task(batch), batch))
            values = decompose(torch.stack(draws))[self.measure == "epistemic"]
        return sample_means(values, owner, len(outputs))


def _softmax(task: Task, outputs: Tensor, batch: Batch) -> Tensor:
    return task.predictions(outputs, batch)[0].double().softmax(-1)


@contextmanager
def _dropout(network: nn.Module) -> Iterator[torch.Generator]:
    """Let dropout layers drop in evaluation mode, by masks that all samples share."""
    generator = torch.Generator()
    kinds = (nn.Dropout, *_CHANNELS)
    layers = [m for m in network.modules() if isinstance(m, kinds) and 0 < m.p < 1]
    if not layers:
        msg = (
            f"Uncertainty: {type(network).__name__} has no dropout layer that drops a part, which "
            "`measure` aleatoric and epistemic draw by; use 'entropy' or 'margin'"
        )
        raise TypeError(msg)

    def drop(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        kept = 1 - float(layer.p)  # type: ignore[arg-type]
        shape = list(output.shape)
        shape[0] = 1
        if isinstance(layer, _CHANNELS):
            shape[2:] = [1] * (len(shape) - 2)
        elif len(shape) == 3:
            shape[1] = 1
        mask = torch.rand(shape, generator=generator, dtype=torch.float64) < kept
        return output * mask.to(output.device) / kept

    hooks = [layer.register_forward_hook(drop) for layer in layers]
    try:
        yield generator
    finally:
        for hook in hooks:
            hook.remove()
