"""GLISTER: the samples on which one step of training helps a validation set most.

Killamsetty, Sivasubramanian, Ramakrishnan and Iyer, "GLISTER: Generalization based Data Subset
Selection for Efficient and Robust Learning" (AAAI 2021, arXiv:2012.10630), Alg. 2: the set S is
grown greedily for ``L_V(theta - eta sum_{i in S} g_i)``, the validation loss after a step on it.
The gain of one more sample is taken to first order, ``eta g_e^T grad L_V`` at the parameters that
the samples picked so far lead to (Sec. 3.2), so each round computes one validation gradient and n
products. As in the authors' code the parameters are those of the last linear layer, and a round
picks several samples at once.

The paper picks from the training set, again every few epochs; here once, from the forget set: the
samples that the validation set profits from most.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors._rows import drawn, head_gradients, refuse_nonfinite
from erasus_pl.selectors.base import Coreset, Selector
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, Task

__all__ = ["Glister", "glister"]

_TARGETS = ("holdout", "retain", "test")


def glister(
    products: Callable[[Tensor], Tensor],
    total: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    start: Tensor,
    k: int,
    eta: float,
    rounds: int,
) -> Tensor:
    """Picks ``(k,)`` in their order, ``ceil(k / rounds)`` at most in each round (Alg. 2).

    Args:
        products: a gradient ``(C, d)`` to the products of all samples' gradients with it, ``(n,)``.
        total: picks ``(m,)`` to the sum of their gradients, ``(C, d)``.
        slope: parameters ``(C, d)`` to the gradient of the validation loss there, ``(C, d)``.
        start: parameters ``(C, d)`` of the model.
        k: how many to pick, at most n.
        eta: length of the step, on the sum of the gradients.
        rounds: at least 1; with k or more, each sample is picked alone.
    """
    picked = torch.empty(0, dtype=torch.long)
    weight = start
    for size in torch.arange(k).tensor_split(min(rounds, k)):
        gains = products(slope(weight)).cpu()
        gains[picked] = -torch.inf
        best = gains.sort(descending=True, stable=True).indices[: len(size)]
        picked = torch.cat([picked, best])
        weight = weight - eta * total(best).to(weight)
    return picked


class Glister(Selector):
    """Keep the samples on which a training step would help a validation set most.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        target: the validation set: holdout, retain or test.
        eta: length of the step, on the sum of the gradients of what is picked, above 0.
        rounds: rounds of the greedy rule, 15 in the authors' code; with k or more, the validation
            gradient is taken anew for each sample.
        samples: of the validation set, drawn uniformly; all of it where there are fewer.
        seed: of that draw.
    """

    requires: ClassVar[tuple[str, ...]] = ("linear_head",)
    paper: ClassVar[dict[str, Any]] = {
        "title": (
            "GLISTER: Generalization based Data Subset Selection for Efficient and Robust Learning"
        ),
        "year": 2021,
        "arxiv": "2012.10630",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        target: Literal["holdout", "retain", "test"] = "holdout",
        eta: float = 0.01,
        rounds: int = 15,
        samples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(fraction, k, seed)
        if target not in _TARGETS:
            msg = f"`target` must be one of {_TARGETS}, got {target!r}"
            raise ValueError(msg)
        if not eta > 0:
            msg = f"`eta` must be above 0, got {eta}"
            raise ValueError(msg)
        for name, value in (("rounds", rounds), ("samples", samples)):
            if value < 1:
                msg = f"`{name}` must be at least 1, got {value}"
                raise ValueError(msg)
        self.target = target
        self.eta = eta
        self.rounds = rounds
        self.samples = samples

    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """The greedy rule on the gradients of the last layer."""
        task = strategy.task
        parts = [head_gradients(task, batch) for batch in self.batches(strategy, dataset)]
        refuse_nonfinite(torch.cat([part.squared_norms() for part in parts]), "Glister")
        shape = torch.Size((parts[0].outputs.shape[-1], parts[0].inputs.shape[-1]))
        counts = [len(part.inputs) for part in parts]
        validation = []
        for batch in self.batches(strategy, drawn(self, strategy, self.target, self.samples)):
            validation.append((_head_inputs(task, batch), batch))
        start = task.head.weight.detach()
        if task.head.bias is not None:
            start = torch.cat([start, task.head.bias.detach()[:, None]], 1)

        def products(gradient: Tensor) -> Tensor:
            return torch.cat([part.dots(gradient.double()) for part in parts])

        def total(picks: Tensor) -> Tensor:
            chosen = torch.zeros(sum(counts), dtype=torch.double)
            chosen[picks] = 1
            sums = [
                part.weighted(own.to(part.inputs), shape)
                for part, own in zip(parts, chosen.split(counts), strict=True)
            ]
            return torch.stack(sums).sum(0)

        def slope(weight: Tensor) -> Tensor:
            return _validation_slope(task, validation, weight, self.target)

        picks = glister(products, total, slope, start, k, self.eta, self.rounds)
        return Coreset(picks.sort().values)


def _head_inputs(task: Task, batch: Batch) -> Tensor:
    """What the last layer is fed; it must be what the network ends with."""
    with torch.no_grad():
        inputs, outputs = task._head_input(batch), task(batch)
        made = task.head(inputs)
    if made.shape != outputs.shape or not torch.allclose(made, outputs, equal_nan=True):
        msg = (
            f"Glister needs a network that ends with its linear layer, and "
            f"{type(task.network).__name__} goes on after it; use GradMatch or Influence"
        )
        raise TypeError(msg)
    return inputs


def _validation_slope(
    task: Task, validation: list[tuple[Tensor, Batch]], weight: Tensor, target: str
) -> Tensor:
    """Gradient of the mean validation loss by the last layer's weight and bias, ``(C, d)``."""
    weight = weight.detach().requires_grad_()
    total, samples = torch.zeros_like(weight), 0
    with torch.enable_grad():
        for inputs, batch in validation:
            width = inputs.shape[-1]
            bias = weight[:, width] if weight.shape[1] > width else None
            losses = task.per_sample_loss(F.linear(inputs, weight[:, :width], bias), batch)
            total += torch.autograd.grad(losses.sum(), weight)[0]
            samples += len(losses)
    if not total.isfinite().all():
        msg = f"Glister: the loss on the {target} set is not finite; look for NaN in its inputs"
        raise ValueError(msg)
    return total / samples
