"""Bad teacher: on the forget set, learn from a model that knows nothing.

Chundawat et al., "Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks Using an
Incompetent Teacher" (AAAI 2023, arXiv:2205.08096): with the original T_s as competent and a
randomly initialised T_d as incompetent teacher, and l = 1 on D_f, 0 on D_r, the mean over D_f and a
random part of D_r of L(x, l) = (1 − l) KL(T_s(x) ‖ S(x)) + l KL(T_d(x) ‖ S(x)) is minimised.
The divergence is summed over classes: the mean over them that the published code takes is C times
smaller.
"""

import copy
import os
from typing import ClassVar

import torch
from torch import Tensor

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["BadTeacher", "forget_share"]


def forget_share(n_forget: int, n_retain: int, retain_fraction: float) -> float:
    """The forget set's share of D_f and a part of D_r together, in (0, 1].

    The mean of the loss over both is share · mean over D_f + (1 − share) · mean over the part.

    Args:
        n_forget: |D_f|.
        n_retain: |D_r|.
        retain_fraction: the part of D_r that is taken, in [0, 1].
    """
    return n_forget / (n_forget + retain_fraction * n_retain)


class BadTeacher(Strategy):
    """Distil from a random model on the forget set, from the original on the retain set.

    The paper draws its part of D_r once, to save work. Here a step costs the same however large D_r
    is, so retain batches come from all of it, and `retain_fraction` gives them the weight that the
    part has in the paper's mean.

    Args:
        task: the trained model.
        optimizer: Adam with lr 1e-4 by default, for one epoch.
        temperature: divides all logits; 1 in the paper.
        retain_fraction: part of the retain set in the mean; 0.3 in the paper.
        seed: of the incompetent teacher; if not given it follows `seed_everything`.
    """

    needs_original = True
    requires = ("divergence",)
    paper: ClassVar[dict] = {
        "title": "Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks Using an "
        "Incompetent Teacher",
        "year": 2023,
        "arxiv": "2205.08096",
    }
    limits: ClassVar[dict] = {
        "random": "the noise that it learns on some samples of a class spreads to the others",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        temperature: float = 1.0,
        retain_fraction: float = 0.3,
        seed: int | None = None,
    ) -> None:
        super().__init__(task, optimizer)
        if temperature <= 0:
            msg = f"`temperature` must be above 0, got {temperature}"
            raise ValueError(msg)
        if not 0 <= retain_fraction <= 1:
            msg = f"`retain_fraction` must be in [0, 1], got {retain_fraction}"
            raise ValueError(msg)
        self.temperature = temperature
        self.retain_fraction = retain_fraction
        self.seed = seed

    @property
    def incompetent(self) -> Task:
        """The randomly initialised teacher, frozen, in eval mode; it is in no checkpoint."""
        return self.__dict__["_incompetent"]

    def setup(self, stage: str) -> None:
        """Draw the incompetent teacher, the same whenever the run is resumed."""
        super().setup(stage)
        if stage == "fit":
            run = int(os.environ.get("PL_GLOBAL_SEED", 0))
            teacher = copy.deepcopy(self.original)
            with torch.random.fork_rng():
                torch.manual_seed(self.seed if self.seed is not None else run + 10_007)
                teacher.reset()
            self.__dict__["_incompetent"] = teacher.requires_grad_(False).eval()

    def on_fit_start(self) -> None:
        """Bring both teachers to the device of the task."""
        super().on_fit_start()
        self.incompetent.to(self.device)

    def unlearning_losses(self, forget: Batch, retain: Batch) -> dict[str, Tensor]:
        """Divergence from the incompetent teacher on forget, the competent on retain samples."""
        data = self.data
        share = forget_share(len(data.forget_set), len(data.retain_set), self.retain_fraction)
        return {
            "forget_incompetent": share * self._divergence(self.incompetent, forget),
            "retain_competent": (1 - share) * self._divergence(self.original, retain),
        }

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Adam with lr 1e-4."""
        return torch.optim.Adam(parameters, lr=1e-4)

    def _divergence(self, teacher: Task, batch: Batch) -> Tensor:
        with torch.no_grad():
            reference = teacher(batch)
        kl = self.task.divergence(self.task(batch), reference, batch, self.temperature)
        return self.task.reduce(kl, batch)
