"""One forward and one backward pass that leave every layer's inputs and output gradients behind.

Only gradients of layer *outputs* are taken, so the pass costs no more than a plain backward and
writes no ``.grad``. A layer whose gradient factors are known contributes them; any other layer
without children, with one tensor in and one out, is differentiated on its own, sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, vjp, vmap

from erasus_pl.linalg.contributions import Dense, Lookup, Outer, ParameterGradient

__all__ = ["Captured", "Unsupported", "capture", "layers_with_parameters"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Unsupported(Exception):  # noqa: N818 - a signal to take another route, not a failure
    """The network uses a parameter in a way that the hooks cannot follow."""


@dataclass(frozen=True)
class Captured:
    """What a pass leaves behind.

    Attributes:
        losses: ``(B,)``, with their graph if that was kept.
        gradients: by parameter; in at least single precision.
        dtype: the coarsest type in which a layer's output gradient was computed.
    """

    losses: Tensor
    gradients: dict[nn.Parameter, ParameterGradient]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Use:
    layer: nn.Module
    inputs: Tensor
    version: int
    edge: GradientEdge


def layers_with_parameters(module: nn.Module) -> list[nn.Module]:
    """Modules that own a trainable parameter.

    Raises:
        Unsupported: when one of them has children, so that its parameters are not a layer's.
    """
    layers = []
    for name, layer in module.named_modules():
        if any(p.requires_grad for p in layer.parameters(recurse=False)):
            if next(layer.children(), None) is not None:
                msg = f"`{name or type(layer).__name__}` owns parameters and children"
                raise Unsupported(msg)
            layers.append(layer)
    return layers


def capture(
    layers: list[nn.Module],
    loss_fn: Callable[[Any], Tensor],
    batch: Any,
    samples: int,
    keep_graph: bool = True,
) -> Captured:
    """Run ``loss_fn(batch) -> (B,)`` once and collect per-sample gradients of ``layers``.

    Args:
        layers: those of `layers_with_parameters`.
        loss_fn: gives one loss for each sample.
        batch: read once.
        samples: B.
        keep_graph: whether the losses can be differentiated again; if not, what the pass holds
            for that is freed on the way.

    Raises:
        Unsupported: when a layer is fed something other than one tensor with a leading batch
            dimension, or changes its input in place.
    """
    uses: list[_Use] = []
    with torch.enable_grad(), _recording(layers, uses, samples):
        losses = loss_fn(batch)
    if losses.shape != (samples,):
        msg = (
            f"`loss_fn` must return one loss for each of {samples} samples, got shape "
            f"{tuple(losses.shape)}: return a tensor ({samples},) without reducing over the batch"
        )
        raise ValueError(msg)
    if not losses.requires_grad:
        msg = (
            "`loss_fn` gave losses that depend on no trainable parameter: compute them with the "
            "given module and without `no_grad` or `detach`"
        )
        raise ValueError(msg)
    found: dict[nn.Parameter, ParameterGradient] = {}
    if not uses:
        return Captured(losses, found, losses.dtype)
    dtype = losses.dtype
    outputs: tuple[Tensor | None, ...] = torch.autograd.grad(
        losses,
        [use.edge for use in uses],
        torch.ones_like(losses),
        retain_graph=keep_graph,
        allow_unused=True,
    )
    for use, output in zip(uses, outputs, strict=True):
        if use.inputs._version != use.version:
            msg = f"the input of a `{type(use.layer).__name__}` was changed in place"
            raise Unsupported(msg)
        if output is None:
            continue
        if len(use.inputs) != samples or len(output) != samples:
            msg = f"a `{type(use.layer).__name__}` sees no leading batch dimension"
            raise Unsupported(msg)
        dtype = max(dtype, output.dtype, key=lambda kind: torch.finfo(kind).eps)
        for parameter, part in _parts(use.layer, use.inputs, _wide(output)):
            if parameter.requires_grad:
                group = found.setdefault(parameter, ParameterGradient(samples, parameter.shape))
                group.add(part)
    return Captured(losses, found, dtype)


@contextmanager
def _recording(layers: list[nn.Module], uses: list[_Use], samples: int) -> Iterator[None]:
    def record(
        layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Tensor | None:
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            msg = f"`{type(layer).__name__}` takes more than one tensor"
            raise Unsupported(msg)
        if not isinstance(output, Tensor) or not output.requires_grad or output.grad_fn is None:
            msg = f"`{type(layer).__name__}` does not give one differentiable tensor"
            raise Unsupported(msg)
        inputs, replaced = args[0].detach(), None
        if isinstance(layer, nn.Embedding) and len(inputs) == 1 < samples:
            # Positions looked up once for all samples: broadcast before the gradients are summed.
            inputs = inputs.expand(samples, *inputs.shape[1:])
            output = replaced = output.expand(samples, *output.shape[1:])
        uses.append(_Use(layer, inputs, inputs._version, get_gradient_edge(output)))
        return replaced

    handles = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.half, torch.bfloat16) else tensor


def _is(layer: Any, *kinds: type[nn.Module]) -> bool:
    """Whether a layer computes exactly what one of ``kinds`` does."""
    return any(isinstance(layer, kind) and type(layer).forward is kind.forward for kind in kinds)


def _parts(
    layer: Any, inputs: Tensor, outputs: Tensor
) -> Iterator[tuple[nn.Parameter, Outer | Lookup | Dense]]:
    own = dict(layer.named_parameters(recurse=False))
    if _is(layer, nn.Embedding) and layer.max_norm is None and not layer.scale_grad_by_freq:
        ids = inputs.reshape(len(inputs), -1)
        values = outputs.reshape(*ids.shape, -1)
        if layer.padding_idx is not None:
            values = values * (ids != layer.padding_idx)[..., None]
        yield own["weight"], Lookup(ids, values, layer.num_embeddings)
        return
    if inputs.is_floating_point():
        inputs = _wide(inputs)
    if _is(layer, nn.Linear) or _is_transposed_linear(layer):
        a = inputs.reshape(len(inputs), 1, -1, inputs.shape[-1])
        g = outputs.reshape(len(inputs), 1, -1, outputs.shape[-1])
        yield own["weight"], Outer(a, g) if _is(layer, nn.Linear) else Outer(g, a)
        if "bias" in own:
            yield own["bias"], _formed(g[:, 0, 0] if g.shape[2] == 1 else g.sum((1, 2)))
    elif _is(layer, nn.Conv1d, nn.Conv2d):
        yield own["weight"], _convolution(layer, inputs, outputs)
        if "bias" in own:
            yield own["bias"], _formed(outputs.flatten(2).sum(2))
    elif own and (normalised := _normalised(layer, inputs)) is not None:
        channels_last = _is(layer, nn.LayerNorm)
        for name, grads in (("weight", outputs * normalised), ("bias", outputs)):
            if name not in own:
                continue
            if channels_last:
                summed = grads.reshape(len(inputs), -1, own[name].numel()).sum(1)
            else:
                summed = grads.reshape(len(inputs), own[name].numel(), -1).sum(2)
            yield own[name], _formed(summed)
    else:
        for name, parameter in own.items():
            if parameter.requires_grad:
                yield parameter, Dense(_alone(layer, name, parameter, inputs, outputs))


def _formed(gradient: Tensor) -> Dense:
    return Dense(lambda: gradient)


def _is_transposed_linear(layer: nn.Module) -> bool:
    """GPT-2's ``Conv1D``: a linear layer whose weight is stored ``(in, out)``."""
    kind = type(layer)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _normalised(layer: Any, inputs: Tensor) -> Tensor | None:
    """What a normalisation layer multiplies its weight with, or None for any other layer."""
    if _is(layer, nn.LayerNorm):
        return F.layer_norm(inputs, layer.normalized_shape, None, None, layer.eps)
    if _is(layer, nn.GroupNorm):
        return F.group_norm(inputs, layer.num_groups, None, None, layer.eps)
    if isinstance(layer, _BATCH_NORMS):
        return F.batch_norm(
            inputs, layer.running_mean, layer.running_var, None, None, False, 0.0, layer.eps
        )
    return None


def _convolution(layer: Any, inputs: Tensor, outputs: Tensor) -> Outer:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    inputs = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if inputs.dim() == 3:
        inputs, kernel = inputs.unsqueeze(2), (1, *kernel)
        dilation, stride = (1, *dilation), (1, *stride)
    patches = F.unfold(inputs, kernel, dilation=dilation, stride=stride)
    samples, groups, steps = len(inputs), layer.groups, patches.shape[-1]
    return Outer(
        patches.reshape(samples, groups, -1, steps).transpose(-1, -2),
        outputs.reshape(samples, groups, -1, steps).transpose(-1, -2),
    )


def _alone(
    layer: nn.Module, name: str, parameter: nn.Parameter, inputs: Tensor, outputs: Tensor
) -> Callable[[], Tensor]:
    """Differentiate one layer by one of its parameters, sample by sample."""

    def one(row: Tensor, gradient: Tensor) -> Tensor:
        def forward(value: Tensor) -> Tensor:
            result: Tensor = functional_call(layer, {name: value}, (row.unsqueeze(0),))
            return result.squeeze(0)

        output, pull = vjp(forward, parameter.detach())[:2]
        made: Tensor = pull(gradient.to(output.dtype))[0]
        return made

    return lambda: _wide(vmap(one, randomness="different")(inputs, outputs))
