"""CF-k: fine-tune the last k layers on the retain set, and let the rest be forgotten there.

Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning" (2022,
arXiv:2201.06640), catastrophically forgetting the last k layers: from the original's weights,
min over θ_{L−k+1..L} of (1/|D_r|) Σ_{(x,y) ∈ D_r} ℓ(f_θ(x), y), the first L − k layers fixed. It
rests on what networks that go on learning forget by themselves, and on forgetting being deepest in
the last layers; what the fixed ones hold of D_f they keep. A layer is what owns a weight of two or
more dimensions, together with the normalisations registered after it.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["CFk", "layers"]


def layers(network: nn.Module) -> list[list[nn.Module]]:
    """The parameterised layers of a network, first to last in the order they are registered.

    Each begins with a module that itself owns a weight of at least two dimensions; modules after it
    that own only vectors or buffers, such as batch norms, belong to it.
    """
    found: list[list[nn.Module]] = []
    early: list[nn.Module] = []
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if any(p.dim() > 1 for p in own):
            found.append([module])
        elif own or list(module.buffers(recurse=False)):
            (found[-1] if found else early).append(module)
    if found:
        found[0] = early + found[0]
    return found


class CFk(Strategy):
    """Go on training the last k layers alone, on the retain set.

    An epoch passes over the whole retain set. Fixed layers keep every bit, the running statistics
    of their batch norms included.

    Args:
        task: the trained model.
        optimizer: SGD with lr 0.01, momentum 0.9 and weight decay 5e-4 by default, for 10 epochs.
        k: how many layers learn, counted from the output; at least 1.
    """

    loader_mode = "retain"
    paper: ClassVar[dict] = {
        "title": "Towards Adversarial Evaluations for Inexact Machine Unlearning",
        "year": 2022,
        "arxiv": "2201.06640",
    }

    def __init__(self, task: Task, optimizer: OptimizerCallable | None = None, k: int = 1) -> None:
        super().__init__(task, optimizer)
        found = len(layers(task.network))
        if not 1 <= k <= found:
            msg = f"`k` must be in [1, {found}], the layers of this network, got {k}"
            raise ValueError(msg)
        self.k = k
        self._fixed: list[nn.Module] = []
        self._held: list[nn.Parameter] = []
        self._modes: dict[nn.Module, bool] = {}

    def setup(self, stage: str) -> None:
        """Fix all but the last k layers for this run."""
        super().setup(stage)
        if stage == "fit":
            self._fixed = [m for layer in layers(self.task.network)[: -self.k] for m in layer]
            last = [m for layer in layers(self.task.network)[-self.k :] for m in layer]
            learning = {p for m in last for p in m.parameters(recurse=False)}
            self._held = [p for p in self.trainable.values() if p not in learning]
            for parameter in self._held:
                parameter.requires_grad_(False)

    def on_train_start(self) -> None:
        """Put fixed layers in eval mode, where batch norms leave their statistics alone."""
        super().on_train_start()
        self._modes = {m: m.training for m in self._fixed}
        for module in self._modes:
            module.training = False

    def teardown(self, stage: str) -> None:
        """Undo the fixing; what the user froze stays frozen."""
        for parameter in self._held:
            parameter.requires_grad_(True)
        for module, mode in self._modes.items():
            module.training = mode
        self._fixed, self._held, self._modes = [], [], {}

    def unlearning_losses(self, forget: Any, retain: Batch) -> dict[str, Tensor]:
        """The task loss of the retain batch."""
        return {"retain": self.task.loss(retain)}

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 0.01."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
