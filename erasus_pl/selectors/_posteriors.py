"""Draws of the weights from a posterior, or what stands in for one, and what they predict.

Each function gives another, of a batch, that gives the softmax ``(T, N, C)`` of T draws, double, on
the N rows that the task predicts. The draws are the same for every batch.

- ``dropout``: of the masks (Gal and Ghahramani, ICML 2016, arXiv:1506.02142). All samples of a
  draw, and all positions of a sequence, share their masks.
- ``ensemble``: models trained from other seeds (Lakshminarayanan, Pritzel and Blundell, "Simple
  and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS 2017,
  arXiv:1612.01474, Alg. 1 without its adversarial examples), each on all of the training data.
- ``laplace``: a Gaussian over the weights and bias of the last layer about those it has (Daxberger
  et al., "Laplace Redux - Effortless Bayesian Deep Learning", NeurIPS 2021, arXiv:2106.14806, the
  last-layer variant), whose precision is the whole Gauss-Newton matrix of the summed cross-entropy
  and that of the prior. The layer is taken for the mode of its posterior, which it is not quite.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from erasus_pl.selectors._rows import drawn, label_rows
from erasus_pl.selectors._trained import keep_of_each, member_seed, trained_copy
from erasus_pl.selectors.base import Selector, refuse_nonfinite
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, Task

__all__ = [
    "Draws", "dropout", "dropping", "ensemble", "laplace", "laplace_heads", "laplace_precision",
    "softmax",
]  # fmt: skip

Draws = Callable[[Batch], Tensor]

_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_LIMIT = 2**30  # bytes of the precision
_CHUNK = 2**24  # entries of what is made of some of the rows


def softmax(task: Task, outputs: Tensor, batch: Batch) -> Tensor:
    """``(N, C)``, double, of the rows that the task predicts."""
    return task.predictions(outputs, batch)[0].double().softmax(-1)


def dropout(task: Task, passes: int, seed: int) -> Draws:
    """Draws of the dropout masks.

    Args:
        task: has a dropout layer.
        passes: T.
        seed: of the masks.
    """

    def draws(batch: Batch) -> Tensor:
        found = []
        with dropping(task.network) as generator:
            for number in range(passes):
                generator.manual_seed(seed * passes + number)
                found.append(softmax(task, task(batch), batch))
        return torch.stack(found)

    return draws


@contextmanager
def dropping(network: nn.Module) -> Iterator[torch.Generator]:
    """Let dropout layers drop in evaluation mode, by masks that all samples share."""
    generator = torch.Generator()
    kinds = (nn.Dropout, *_CHANNELS)
    layers = [m for m in network.modules() if isinstance(m, kinds) and 0 < m.p < 1]
    if not layers:
        msg = (
            f"Uncertainty: {type(network).__name__} has no dropout layer that drops a part, which "
            "`measure` aleatoric and epistemic draw by; use 'entropy' or 'margin', or the "
            "`posterior` 'laplace' or 'ensemble'"
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


def ensemble(strategy: Strategy, members: int, seed: int, cache: str | None) -> Draws:
    """Models trained by the task's own recipe, kept in a folder.

    The model to be unlearned is none of them: its weights may be of another recipe, and without it
    what is kept serves every model of the same recipe and data.

    Args:
        strategy: of the run.
        members: T.
        seed: of the trainings.
        cache: folder of the weights; `uncertainty` in the run's folder if not given.
    """

    def make(number: int) -> dict[str, Tensor]:
        everything = torch.arange(len(strategy.data.train_set))
        data = strategy.data.retaining(everything)
        trained = trained_copy(strategy, data, "train", member_seed(seed, number))
        return {k: v.cpu() for k, v in trained.network.state_dict().items()}

    folder = cache or Path(strategy.trainer.default_root_dir) / "uncertainty"
    states = keep_of_each(
        strategy, members, folder, make, "deep ensemble", of="ensemble", seed=seed
    )
    task = copy.deepcopy(strategy.task)

    def draws(batch: Batch) -> Tensor:
        found = []
        for state in states:
            task.network.load_state_dict(state)
            found.append(softmax(task, task(batch), batch))
        return torch.stack(found)

    return draws


def laplace_precision(
    features: Tensor, probabilities: Tensor, prior: float, scale: float = 1.0
) -> Tensor:
    """``scale sum_i Lambda_i (x) f_i f_i^T + prior I``, ``(C d, C d)``.

    With ``Lambda_i = diag(p_i) - p_i p_i^T`` that is the Gauss-Newton matrix of the summed
    cross-entropy by the weights ``W (C, d)`` of a linear layer, row after row, which is its Hessian
    too, whatever the labels.

    Args:
        features: ``f (N, d)``, input of the layer, ending in a one where it has a bias.
        probabilities: ``p (N, C)``, softmax of ``W f``.
        prior: precision of the weights' Gaussian prior, above 0.
        scale: how many rows each stands for.
    """
    d, classes = features.shape[1], probabilities.shape[1]
    matrix = features.new_zeros(classes * d, classes * d)
    blocks = matrix.view(classes, d, classes, d).diagonal(dim1=0, dim2=2)  # (d, d, C)
    size = max(1, _CHUNK // (classes * d))
    for f, p in zip(features.split(size), probabilities.split(size), strict=True):
        outer = (p[:, :, None] * f[:, None]).flatten(1)
        matrix.addmm_(outer.T, outer, alpha=-scale)
        blocks += scale * (outer.view(len(f), classes, d).permute(1, 2, 0) @ f).permute(1, 2, 0)
    matrix.diagonal().add_(prior)
    return matrix


def laplace_heads(mean: Tensor, precision: Tensor, draws: int, seed: int) -> Tensor:
    """Draws of a layer's weights from ``N(mean, precision^-1)``, ``(draws, C, d)``.

    Args:
        mean: ``(C, d)``, double.
        precision: ``(C d, C d)``, positive definite.
        draws: how many.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(draws, mean.numel(), generator=generator, dtype=torch.float64)
    root = torch.linalg.cholesky(precision)
    steps = torch.linalg.solve_triangular(root.mT, noise.to(root).T, upper=True)
    return mean + steps.T.reshape(draws, *mean.shape)


def laplace(
    selector: Selector, strategy: Strategy, passes: int, prior: float, samples: int
) -> Draws:
    """Draws of the last layer. The labelled tokens of a sequence are so many observations.

    Args:
        selector: reads the rows; its seed is that of all draws.
        strategy: has a task whose last linear layer gives the logits of its softmax.
        passes: T.
        prior: precision of the weights' Gaussian prior, above 0.
        samples: of the training data at most; fewer than all stand for all.
    """
    task, head = strategy.task, strategy.task.head
    size = head.out_features * (head.in_features + (head.bias is not None))
    if 8 * size**2 > _LIMIT:
        msg = (
            f"Uncertainty: `posterior` laplace needs {size}² entries, "
            f"{8 * size**2 / 2**20:,.0f} MiB, for the {size} weights of the last layer, over the "
            f"bound of {_LIMIT / 2**20:,.0f} MiB ({int((_LIMIT / 8) ** 0.5)} weights); use "
            "'ensemble' or 'dropout'"
        )
        raise ValueError(msg)
    part = drawn(selector, strategy, "train", samples)
    batch = next(iter(selector.batches(strategy, part)))
    logits = task.predictions(task(batch), batch)[0].double()
    mean = _with_bias(head.weight.double(), head.bias)
    inputs = task.predictions(task._head_input(batch), batch)[0]
    if inputs.shape[:-1] != logits.shape[:-1] or inputs.shape[-1] != head.in_features:
        own = None
    else:
        own = _ending_in_one(inputs, head) @ mean.T
    if own is None or own.shape != logits.shape or bool(_far(own, logits)):
        msg = (
            f"Uncertainty: what the last nn.Linear of {type(task.network).__name__} gives is not "
            "what the model predicts by, as `posterior` laplace needs; use 'ensemble' or 'dropout'"
        )
        raise TypeError(msg)
    features, _, owner = label_rows(selector, strategy, part)
    features = _ending_in_one(features, head)
    probabilities = (features @ mean.T).softmax(-1)
    each = features.new_zeros(len(part))  # type: ignore[arg-type]
    each.index_add_(0, owner, features.sum(1) + probabilities.sum(1))
    refuse_nonfinite(each, part, "Uncertainty")
    share = len(strategy.data.train_set) / len(part)  # type: ignore[arg-type]
    precision = laplace_precision(features, probabilities, prior, share)
    heads = laplace_heads(mean, precision, passes, selector.seed)

    def draws(batch: Batch) -> Tensor:
        inputs = _ending_in_one(task.predictions(task._head_input(batch), batch)[0], head)
        return (inputs @ heads.mT).softmax(-1)

    return draws


def _with_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight if bias is None else torch.cat([weight, bias.to(weight)[:, None]], 1)


def _ending_in_one(inputs: Tensor, head: nn.Linear) -> Tensor:
    inputs = inputs.double()
    return inputs if head.bias is None else torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)


def _far(own: Tensor, logits: Tensor) -> Tensor:
    """Whether they differ by more than rounding does in half precision."""
    largest = logits.abs().max() if len(logits) else 0.0
    return ((own - logits).abs() > 0.02 * (1 + largest)).any()
