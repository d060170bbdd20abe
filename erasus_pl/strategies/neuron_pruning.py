"""Selective pruning: remove the neurons that are active for the forget set above all.

Pochinkov and Schoots, "Dissecting Language Models: Machine Unlearning via Selective Pruning" (2024,
arXiv:2403.01267). The importance of a neuron n to a data set is its mean absolute activation,
I(D, n) = E|z_n|; its score is I(D_f, n) / (I(D_r, n) + ε), and the top fraction of all neurons is
removed. Neurons are the activations of middle layers: those that a feed-forward block's output
layer reads, as in the paper, and in networks without such names those that any linear layer
reads, but for the input itself. A neuron is removed where it is read: its weights become 0.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["NeuronPruning", "pruned_neurons"]

_FEED_FORWARD = ("down", "down_proj", "mlp.c_proj", "fc2", "w2", "dense_4h_to_h", "output.dense")
_FIRST = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def pruned_neurons(
    forget: Tensor, retain: Tensor, fraction: float, epsilon: float = 1e-5
) -> Tensor:
    """The neurons of highest I(D_f, n) / (I(D_r, n) + ε) (arXiv:2403.01267), bool `(n,)`.

    Exactly round(fraction · n) are chosen; of equal ones the first.

    Args:
        forget: importance to D_f, `(n,)`.
        retain: importance to D_r, `(n,)`.
        fraction: part to choose, in [0, 1].
        epsilon: ε, above 0.
    """
    order = (forget / (retain + epsilon)).argsort(descending=True, stable=True)
    chosen = torch.zeros(len(forget), dtype=torch.bool, device=forget.device)
    chosen[order[: round(fraction * len(forget))]] = True
    return chosen


class NeuronPruning(Strategy):
    """Prune, once, the neurons that matter more to the forget set than to the retain set.

    Needs `trainer.max_epochs: 1`. No label is read.

    Args:
        task: the trained model.
        optimizer: not used; the weights are edited in closed form.
        fraction: part of the neurons to remove, in (0, 1]; 0.02 to 0.1 in the paper.
        layers: names of the linear layers of the network whose inputs are neurons; found by name
            or order, as above, where none is given.
        epsilon: ε, above 0.
    """

    loader_mode = "single_pass"
    paper: ClassVar[dict] = {
        "title": "Dissecting Language Models: Machine Unlearning via Selective Pruning",
        "year": 2024,
        "arxiv": "2403.01267",
    }
    limits: ClassVar[dict] = {
        "random": "random samples have no neurons to themselves: pruning costs the others more",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        fraction: float = 0.1,
        layers: tuple[str, ...] = (),
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__(task, optimizer)
        if not 0 < fraction <= 1:
            msg = f"`fraction` must be in (0, 1], got {fraction}"
            raise ValueError(msg)
        if not epsilon > 0:
            msg = f"`epsilon` must be above 0, got {epsilon}"
            raise ValueError(msg)
        self.fraction = fraction
        self.layers = layers
        self.epsilon = epsilon
        self._readers: dict[str, nn.Linear] = {}

    def setup(self, stage: str) -> None:
        """Find the layers that read neurons.

        Raises:
            ValueError: the network has none, or none of a name in `layers`.
        """
        super().setup(stage)
        if stage == "fit":
            self._readers = _readers(self.task.network, self.layers)

    def accumulate(self, forget: Batch | None, retain: Batch | None) -> None:
        """Sum the absolute activations of every neuron over both sets."""
        for side, batch in (("forget", forget), ("retain", retain)):
            if batch is None:
                continue
            seen: dict[str, Tensor] = {}
            hooks = [
                layer.register_forward_pre_hook(_keeper(seen, name))
                for name, layer in self._readers.items()
            ]
            try:
                with torch.no_grad():
                    self.task(batch)
            finally:
                for hook in hooks:
                    hook.remove()
            for name, activation in seen.items():
                counts = _counts(activation, batch)
                self.add(
                    f"{side}/{name}", (activation.abs() * counts[..., None]).flatten(0, -2).sum(0)
                )
                self.add(f"{side}/{name}/counted", counts.sum())

    def edit(self) -> None:
        """Remove the neurons of highest score, over all layers together."""
        layers = {k: m for k, m in self._readers.items() if m.weight.requires_grad}
        if not layers:
            return
        forget, retain = (
            torch.cat([self.totals[f"{s}/{k}"] / self.totals[f"{s}/{k}/counted"] for k in layers])
            for s in ("forget", "retain")
        )
        chosen = pruned_neurons(forget, retain, self.fraction, self.epsilon)
        sizes = [layer.in_features for layer in layers.values()]
        for layer, part in zip(layers.values(), chosen.split(sizes), strict=True):
            layer.weight[:, part] = 0


def _readers(network: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Linear]:
    linear = {k: m for k, m in network.named_modules() if isinstance(m, nn.Linear)}
    if names:
        missing = sorted(set(names) - set(linear))
        if missing:
            msg = f"`layers` must name linear layers, got {missing}; there are {sorted(linear)}"
            raise ValueError(msg)
        return {name: linear[name] for name in names}
    inner = {
        k: m for k, m in linear.items() if f".{k}".endswith(tuple(f".{e}" for e in _FEED_FORWARD))
    }
    if not inner:
        first = next((m for m in network.modules() if isinstance(m, _FIRST)), None)
        inner = {k: m for k, m in linear.items() if m is not first}
    if not inner:
        msg = f"`task`: {type(network).__name__} has no linear layer that reads neurons"
        raise ValueError(msg)
    return inner


def _keeper(seen: dict[str, Tensor], name: str) -> Any:
    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[name] = args[0]

    return keep


def _counts(activation: Tensor, batch: Batch) -> Tensor:
    """How much each activation vector counts, `(B, …)`: not where padding is."""
    counts = torch.ones(activation.shape[:-1], device=activation.device, dtype=activation.dtype)
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == counts.shape:
        counts = counts * mask
    if "weight" in batch:
        counts = counts * batch["weight"].reshape(-1, *[1] * (counts.dim() - 1))
    return counts
