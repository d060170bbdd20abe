"""Products of a mean loss's Hessian or Gauss-Newton matrix with a vector, without the matrix.

Pearlmutter 1994 for the Hessian; Schraudolph 2002 for the Gauss-Newton matrix. Both are taken
reverse over reverse on the module itself, so whatever can be differentiated twice will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from erasus_pl.linalg.parameters import flatten, trainable_parameters, unflatten

__all__ = ["gauss_newton_vector_product", "hessian_vector_product", "mean_gradient"]


def mean_gradient(
    module: nn.Module, loss_fn: Callable[[Any], Tensor], batches: Iterable[Any]
) -> Tensor:
    """Gradient ``(P,)`` of the mean loss over all samples of ``batches``.

    Args:
        module: owns the parameters; only those with ``requires_grad`` count.
        loss_fn: ``batch -> (B,)``, one loss for each sample.
        batches: read once.
    """
    parameters = trainable_parameters(module)

    def one(batch: Any) -> tuple[Tensor, int]:
        losses = loss_fn(batch)
        return _gradient(losses.sum(), parameters, create_graph=False), len(losses)

    return _mean(one, batches)


def hessian_vector_product(
    module: nn.Module,
    loss_fn: Callable[[Any], Tensor],
    batches: Iterable[Any],
    vector: Tensor,
) -> Tensor:
    """``H v (P,)`` where ``H`` is the Hessian of the mean loss over all samples of ``batches``.

    Args:
        module: owns the parameters; only those with ``requires_grad`` count.
        loss_fn: ``batch -> (B,)``, one loss for each sample.
        batches: read once; the mean weighs each sample alike, whatever the batch sizes.
        vector: ``v (P,)`` in the order of ``trainable_parameters``.
    """
    parameters = trainable_parameters(module)
    unflatten(vector, parameters)

    def one(batch: Any) -> tuple[Tensor, int]:
        losses = loss_fn(batch)
        gradient = _gradient(losses.sum(), parameters, create_graph=True)
        return _gradient(gradient @ vector, parameters, create_graph=False), len(losses)

    return _mean(one, batches)


def gauss_newton_vector_product(
    module: nn.Module,
    forward_fn: Callable[[Any], Tensor],
    loss_fn: Callable[[Tensor, Any], Tensor],
    batches: Iterable[Any],
    vector: Tensor,
) -> Tensor:
    """``G v (P,)``, ``G`` the mean over samples of ``J^T (d^2 loss / d outputs^2) J``.

    ``J`` is the Jacobian of the outputs. For a loss convex in the outputs, such as cross-entropy
    of logits, ``G`` is positive semi-definite and equals the Fisher information of the model.

    Args:
        module: owns the parameters; only those with ``requires_grad`` count.
        forward_fn: ``batch -> outputs (B, ...)``.
        loss_fn: ``(outputs, batch) -> (B,)``.
        batches: read once.
        vector: ``v (P,)`` in the order of ``trainable_parameters``.
    """
    parameters = trainable_parameters(module)
    unflatten(vector, parameters)

    def one(batch: Any) -> tuple[Tensor, int]:
        outputs = forward_fn(batch)
        dummy = torch.zeros_like(outputs, requires_grad=True)
        pulled = _gradient((outputs * dummy).sum(), parameters, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled @ vector, dummy, retain_graph=True)
        leaf = outputs.detach().requires_grad_()
        losses = loss_fn(leaf, batch)
        (slope,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True)
        if not slope.requires_grad:
            return torch.zeros_like(vector), len(losses)
        (bent,) = torch.autograd.grad((slope * pushed).sum(), leaf)
        return _gradient((outputs * bent).sum(), parameters, create_graph=False), len(losses)

    return _mean(one, batches)


def _gradient(scalar: Tensor, parameters: dict[str, nn.Parameter], create_graph: bool) -> Tensor:
    if not scalar.requires_grad:
        return flatten({name: torch.zeros_like(p) for name, p in parameters.items()})
    found = torch.autograd.grad(
        scalar,
        list(parameters.values()),
        create_graph=create_graph,
        materialize_grads=True,
    )
    return flatten(dict(zip(parameters, found, strict=True)))


def _mean(one: Callable[[Any], tuple[Tensor, int]], batches: Iterable[Any]) -> Tensor:
    total: Tensor | None = None
    samples = 0
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for batch in batches:
            part, count = one(batch)
            total = part.detach() if total is None else total + part.detach()
            samples += count
    if total is None:
        msg = "`batches` is empty: pass at least one batch"
        raise ValueError(msg)
    return total / samples
