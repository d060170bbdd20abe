"""EU-k: draw the last k layers anew and train them on the retain set alone.

Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning" (2022,
arXiv:2201.06640), exactly unlearning the last k layers: θ_{L−k+1..L} is initialised afresh and
(1/|D_r|) Σ_{(x,y) ∈ D_r} ℓ(f_θ(x), y) minimised over it, the first L − k layers fixed. With k = L
it is retraining from scratch; below that, what the fixed layers learned of D_f stays in their
features. A layer is what owns a weight of two or more dimensions, together with the normalisations
registered after it.
"""

import os
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task
from erasus_pl.tasks.layers import Hold, layers
from erasus_pl.tasks.weights import reset_parameters

__all__ = ["EUk", "redraw"]


def redraw(modules: list[nn.Module], seed: int) -> None:
    """Initialise modules anew, except for what is frozen.

    Frozen parameters, and the buffers of modules whose every parameter is frozen, keep every bit.

    Args:
        modules: what is reset, by `reset_parameters` of each.
        seed: of the draw; the generator is put back as it was.

    Raises:
        TypeError: one of them has no `reset_parameters`.
    """
    kept = [(p, p.detach().clone()) for m in modules for p in m.parameters(recurse=False)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in modules:
            own = [p.requires_grad for p in module.parameters(recurse=False)]
            if any(own) or not own:
                reset_parameters(module)
    with torch.no_grad():
        for parameter, value in kept:
            if not parameter.requires_grad:
                parameter.copy_(value)


class EUk(Strategy):
    """Start the last k layers afresh and train them alone, on the retain set.

    An epoch passes over the whole retain set, so give `trainer.max_epochs` the epochs the original
    was trained for. Fixed layers keep every bit, the statistics of their batch norms included.

    Args:
        task: the trained model.
        optimizer: the task's own recipe (optimiser and schedule) if not given, as for retraining.
        k: how many layers are drawn anew and learn, counted from the output; at least 1.
        seed: of the new initialisation; if not given it follows `seed_everything`, without
            drawing the original's initialisation a second time.
    """

    loader_mode = "retain"
    on_weights = "draws some of them anew"
    paper: ClassVar[dict] = {
        "title": "Towards Adversarial Evaluations for Inexact Machine Unlearning",
        "year": 2022,
        "arxiv": "2201.06640",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        k: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__(task, optimizer)
        found = len(layers(task.network))
        if not 1 <= k <= found:
            msg = f"`k` must be in [1, {found}], the layers of this network, got {k}"
            raise ValueError(msg)
        self.k = k
        self.seed = seed
        self._hold = Hold([])

    def setup(self, stage: str) -> None:
        """Hold the first layers and reset the last, before a resume overwrites the weights."""
        super().setup(stage)
        if stage == "fit":
            found = layers(self.task.network)
            self._hold = Hold([m for layer in found[: -self.k] for m in layer])
            run = int(os.environ.get("PL_GLOBAL_SEED", 0))
            seed = self.seed if self.seed is not None else run + 10_007
            redraw([m for layer in found[-self.k :] for m in layer], seed)

    def on_train_start(self) -> None:
        """Hold the statistics of batch norms too."""
        super().on_train_start()
        self._hold.buffers()

    def teardown(self, stage: str) -> None:
        """Let go; what the user froze stays frozen."""
        self._hold.release()

    def unlearning_losses(self, forget: Any, retain: Batch) -> dict[str, Tensor]:
        """The task loss of the retain batch."""
        return {"retain": self.task.loss(retain)}

    def configure_optimizers(self) -> Any:
        """The given optimiser, or the recipe the original was trained with."""
        if self.optimizer is None:
            return self.task.configure_optimizers()
        return super().configure_optimizers()
