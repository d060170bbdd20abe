"""Per-sample gradients: norms, products with a vector, squares, or the gradients themselves.

Three routes, all exact:

* ``"ghost"``: one forward and one backward over the batch; each layer's gradient stays in factors
  (Goodfellow 2015, arXiv:1510.01799). Norms of a linear layer cost what its backward costs.
* ``"vmap"``: ``vmap(grad(functional_call))``, which forms every sample's gradient.
* ``"loop"``: one backward pass for each sample.

``"auto"`` takes the first that applies. The ghost route proves itself on the first batch of each
size: the sum of its per-sample gradients under irregular weights must be autograd's gradient of
the weighted loss. A weight used outside its layer, a layer that mixes samples or has no batch
dimension all break that equality, and the next route is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from erasus_pl.linalg.batches import batch_size, is_batched, rows
from erasus_pl.linalg.capture import Captured, Unsupported, capture, layers_with_parameters
from erasus_pl.linalg.contributions import Dense, ParameterGradient
from erasus_pl.linalg.parameters import trainable_parameters, unflatten

__all__ = [
    "Method",
    "PerSampleGradients",
    "gradient_dots",
    "gradient_norms",
    "per_sample_gradients",
]

LossFn = Callable[[Any], Tensor]
Method = Literal["auto", "ghost", "vmap", "loop"]
_BUDGET = 2**24


class PerSampleGradients:
    """Gradients of each sample's loss with respect to a module's trainable parameters.

    Args:
        module: owns the parameters; only those with ``requires_grad`` count.
        loss_fn: ``batch -> (B,)``, one loss for each sample, computed with ``module``.
        method: route to take. With ``"auto"`` the attribute ``method`` names the one in use and
            ``reason`` says why an earlier one was left.
        chunk_size: samples whose gradients are formed at once on the last two routes; by default
            as many as keep them under 64 MiB in single precision.

    A batch is any nest of dictionaries and sequences; its size is that of its ``"index"`` entry,
    or else of its first tensor. Nothing is written to ``.grad``, buffers or, outside of dropout in
    training mode, random state.

    Raises:
        ValueError: when all parameters are frozen, or a batch norm layer would mix the samples.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFn,
        method: Method = "auto",
        chunk_size: int | None = None,
    ) -> None:
        if method not in get_args(Method):
            msg = f"`method` must be one of {get_args(Method)}, got {method!r}"
            raise ValueError(msg)
        self.parameters = trainable_parameters(module)
        _refuse_mixing(module)
        self.module, self.loss_fn = module, loss_fn
        self._auto = method == "auto"
        self.method: Method = "ghost" if self._auto else method
        self.reason = ""
        size = sum(parameter.numel() for parameter in self.parameters.values())
        self.chunk_size = chunk_size or max(1, _BUDGET // size)
        self._layers: list[nn.Module] | None = None
        self._proven: set[int] = set()

    def norms(self, batch: Any) -> Tensor:
        """Gradient norms ``(B,)`` over all trainable parameters together."""
        if (groups := self._ghost(batch)) is not None:
            squares = [group.squared_norms() for group in groups.values()]
            return self._total(squares, batch).sqrt()
        return torch.cat([_flat(part).square().sum(1) for part in self._formed(batch)]).sqrt()

    def dots(self, batch: Any, vector: Tensor) -> Tensor:
        """Products ``(B,)`` of each gradient with a flat vector ``(P,)``."""
        if (groups := self._ghost(batch)) is not None:
            along = unflatten(vector, self.parameters)
            return self._total([groups[name].dots(along[name]) for name in groups], batch)
        return torch.cat([_flat(part) @ vector for part in self._formed(batch)])

    def gradients(self, batch: Any) -> dict[str, Tensor]:
        """The gradients, ``(B, *shape)`` for each parameter by name."""
        if (groups := self._ghost(batch)) is not None:
            samples = batch_size(batch)
            return {
                name: groups[name].dense() if name in groups else p.new_zeros(samples, *p.shape)
                for name, p in self.parameters.items()
            }
        parts = list(self._formed(batch))
        return {name: torch.cat([part[name] for part in parts]) for name in self.parameters}

    def parts(self, batch: Any) -> Iterator[dict[str, ParameterGradient]]:
        """The gradients by name, a few samples at a time, in factors where the route has them."""
        if (groups := self._ghost(batch)) is not None:
            yield groups
            return
        for part in self._formed(batch):
            made = {}
            for name, gradient in part.items():
                made[name] = ParameterGradient(len(gradient), gradient.shape[1:])
                made[name].add(Dense(partial(_given, gradient)))
            yield made

    def squares(self, batch: Any) -> dict[str, Tensor]:
        """The sum over samples of the squared gradient, in each parameter's shape, by name."""
        total = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        if (groups := self._ghost(batch)) is not None:
            for name, group in groups.items():
                total[name] += group.squares()
        else:
            for part in self._formed(batch):
                for name, gradient in part.items():
                    total[name] += gradient.square().sum(0)
        return total

    def magnitudes(self, batch: Any) -> dict[str, Tensor]:
        """The sum over samples of the gradient's absolute value, per parameter, by name."""
        total = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        if (groups := self._ghost(batch)) is not None:
            for name, group in groups.items():
                total[name] += group.magnitudes()
        else:
            for part in self._formed(batch):
                for name, gradient in part.items():
                    total[name] += gradient.abs().sum(0)
        return total

    def _total(self, terms: list[Tensor], batch: Any) -> Tensor:
        if not terms:
            return next(iter(self.parameters.values())).new_zeros(batch_size(batch))
        return torch.stack(terms).sum(0)

    def _ghost(self, batch: Any) -> dict[str, ParameterGradient] | None:
        if self.method != "ghost":
            return None
        samples = batch_size(batch)
        try:
            if self._layers is None:
                self._layers = layers_with_parameters(self.module)
            known = samples in self._proven
            captured = capture(self._layers, self.loss_fn, batch, samples, keep_graph=not known)
            if not known:
                self._prove(captured)
                self._proven.add(samples)
        except Unsupported as error:
            if not self._auto:
                msg = f"ghost gradients do not apply: {error}; use 'auto'"
                raise ValueError(msg) from None
            self.method, self.reason = "vmap", str(error)
            return None
        names = {parameter: name for name, parameter in self.parameters.items()}
        return {names[p]: group for p, group in captured.gradients.items() if p in names}

    def _prove(self, captured: Captured) -> None:
        """Compare with autograd under weights that no mixture of samples can satisfy."""
        losses, parameters = captured.losses, list(self.parameters.values())
        tolerance = min(0.05, 3 * math.sqrt(torch.finfo(captured.dtype).eps))
        order = torch.arange(len(losses), device=losses.device, dtype=losses.dtype)
        weights = torch.cos(order * math.pi * (math.sqrt(5) - 1)) + 1.5
        truth = torch.autograd.grad(losses, parameters, weights, allow_unused=True)
        for (name, parameter), expected in zip(self.parameters.items(), truth, strict=True):
            group = captured.gradients.get(parameter)
            if group is None:
                wrong = expected is not None and bool(expected.any())
            else:
                scale = (group.squared_norms() * weights**2).sum().sqrt()
                got = group.weighted(weights.to(scale.dtype))
                error = got if expected is None else got - expected
                wrong = bool(error.norm() > tolerance * scale)
            if wrong:
                msg = f"`{name}` is used outside its layer, or samples are mixed"
                raise Unsupported(msg)

    def _formed(self, batch: Any) -> Iterator[dict[str, Tensor]]:
        """Gradients of at most ``chunk_size`` samples at a time, by name."""
        samples = batch_size(batch)
        for start in range(0, samples, self.chunk_size):
            part = rows(batch, slice(start, start + self.chunk_size), samples)
            if self.method == "vmap":
                try:
                    made = self._vmapped(part)
                except RuntimeError as error:
                    if not self._auto or "vmap" not in str(error):
                        raise
                    self.method, self.reason = "loop", str(error).partition("\n")[0]
            yield self._one_by_one(part) if self.method == "loop" else made

    def _vmapped(self, batch: Any) -> dict[str, Tensor]:
        samples = batch_size(batch)
        leaves, spec = pytree.tree_flatten(batch)
        mapped = [i for i, leaf in enumerate(leaves) if is_batched(leaf, samples)]
        closure = _Closure(self.module, self.loss_fn)

        def loss(parameters: dict[str, Tensor], sample: list[Tensor]) -> Tensor:
            filled = list(leaves)
            for i, row in zip(mapped, sample, strict=True):
                filled[i] = row.unsqueeze(0)
            item = pytree.tree_unflatten(filled, spec)
            swapped = {f"module.{name}": p for name, p in parameters.items()}
            value: Tensor = functional_call(closure, swapped, (item,))
            return value.squeeze(0)

        detached = {name: p.detach() for name, p in self.parameters.items()}
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            each = vmap(grad(loss), in_dims=(None, 0), randomness="different")
            gradients: dict[str, Tensor] = each(detached, [leaves[i] for i in mapped])
        return gradients

    def _one_by_one(self, batch: Any) -> dict[str, Tensor]:
        samples = batch_size(batch)
        found: list[tuple[Tensor, ...]] = []
        for i in range(samples):
            with torch.enable_grad():
                loss = self.loss_fn(rows(batch, slice(i, i + 1), samples)).sum()
            found.append(
                torch.autograd.grad(loss, list(self.parameters.values()), materialize_grads=True)
            )
        return {
            name: torch.stack(each)
            for name, each in zip(self.parameters, zip(*found, strict=True), strict=True)
        }


def _given(gradient: Tensor) -> Tensor:
    return gradient


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1)


def _refuse_mixing(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            msg = (
                f"`{name}` normalises by the statistics of the batch, so a sample has no gradient "
                "of its own: put the module in eval mode, with running statistics"
            )
            raise ValueError(msg)


class _Closure(nn.Module):
    """Gives a loss function the face of a module, so that its parameters can be swapped."""

    def __init__(self, module: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.module = module
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(batch)


def gradient_norms(
    module: nn.Module, loss_fn: LossFn, batch: Any, method: Method = "auto"
) -> Tensor:
    """Norms ``(B,)`` of each sample's gradient; see ``PerSampleGradients``."""
    return PerSampleGradients(module, loss_fn, method).norms(batch)


def gradient_dots(
    module: nn.Module, loss_fn: LossFn, batch: Any, vector: Tensor, method: Method = "auto"
) -> Tensor:
    """Products ``(B,)`` of each gradient with ``vector (P,)``; see ``PerSampleGradients``."""
    return PerSampleGradients(module, loss_fn, method).dots(batch, vector)


def per_sample_gradients(
    module: nn.Module, loss_fn: LossFn, batch: Any, method: Method = "auto"
) -> dict[str, Tensor]:
    """Each sample's gradient, ``(B, *shape)`` by parameter name; see ``PerSampleGradients``."""
    return PerSampleGradients(module, loss_fn, method).gradients(batch)
