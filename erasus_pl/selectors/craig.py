"""CRAIG: a weighted coreset whose gradient is near that of all, whatever the weights.

Mirzasoleiman, Bilmes and Leskovec, "Coresets for Data-efficient Training of Machine Learning
Models" (ICML 2020, arXiv:1906.01827), Alg. 1: the error of the coreset's gradient is at most
``sum_i min_{j in S} d_ij``, where ``d_ij`` bounds the distance of the gradients of i and j; the
greedy rule for facility location with ``s_ij = d_max - d_ij`` makes it small. Each pick weighs as
many samples as are nearest to it: ``gamma_j = #{i : j = argmin_{s in S} d_is}``, n in all.

For deep networks ``d_ij`` is the distance of the loss's gradients by the input of the last
layer's softmax (Sec. 3.4): for cross-entropy of ``p_i - y_i``, no backward pass. That of a
sequence is the mean over its labelled tokens.

The paper picks again every few epochs; here once, by the model that is to be unlearned. Its
experiments pick class by class, which is not done here: the gradients of classes lie apart.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from erasus_pl.selectors._rows import head_gradients
from erasus_pl.selectors.base import Coreset, Selector, refuse_nonfinite
from erasus_pl.selectors.facility_location import facility_location
from erasus_pl.strategies.base import Strategy

__all__ = ["Craig", "craig"]


def craig(proxies: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Picks ``(k,)`` in the order of the greedy rule, and their weights ``(k,)``, n in all.

    Args:
        proxies: ``(n, C)`` whose distances stand for those of the gradients.
        k: how many to pick, at most n.
    """
    # No two are farther apart than twice the farthest from the mean.
    farthest = 2 * (proxies - proxies.mean(0)).norm(dim=1).max()

    def distance(columns: Tensor) -> Tensor:
        columns = columns.to(proxies.device)
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(proxies, proxies[columns], compute_mode=exact)

    picked = facility_location(lambda j: (farthest - distance(j)).clamp(min=0), len(proxies), k)
    nearest = proxies.new_full((len(proxies),), torch.inf)
    owner = torch.zeros(len(proxies), dtype=torch.long, device=proxies.device)
    for number, j in enumerate(picked):
        found = distance(j[None])[:, 0]
        owner[found < nearest] = number
        nearest = nearest.minimum(found)
    owner[picked.to(owner.device)] = torch.arange(k, device=owner.device)
    return picked, torch.bincount(owner, minlength=k).to(proxies.dtype)


class Craig(Selector):
    """Keep samples whose gradients, weighted, follow the gradient of the forget set.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
    """

    requires: ClassVar[tuple[str, ...]] = ("linear_head",)
    paper: ClassVar[dict[str, Any]] = {
        "title": "Coresets for Data-efficient Training of Machine Learning Models",
        "year": 2020,
        "arxiv": "1906.01827",
    }

    def __init__(self, fraction: float | None = None, k: int | None = None) -> None:
        super().__init__(fraction, k)

    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """Facility location on the gradients by the last layer's output."""
        gradients = (head_gradients(strategy.task, b) for b in self.batches(strategy, dataset))
        proxies = torch.cat([g.outputs.sum((1, 2)) for g in gradients])
        refuse_nonfinite(proxies, dataset, "Craig")
        picked, weights = craig(proxies, k)
        order = picked.argsort()
        return Coreset(picked[order], weights.to(order.device)[order].float())
