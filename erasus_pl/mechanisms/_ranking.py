"""What ranks the weights of a network for a mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from erasus_pl.linalg import diagonal_fisher, flatten, importance_ratio, mean_gradient, top_fraction
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch

__all__ = ["RANKINGS", "highest", "ranking"]

RANKINGS = ("saliency", "fisher", "magnitude", "random")


def ranking(strategy: Strategy, kind: str, weights: dict[str, Tensor], seed: int) -> Tensor:
    """Scores `(P,)` of all trainable weights as they are, highest first to move.

    Args:
        strategy: whose task and data are looked at; in eval mode.
        kind: one of `RANKINGS`.
        weights: the trainable weights, by name.
        seed: of the random ranking.

    Raises:
        ValueError: a score is not finite.
    """
    task, data = strategy.task, strategy.data

    def losses(batch: Batch) -> Tensor:
        found = task.per_sample_loss(task(batch), batch)
        return found * batch["weight"] if "weight" in batch else found

    def rooted(batch: Batch) -> Tensor:  # their gradients are squared
        found = task.per_sample_loss(task(batch), batch)
        return found * batch["weight"].sqrt() if "weight" in batch else found

    if kind == "saliency":
        scores = mean_gradient(task, losses, data.forget_batches()).abs()
    elif kind == "fisher":
        forget = diagonal_fisher(task, rooted, data.forget_batches())
        retain = diagonal_fisher(task, rooted, data.retain_batches())
        scores = importance_ratio(flatten(forget), flatten(retain))
    elif kind == "magnitude":
        scores = flatten({k: p.detach().abs() for k, p in weights.items()})
    else:
        size = sum(p.numel() for p in weights.values())
        scores = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    if not scores.isfinite().all():
        msg = (
            f"`mask`: {int((~scores.isfinite()).sum())} of {len(scores)} weights have no finite "
            f"{kind}; the model has diverged, or its input holds NaN"
        )
        raise ValueError(msg)
    return scores


def highest(
    strategy: Strategy,
    kind: str,
    fraction: float,
    seed: int,
    weights: dict[str, nn.Parameter],
    original: dict[str, Tensor],
) -> Tensor:
    """The part of the weights that rank highest in the original, bool `(P,)`.

    Args:
        strategy: whose network is given the original's state for that long.
        kind: one of `RANKINGS`.
        fraction: the part, in (0, 1].
        seed: of the random ranking.
        weights: what is ranked, by name.
        original: state dict of the network.

    Raises:
        ValueError: no weight is left, or a score is not finite.
    """
    network = strategy.task.network
    now = {k: v.detach().clone() for k, v in network.state_dict().items()}
    modes = {m: m.training for m in strategy.task.modules()}
    flags = {p: p.requires_grad for p in weights.values()}
    for parameter in flags:  # a strategy may hold some still for now
        parameter.requires_grad_(True)
    network.load_state_dict(original)
    strategy.task.eval()
    try:
        with torch.random.fork_rng():
            scores = ranking(strategy, kind, {**weights}, seed)
    finally:
        network.load_state_dict(now)
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
    mask = top_fraction(scores, fraction)
    if not mask.any():
        msg = f"`fraction` must leave at least one of {len(mask):,} weights to move, got {fraction}"
        raise ValueError(msg)
    return mask
