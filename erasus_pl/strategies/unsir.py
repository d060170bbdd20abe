"""UNSIR: impair with noise that stands for the forgotten class, then repair on the retain set.

Tarun et al., "Fast Yet Effective Machine Unlearning" (TNNLS 2023, arXiv:2111.08947). For each class
c of D_f a batch of noise is learnt that the original finds as unlike c as can be, by
max_z ℓ(f_θo(z), c) − λ ‖z‖² (`noise_objective`). Impairing trains on this noise, labelled c, mixed
with D_r; repairing on D_r alone with a smaller learning rate. No forget sample is learnt from: D_f
only says which classes go, and what shape the noise has. The published notebook labels the noise of
every forgotten class as class 0; here each class keeps its own label.

The paper draws a part of D_r to save work. Here an epoch passes over all of it unless
`trainer.limit_train_batches` says otherwise. Random forgetting names almost every class, all of
which are then impaired and repaired: the method is meant for classes.
"""

import os
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["UNSIR", "noise_objective"]


def noise_objective(losses: Tensor, noise: Tensor, lam: float) -> Tensor:
    """−mean ℓ + λ mean ‖z‖², to be minimised over z (arXiv:2111.08947, error-maximising noise).

    Args:
        losses: ℓ(f_θo(z), c) of each noise sample, `(B,)`.
        noise: z, `(B, …)`.
        lam: λ.
    """
    return lam * noise.flatten(1).square().sum(1).mean() - losses.mean()


class UNSIR(Strategy):
    """Impair on noise learnt to be unlike the forgotten classes, repair on the retain set.

    Give `trainer.max_epochs` the epochs of both phases: 2 in the paper.

    Args:
        task: the trained model; its batches have a floating `input`.
        optimizer: of impairing; Adam with lr 0.02 by default. Repairing starts it afresh.
        impair_epochs: epochs of impairing, at least 1; all later ones repair.
        repair_scale: learning rate of repairing as a part of that of impairing, at least 0; 0.5 in
            the paper (0.02, then 0.01).
        noise_size: noise samples that are learnt for each forgotten class; 256 in the paper.
        noise_steps: steps of that, of Adam; 40 in the published notebook.
        noise_lr: their learning rate; 0.1 in the paper.
        lam: weight λ of the noise's squared norm; 0.1 in the paper.
        ratio: noise samples of each forgotten class that go with a retain sample; in the
            published notebook 20 batches of 256 with 1,000 samples of each of 8 classes.
        seed: of the noise; if not given it follows `seed_everything`.
    """

    loader_mode = "retain"
    needs_original = True
    requires = ("targets", "vector_outputs")
    paper: ClassVar[dict] = {
        "title": "Fast Yet Effective Machine Unlearning",
        "year": 2023,
        "arxiv": "2111.08947",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        impair_epochs: int = 1,
        repair_scale: float = 0.5,
        noise_size: int = 256,
        noise_steps: int = 40,
        noise_lr: float = 0.1,
        lam: float = 0.1,
        ratio: float = 0.64,
        seed: int | None = None,
    ) -> None:
        super().__init__(task, optimizer)
        for name, value, least in (
            ("impair_epochs", impair_epochs, 1),
            ("repair_scale", repair_scale, 0),
            ("noise_size", noise_size, 1),
            ("noise_steps", noise_steps, 0),
            ("noise_lr", noise_lr, 0),
            ("lam", lam, 0),
        ):
            if value < least:
                msg = f"`{name}` must be at least {least}, got {value}"
                raise ValueError(msg)
        if not ratio > 0:
            msg = f"`ratio` must be above 0, got {ratio}"
            raise ValueError(msg)
        self.impair_epochs = impair_epochs
        self.repair_scale = repair_scale
        self.noise_size = noise_size
        self.noise_steps = noise_steps
        self.noise_lr = noise_lr
        self.lam = lam
        self.ratio = ratio
        self.seed = seed
        self.noise: dict[int, Tensor] = {}

    def on_fit_start(self) -> None:
        """Learn the noise on the original, the same whenever the run is resumed."""
        super().on_fit_start()
        run = int(os.environ.get("PL_GLOBAL_SEED", 0)) + 10_007
        generator = torch.Generator().manual_seed(self.seed if self.seed is not None else run)
        shape, classes = None, set()
        for batch in self._forget_batches():
            shape = batch["input"].shape[1:]
            classes |= set(batch["target"].tolist())
        for c in sorted(classes):
            start = torch.randn((self.noise_size, *(shape or ())), generator=generator)
            self.noise[c] = self._learn(start.to(self.device), c)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Repair with an optimiser that knows nothing of impairing."""
        if self.current_epoch == self.impair_epochs and batch_idx == 0:
            self.optimizers(use_pl_optimizer=False).state.clear()  # type: ignore[union-attr]

    def unlearning_losses(self, forget: Any, retain: Batch) -> dict[str, Tensor]:
        """Mean loss over the retain batch, and over the noise mixed with it while impairing."""
        if self.current_epoch >= self.impair_epochs:
            return {"retain": self.task.loss(retain)}
        real = len(retain["index"])
        mixed = self._mix(retain)
        losses = self.task.per_sample_loss(self.task(mixed), mixed)
        return {
            "retain": losses[:real].sum() / len(losses),
            "noise": losses[real:].sum() / len(losses),
        }

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Adam with lr 0.02."""
        return torch.optim.Adam(parameters, lr=0.02)

    def configure_optimizers(self) -> Any:
        """The optimiser, slowed down for repairing."""
        optimizer = super().configure_optimizers()
        schedule = LambdaLR(
            optimizer, lambda epoch: 1.0 if epoch < self.impair_epochs else self.repair_scale
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _learn(self, start: Tensor, c: int) -> Tensor:
        noise = start.requires_grad_()
        target = torch.full((len(noise),), c, device=noise.device)
        optimizer = torch.optim.Adam([noise], lr=self.noise_lr)
        for _ in range(self.noise_steps):
            batch = {"input": noise, "target": target, "index": target}
            with torch.enable_grad():
                losses = self.original.per_sample_loss(self.original(batch), batch)
                objective = noise_objective(losses, noise, self.lam)
            (noise.grad,) = torch.autograd.grad(objective, [noise])
            optimizer.step()
        return noise.detach()

    def _mix(self, retain: Batch) -> Batch:
        """The retain batch with noise of every forgotten class after it."""
        x, y = [retain["input"]], [retain["target"]]
        count = max(1, round(self.ratio * len(retain["index"])))
        for c, noise in self.noise.items():
            drawn = torch.randint(len(noise), (count,)).to(noise.device)
            x.append(noise[drawn].to(x[0].dtype))
            y.append(torch.full((count,), c, dtype=y[0].dtype, device=y[0].device))
        return {"input": torch.cat(x), "target": torch.cat(y)}

    def _forget_batches(self) -> Iterator[Batch]:
        for batch in self.data.forget_batches():
            given = batch.get("input")
            if not isinstance(given, Tensor) or not given.is_floating_point():
                kind = given.dtype if isinstance(given, Tensor) else "none"
                msg = (
                    f"UNSIR learns noise by gradient and needs a floating `input`, got {kind}: "
                    "tokens have none; take RandomLabel or another strategy that reads D_f"
                )
                raise TypeError(msg)
            yield batch
