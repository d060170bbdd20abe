"""DataInf: the mean of the inverses in place of the inverse of the mean, layer by layer.

Kwon, Wu, Wu and Zou, "DataInf: Efficiently Estimating Data Influence in LoRA-tuned LLMs and
Diffusion Models" (ICLR 2024, arXiv:2310.00902), eq. 5: for each layer, with the gradients ``g_i``
of n samples,

    ((1/n) sum_i g_i g_i^T + lambda I)^-1 ~ (1/n) sum_i (g_i g_i^T + lambda I)^-1
        = (1/(n lambda)) sum_i (I - g_i g_i^T / (lambda + ||g_i||^2)),

by Sherman and Morrison. Norms and products come in factors, so no sample's gradient is formed
where the network allows that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from erasus_pl.linalg.contributions import ParameterGradient

__all__ = ["datainf_solve"]


def datainf_solve(
    gradients: Iterable[Mapping[str, ParameterGradient]],
    target: Mapping[str, Tensor],
    damping: float,
) -> dict[str, Tensor]:
    """The mean over samples of ``(g_i g_i^T + damping I)^-1 target``, for each layer, by name.

    Parameters whose names differ in their last component only, such as a weight and its bias,
    make a layer.

    Args:
        gradients: of n samples by parameter name, some at a time; read once.
        target: the right-hand side in each parameter's shape.
        damping: ``lambda``, above 0; the same for each layer.

    Raises:
        ValueError: when there is no gradient or ``damping`` is not above 0.
        FloatingPointError: when a gradient is not finite.
    """
    if not damping > 0:
        msg = f"`damping` must be above 0 for DataInf, got {damping}"
        raise ValueError(msg)
    layers: dict[str, list[str]] = {}
    for name in target:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    along = {name: torch.zeros_like(value) for name, value in target.items()}
    samples = 0
    for part in gradients:
        for names in layers.values():
            present = [name for name in names if name in part]
            if not present:
                continue
            squares = torch.stack([part[name].squared_norms() for name in present]).sum(0)
            dots = torch.stack([part[name].dots(target[name]) for name in present]).sum(0)
            if not squares.isfinite().all():
                msg = "a gradient is not finite: check the losses for NaN"
                raise FloatingPointError(msg)
            weights = dots / (damping + squares)
            for name in present:
                along[name] += part[name].weighted(weights)
        samples += next(iter(part.values())).samples
    if not samples:
        msg = "`gradients` is empty: pass at least one batch"
        raise ValueError(msg)
    return {name: (target[name] - along[name] / samples) / damping for name in target}
