"""EK-FAC: the curvature of a layer in the eigenbasis of its Kronecker factors.

George, Laurent, Bouthillier, Ballas and Vincent, "Fast Approximate Natural Gradient Descent in a
Kronecker-factored Eigenbasis" (NeurIPS 2018, arXiv:1806.03884), Sec. 3; for influence functions
Grosse et al., "Studying Large Language Model Generalization with Influence Functions"
(arXiv:2308.03296), Sec. 3.1. The second moment of a layer's per-sample gradient
``sum_t g_t a_t^T`` is taken to be diagonal in ``U_G x U_A``, the eigenvectors of ``G = E[g g^T]``
and ``A = E[a a^T]``; what stands on the diagonal is not the product of their eigenvalues, as in
K-FAC, but measured: the mean square of each sample's gradient in that basis, which is nearest to
the truth in Frobenius norm.

Inputs of a layer with a bias end in a one, so that a block holds weight and bias. Blocks of
different layers are uncorrelated by assumption. Whether this is the empirical Fisher information
or the Fisher information depends on the gradients that are given: of the data's labels, or of
labels drawn from the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erasus_pl.linalg.contributions import Outer, ParameterGradient

__all__ = ["Block", "ekfac_blocks", "ekfac_solve"]

Gradients = Mapping[str, ParameterGradient]


@dataclass(frozen=True)
class Block:
    """The curvature of one layer, in K independent groups; K is 1 but for grouped convolutions.

    Attributes:
        bias: name of the bias that shares the block with the weight, or none.
        inputs: ``U_A (K, p, p)``, eigenvectors in columns; p counts the one of the bias.
        outputs: ``U_G (K, q, q)``.
        values: ``(K, q, p)``, mean squares of the gradient in that basis.
    """

    bias: str | None
    inputs: Tensor
    outputs: Tensor
    values: Tensor

    def solve(self, target: Tensor, damping: float) -> Tensor:
        """``(block + damping I)^-1 target`` for a target ``(K, q, p)``."""
        turned = self.outputs.mT @ target.to(self.values) @ self.inputs
        return self.outputs @ (turned / (self.values + damping)) @ self.inputs.mT


def ekfac_blocks(
    module: nn.Module, gradients: Callable[[], Iterable[Gradients]]
) -> dict[str, Block]:
    """A block for each linear or convolutional layer, by the name of its weight.

    Parameters without Kronecker factors (of norms, embeddings, tied or frozen weights) get none.

    Args:
        module: owns the parameters.
        gradients: gives the samples' gradients by parameter name, some at a time; read twice, and
            must give the same gradients both times.

    Raises:
        ValueError: when no layer has factors, or there is no sample.
        FloatingPointError: when a gradient is not finite.
    """
    biases = _biases(module)
    moments: dict[str, tuple[Tensor, Tensor]] = {}
    for part in gradients():
        for name, outer in _outers(part, biases).items():
            found = _moment(outer.inputs), _moment(outer.outputs)
            before = moments.get(name)
            moments[name] = (
                found if before is None else (before[0] + found[0], before[1] + found[1])
            )
    if not moments:
        msg = (
            f"EK-FAC finds no linear or convolutional layer whose gradient has factors in "
            f"`{type(module).__name__}`: use `solver: cg`"
        )
        raise ValueError(msg)
    if not all(m.isfinite().all() for pair in moments.values() for m in pair):
        msg = "a gradient is not finite: check the losses for NaN"
        raise FloatingPointError(msg)
    bases = {n: (_eigenvectors(a), _eigenvectors(g)) for n, (a, g) in moments.items()}
    sums = {n: a.new_zeros(len(a), g.shape[-1], a.shape[-1]) for n, (a, g) in bases.items()}
    samples = 0
    for part in gradients():
        for name, outer in _outers(part, biases).items():
            a, g = bases[name]
            turned = Outer(outer.inputs @ a.to(outer.inputs), outer.outputs @ g.to(outer.outputs))
            sums[name] += turned.squares(sums[name].shape)
        samples += next(iter(part.values())).samples
    return {n: Block(biases.get(n), a, g, sums[n] / samples) for n, (a, g) in bases.items()}


def ekfac_solve(
    blocks: Mapping[str, Block], target: Mapping[str, Tensor], damping: float
) -> dict[str, Tensor]:
    """``(F + damping I)^-1 target`` by name; 0 for parameters without a block.

    Args:
        blocks: of ``ekfac_blocks``.
        target: the right-hand side in each parameter's shape.
        damping: above 0.
    """
    if not damping > 0:
        msg = f"`damping` must be above 0 for EK-FAC, got {damping}"
        raise ValueError(msg)
    solved = {name: torch.zeros_like(value) for name, value in target.items()}
    for name, block in blocks.items():
        groups, q, p = block.values.shape
        columns = target[name].reshape(groups, q, -1)
        if block.bias is not None:
            columns = torch.cat([columns, target[block.bias].reshape(groups, q, 1)], -1)
        found = block.solve(columns, damping).to(columns)
        if block.bias is not None:
            solved[block.bias] = found[..., -1].reshape(target[block.bias].shape)
            found = found[..., : p - 1]
        solved[name] = found.reshape(target[name].shape)
    return solved


def _biases(module: nn.Module) -> dict[str, str]:
    """Name of the trainable bias of each linear or convolutional layer, by that of its weight."""
    return {
        f"{prefix}.weight" if prefix else "weight": f"{prefix}.bias" if prefix else "bias"
        for prefix, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))
        and layer.bias is not None
        and layer.bias.requires_grad
    }


def _outers(part: Gradients, biases: Mapping[str, str]) -> dict[str, Outer]:
    found = {}
    for name, gradient in part.items():
        outer = gradient.parts.get(Outer)
        if isinstance(outer, Outer) and len(gradient.parts) == 1:
            if biases.get(name) in part:
                ones = torch.ones_like(outer.inputs[..., :1])
                outer = Outer(torch.cat([outer.inputs, ones], -1), outer.outputs)
            found[name] = outer
    return found


def _moment(rows: Tensor) -> Tensor:
    """Sum of ``r r^T`` over samples and positions, ``(K, p, p)``, double."""
    flat = rows.double().transpose(0, 1).flatten(1, 2)
    return flat.mT @ flat


def _eigenvectors(moment: Tensor) -> Tensor:
    return torch.linalg.eigh(moment / moment.diagonal(dim1=1, dim2=2).mean().clamp(min=1e-300))[1]
