"""The diagonal of the empirical Fisher information.

Square first, average after: the square of a batch's mean gradient is smaller by about the batch
size and vanishes at the optimum, where every sample's own gradient need not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from erasus_pl.linalg.batches import batch_size
from erasus_pl.linalg.per_sample import Method, PerSampleGradients

__all__ = ["diagonal_fisher"]


def diagonal_fisher(
    module: nn.Module,
    loss_fn: Callable[[Any], Tensor],
    batches: Iterable[Any],
    method: Method = "auto",
) -> dict[str, Tensor]:
    """Mean over samples of the squared per-sample gradient, in each parameter's shape, by name.

    Args:
        module: owns the parameters; only those with ``requires_grad`` count.
        loss_fn: ``batch -> (B,)``; the negative log-likelihood makes this the empirical Fisher
            (Kunstner et al. 2019, arXiv:1905.12558, eq. 3, diagonal).
        batches: read once; the result does not depend on how samples are batched.
        method: see ``PerSampleGradients``.

    Raises:
        ValueError: when ``batches`` is empty or ``PerSampleGradients`` refuses the module.
    """
    gradients = PerSampleGradients(module, loss_fn, method)
    total: dict[str, Tensor] = {}
    samples = 0
    for batch in batches:
        for name, squares in gradients.squares(batch).items():
            total[name] = total[name] + squares if name in total else squares
        samples += batch_size(batch)
    if not samples:
        msg = "`batches` is empty: pass at least one batch"
        raise ValueError(msg)
    return {name: squares / samples for name, squares in total.items()}
