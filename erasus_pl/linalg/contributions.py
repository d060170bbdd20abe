"""Per-sample gradients of one parameter, kept in factored form.

A layer's weight gradient for sample *i* is usually a sum of few outer products; its norm, its
product with a vector and its square can be had from the factors without ever forming it
(Goodfellow 2015, arXiv:1510.01799; for sequences Li et al. 2022, arXiv:2110.05679).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

__all__ = ["Dense", "Lookup", "Outer", "ParameterGradient"]

_BUDGET = 2**24


def _spans(samples: int, floats_each: int) -> Iterator[slice]:
    step = max(1, _BUDGET // max(1, floats_each))
    for start in range(0, samples, step):
        yield slice(start, min(samples, start + step))


@dataclass(frozen=True)
class Outer:
    """Weight gradient ``sum_t g_t a_t^T`` in each of K independent blocks.

    Attributes:
        inputs: ``a``, shape ``(B, K, T, p)``.
        outputs: ``g``, shape ``(B, K, T, q)``; the gradient has shape ``(B, K, q, p)``.
    """

    inputs: Tensor
    outputs: Tensor

    def cut(self, span: slice) -> Outer:
        return Outer(self.inputs[span], self.outputs[span])

    def join(self, other: Outer) -> Outer:
        return Outer(
            torch.cat([self.inputs, other.inputs], dim=2),
            torch.cat([self.outputs, other.outputs], dim=2),
        )

    def dense(self, shape: torch.Size) -> Tensor:
        product = self.outputs.transpose(-1, -2) @ self.inputs
        return product.reshape(len(self.inputs), *shape)

    def squared_norms(self) -> Tensor:
        samples, blocks, steps, p = self.inputs.shape
        q = self.outputs.shape[-1]
        if steps == 1:
            norms = vector_norm(self.inputs, dim=-1) * vector_norm(self.outputs, dim=-1)
            return norms.square().sum((1, 2))
        gram = steps * (p + q) <= p * q
        found = []
        for span in _spans(samples, blocks * (2 * steps * steps if gram else p * q)):
            a, g = self.inputs[span], self.outputs[span]
            if gram:
                found.append(((a @ a.transpose(-1, -2)) * (g @ g.transpose(-1, -2))).sum((1, 2, 3)))
            else:
                found.append((g.transpose(-1, -2) @ a).square().sum((1, 2, 3)))
        return torch.cat(found).clamp_min(0)

    def dots(self, vector: Tensor) -> Tensor:
        blocks, p, q = self.inputs.shape[1], self.inputs.shape[-1], self.outputs.shape[-1]
        return (self.inputs @ vector.reshape(blocks, q, p).mT * self.outputs).sum((1, 2, 3))

    def weighted(self, weights: Tensor, shape: torch.Size) -> Tensor:
        scaled = self.outputs * weights[:, None, None, None]
        return torch.einsum("bktq,bktp->kqp", scaled, self.inputs).reshape(shape)

    def squares(self, shape: torch.Size) -> Tensor:
        samples, blocks, steps, p = self.inputs.shape
        q = self.outputs.shape[-1]
        if steps == 1:
            return torch.einsum(
                "bktq,bktp->kqp", self.outputs.square(), self.inputs.square()
            ).reshape(shape)
        total = self.inputs.new_zeros(blocks, q, p)
        for span in _spans(samples, blocks * p * q):
            product = self.outputs[span].transpose(-1, -2) @ self.inputs[span]
            total += product.square().sum(0)
        return total.reshape(shape)

    def magnitudes(self, shape: torch.Size) -> Tensor:
        samples, blocks, steps, p = self.inputs.shape
        q = self.outputs.shape[-1]
        if steps == 1:
            a, g = self.inputs.abs(), self.outputs.abs()
            return torch.einsum("bktq,bktp->kqp", g, a).reshape(shape)
        total = self.inputs.new_zeros(blocks, q, p)
        for span in _spans(samples, blocks * p * q):
            total += (self.outputs[span].transpose(-1, -2) @ self.inputs[span]).abs().sum(0)
        return total.reshape(shape)


@dataclass(frozen=True)
class Lookup:
    """Gradient of a table: row ``ids[t]`` receives ``values[t]``.

    Attributes:
        ids: ``(B, T)`` long.
        values: ``(B, T, d)``, zero where the id is a padding index.
        rows: rows of the table.
    """

    ids: Tensor
    values: Tensor
    rows: int

    def cut(self, span: slice) -> Lookup:
        return Lookup(self.ids[span], self.values[span], self.rows)

    def join(self, other: Lookup) -> Lookup:
        return Lookup(
            torch.cat([self.ids, other.ids], dim=1),
            torch.cat([self.values, other.values], dim=1),
            self.rows,
        )

    def _summed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sample ``(U,)``, table row ``(U,)`` and summed value ``(U, d)`` of each pair present."""
        samples = len(self.ids)
        keys = self.ids + self.rows * torch.arange(samples, device=self.ids.device)[:, None]
        unique, where = torch.unique(keys, return_inverse=True)
        summed = self.values.new_zeros(len(unique), self.values.shape[-1])
        summed.index_add_(0, where.reshape(-1), self.values.flatten(0, 1))
        return unique // self.rows, unique % self.rows, summed

    def dense(self, shape: torch.Size) -> Tensor:
        samples, rows, values = self._summed()
        out = self.values.new_zeros(len(self.ids), *shape)
        out[samples, rows] = values
        return out

    def squared_norms(self) -> Tensor:
        samples, _, values = self._summed()
        return self.values.new_zeros(len(self.ids)).index_add_(0, samples, values.square().sum(-1))

    def dots(self, vector: Tensor) -> Tensor:
        return (vector[self.ids] * self.values).sum((1, 2))

    def weighted(self, weights: Tensor, shape: torch.Size) -> Tensor:
        scaled = (self.values * weights[:, None, None]).flatten(0, 1)
        return self.values.new_zeros(shape).index_add_(0, self.ids.reshape(-1), scaled)

    def squares(self, shape: torch.Size) -> Tensor:
        _, rows, values = self._summed()
        return self.values.new_zeros(shape).index_add_(0, rows, values.square())

    def magnitudes(self, shape: torch.Size) -> Tensor:
        _, rows, values = self._summed()
        return self.values.new_zeros(shape).index_add_(0, rows, values.abs())


@dataclass(frozen=True)
class Dense:
    """A gradient that is formed: ``make()`` gives ``(B, *shape)``; called when it is needed."""

    make: Callable[[], Tensor]

    def cut(self, span: slice) -> Dense:
        return Dense(lambda: self.make()[span])

    def dense(self, shape: torch.Size) -> Tensor:
        made = self.make()
        return made.reshape(len(made), *shape)

    def squared_norms(self) -> Tensor:
        return vector_norm(self.make().flatten(1), dim=1).square()

    def dots(self, vector: Tensor) -> Tensor:
        return self.make().flatten(1) @ vector.reshape(-1)

    def weighted(self, weights: Tensor, shape: torch.Size) -> Tensor:
        return (weights @ self.make().flatten(1)).reshape(shape)

    def squares(self, shape: torch.Size) -> Tensor:
        return self.make().square().sum(0).reshape(shape)

    def magnitudes(self, shape: torch.Size) -> Tensor:
        return self.make().abs().sum(0).reshape(shape)


class ParameterGradient:
    """Per-sample gradients of one parameter as a sum of parts, one for each use in the forward."""

    def __init__(self, samples: int, shape: torch.Size) -> None:
        self.samples, self.shape = samples, shape
        self.parts: dict[type, Outer | Lookup | Dense] = {}

    def add(self, part: Outer | Lookup | Dense) -> None:
        """Add one use. Uses of one kind are joined, so a layer called twice stays factored."""
        before = self.parts.get(type(part))
        if before is not None and isinstance(part, Dense):
            first, second = before, part
            part = Dense(lambda: first.dense(self.shape) + second.dense(self.shape))
        elif before is not None:
            part = before.join(part)  # type: ignore[union-attr, arg-type]
        self.parts[type(part)] = part

    def dense(self, span: slice | None = None) -> Tensor:
        """Gradients ``(B, *shape)``, of the samples in ``span`` where it is given."""
        parts = [p if span is None else p.cut(span) for p in self.parts.values()]
        return torch.stack([part.dense(self.shape) for part in parts]).sum(0)

    def squared_norms(self) -> Tensor:
        """Squared norms ``(B,)``."""
        outer, lookup = self.parts.get(Outer), self.parts.get(Lookup)
        if len(self.parts) == 1:
            return next(iter(self.parts.values())).squared_norms()
        if len(self.parts) == 2 and isinstance(outer, Outer) and isinstance(lookup, Lookup):
            return outer.squared_norms() + lookup.squared_norms() + 2 * _cross(outer, lookup)
        spans = _spans(self.samples, self.shape.numel())
        return torch.cat([self.dense(span).flatten(1).square().sum(1) for span in spans])

    def dots(self, vector: Tensor) -> Tensor:
        """Products ``(B,)`` with a vector of the parameter's shape."""
        return torch.stack([part.dots(vector) for part in self.parts.values()]).sum(0)

    def weighted(self, weights: Tensor) -> Tensor:
        """The sum over samples of ``weights (B,)`` times gradient, in the parameter's shape."""
        parts = self.parts.values()
        return torch.stack([part.weighted(weights, self.shape) for part in parts]).sum(0)

    def squares(self) -> Tensor:
        """The sum over samples of the squared gradient, in the parameter's shape."""
        if len(self.parts) == 1:
            return next(iter(self.parts.values())).squares(self.shape)
        spans = _spans(self.samples, self.shape.numel())
        return torch.stack([self.dense(span).square().sum(0) for span in spans]).sum(0)

    def magnitudes(self) -> Tensor:
        """The sum over samples of the gradient's absolute value, in the parameter's shape."""
        if len(self.parts) == 1:
            return next(iter(self.parts.values())).magnitudes(self.shape)
        spans = _spans(self.samples, self.shape.numel())
        return torch.stack([self.dense(span).abs().sum(0) for span in spans]).sum(0)


def _cross(outer: Outer, lookup: Lookup) -> Tensor:
    """Inner product ``(B,)`` of a projection's and a table's gradient of one tied weight."""
    inputs, outputs = outer.inputs[:, 0], outer.outputs[:, 0]
    found = []
    for span in _spans(len(inputs), inputs.shape[1] * lookup.ids.shape[1]):
        ids = lookup.ids[span, None].expand(-1, inputs.shape[1], -1)
        match = inputs[span] @ lookup.values[span].transpose(-1, -2)
        found.append((outputs[span].gather(2, ids) * match).sum((1, 2)))
    return torch.cat(found)
