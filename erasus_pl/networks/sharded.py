"""Copies of a network, one for each shard of the training data, that answer together."""

import copy
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ShardedEnsemble", "mean_softmax", "vote_share"]


def mean_softmax(logits: Tensor) -> Tensor:
    """Log of the members' mean softmax, `(…, C)`: a distribution, as log-probabilities.

    Args:
        logits: `(S, …, C)` of S members.
    """
    return F.log_softmax(logits, -1).logsumexp(0) - math.log(len(logits))


def vote_share(logits: Tensor) -> Tensor:
    """Log of the share of votes of each class, `(…, C)`; equal shares are told apart by confidence.

    Each member votes for its most likely class, and the mean softmax counts as one more vote that
    is split among the classes: so no class has probability 0, and no split vote outweighs a whole.

    Args:
        logits: `(S, …, C)` of S members.
    """
    votes = F.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)
    return torch.log((votes + logits.softmax(-1).mean(0)) / (len(logits) + 1))


class ShardedEnsemble(nn.Module):
    """S copies of a network whose answers are aggregated; each learns one shard of the data.

    Its outputs are log-probabilities, hence logits like any classifier's or language model's. What
    it is trained by is SISA's own path, which an original with this network takes by itself: give
    it to a task in place of the plain network.

    Args:
        network: what each shard trains a copy of; maps an input to logits `(…, C)`.
        shards: S, how many; at least 1. A member sees 1/S of the data.
        slices: R, parts of a shard, learned one after the other with a checkpoint after each; at
            least 1, and 1 for sharding alone.
        aggregate: `mean` of the members' softmax, or their majority `vote` as in most of the paper;
            the mean keeps the confidences that membership attacks look at.
    """

    def __init__(
        self,
        network: nn.Module,
        shards: int = 5,
        slices: int = 3,
        aggregate: Literal["mean", "vote"] = "mean",
    ) -> None:
        super().__init__()
        for name, value in (("shards", shards), ("slices", slices)):
            if value < 1:
                msg = f"`{name}` must be at least 1, got {value}"
                raise ValueError(msg)
        if aggregate not in ("mean", "vote"):
            msg = f"`aggregate` must be mean or vote, got {aggregate!r}"
            raise ValueError(msg)
        self.members = nn.ModuleList(copy.deepcopy(network) for _ in range(shards))
        self.slices = slices
        self.aggregate = aggregate

    @property
    def shards(self) -> int:
        """S, the number of members."""
        return len(self.members)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Map what a member takes to log-probabilities `(…, C)`."""
        found = [member(*args, **kwargs) for member in self.members]
        logits = torch.stack([getattr(out, "logits", out) for out in found])
        return mean_softmax(logits) if self.aggregate == "mean" else vote_share(logits)
