"""MSG: draw anew the weights whose gradient tells D_r and D_f least apart, then train on D_r.

The second solution of the NeurIPS 2023 unlearning challenge, "Masked Small Gradients", as Cadet et
al. name and publish it, "Deep Unlearn: Benchmarking Machine Unlearning" (2024,
arXiv:2410.01276). With g the gradient over as many retain as forget samples of
mean_{D_r} ℓ − mean_{D_f} ℓ, the round(ρ n) of the n weights of each convolution that have the
smallest |g| are drawn anew (`smallest`), from N(0, 2 / fan-out); then the network is fine-tuned on
D_r. In that, the gradients of the weights that were kept are multiplied by 0.1 (`gradient_scale`),
and the learning rate rises linearly over the first half of the epochs and falls over the rest
(`annealing`). Biases, norms and other layers learn at full rate.

g is the mean over samples at the original in eval mode; the published code sums means of batches,
so that a short last one weighs as much as a full one. A network without convolutions has its linear
layers treated so: this implementation's reading.
"""

import os
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Subset

from erasus_pl.linalg import mean_gradient, unflatten
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["MSG", "annealing", "gradient_scale", "smallest"]


def smallest(gradient: Tensor, fraction: float) -> Tensor:
    """The entries of smallest magnitude, bool of the same shape (arXiv:2410.01276, MSG).

    Exactly round(fraction · n) are chosen; of equal ones the first.

    Args:
        gradient: of one layer's weight, any shape, n entries.
        fraction: ρ, in [0, 1].
    """
    flat = gradient.abs().flatten()
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[flat.argsort(stable=True)[: round(fraction * len(flat))]] = True
    return mask.view_as(gradient)


def gradient_scale(redrawn: Tensor, kept_scale: float) -> Tensor:
    """1 where a weight was drawn anew, `kept_scale` elsewhere."""
    return torch.where(redrawn, 1.0, kept_scale)


def annealing(epoch: int, epochs: int) -> float:
    """Part of the learning rate that an epoch, counted from 0, learns with.

    It rises to 1 over the first ⌈epochs / 2⌉, then falls towards 0 at epochs + 1.
    """
    top, step = (epochs + 1) // 2, epoch + 1
    return step / top if step <= top else (epochs + 1 - step) / (epochs + 1 - top)


class MSG(Strategy):
    """Redraw the weights of smallest gradient, then fine-tune them most on the retain set.

    An epoch passes over the whole retain set. Needs `trainer.max_epochs`, which the learning rate
    is annealed over.

    Args:
        task: the trained model.
        optimizer: SGD with lr 1e-3, momentum 0.9 and weight decay 5e-4 by default, for 5 epochs.
        init_rate: part ρ of each layer that is drawn anew, in (0, 1]; 0.3 in the published code.
        kept_scale: what gradients of the weights that are kept are multiplied by, in [0, 1]; 0.1
            in the published code.
        seed: of the draw; if not given it follows `seed_everything`.
    """

    loader_mode = "retain"
    needs_original = True
    on_weights = "draws some of them anew"
    paper: ClassVar[dict] = {
        "title": "Deep Unlearn: Benchmarking Machine Unlearning",
        "year": 2024,
        "arxiv": "2410.01276",
    }
    limits: ClassVar[dict] = {
        "random": "kept weights learn at a tenth of the rate, too slowly for wrong labels",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        init_rate: float = 0.3,
        kept_scale: float = 0.1,
        seed: int | None = None,
    ) -> None:
        super().__init__(task, optimizer)
        if not 0 < init_rate <= 1:
            msg = f"`init_rate` must be in (0, 1], got {init_rate}"
            raise ValueError(msg)
        if not 0 <= kept_scale <= 1:
            msg = f"`kept_scale` must be in [0, 1], got {kept_scale}"
            raise ValueError(msg)
        self.init_rate = init_rate
        self.kept_scale = kept_scale
        self.seed = seed
        self.redrawn: dict[str, Tensor] = {}
        self._resumed = False

    def setup(self, stage: str) -> None:
        """Check that the learning rate has an end to be annealed to."""
        super().setup(stage)
        epochs = self.trainer.max_epochs
        if stage == "fit" and (epochs is None or epochs < 1):
            msg = f"MSG anneals over all epochs: set trainer.max_epochs to at least 1, got {epochs}"
            raise ValueError(msg)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember that the weights were drawn already."""
        super().on_load_checkpoint(checkpoint)
        self._resumed = True

    def on_fit_start(self) -> None:
        """Find the weights on the original, the same whenever the run is resumed; draw them."""
        super().on_fit_start()
        gradient = self._gradient()
        self.redrawn = {k: smallest(gradient[k], self.init_rate) for k in self._layers()}
        if not self.redrawn:
            msg = (
                f"MSG redraws weights of convolutions or linear layers, and the network "
                f"{type(self.task.network).__name__} has none that are not frozen; take FineTune"
            )
            raise TypeError(msg)
        if not self._resumed:
            self._redraw()

    def unlearning_losses(self, forget: Any, retain: Batch) -> dict[str, Tensor]:
        """The task loss of the retain batch."""
        return {"retain": self.task.loss(retain)}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Slow down the weights that were kept."""
        parameters = self.trainable
        for name, redrawn in self.redrawn.items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.mul_(gradient_scale(redrawn, self.kept_scale))

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """SGD with lr 1e-3."""
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def configure_optimizers(self) -> Any:
        """The optimiser, annealed over the epochs."""
        optimizer = super().configure_optimizers()
        epochs = self.trainer.max_epochs or 1
        # The scheduler steps once more after the last epoch.
        schedule = LambdaLR(optimizer, lambda e: annealing(min(e, epochs - 1), epochs))
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _layers(self) -> list[str]:
        """Names of the trainable weights of convolutions, or of linear layers where none are."""
        kinds = ((nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.Linear,))
        modules = dict(self.task.named_modules())
        found = [[f"{n}.weight" for n, m in modules.items() if isinstance(m, k)] for k in kinds]
        trainable = self.trainable
        return [name for name in (found[0] or found[1]) if name in trainable]

    def _gradient(self) -> dict[str, Tensor]:
        """∇(mean over drawn retain samples − mean over forget samples), by name."""
        trainable, original = self.trainable, self.original
        for name, parameter in original.named_parameters():
            parameter.requires_grad_(name in trainable)
        forget = mean_gradient(original, self._losses, self.data.forget_batches())
        retain = mean_gradient(original, self._losses, self._retain_batches())
        original.requires_grad_(False)
        return unflatten(retain - forget, trainable)

    def _retain_batches(self) -> Iterable[Batch]:
        """As many retain as forget samples, the same on every process."""
        data = self.data
        forget = len(data.forget_set if data.coreset is None else data.coreset)
        generator = torch.Generator().manual_seed(data.seed)
        drawn = torch.randperm(len(data.retain_set), generator=generator)[:forget].sort().values
        for batch in data.sweep(Subset(data.retain_set, drawn.tolist())):
            yield self.trainer.strategy.batch_to_device(batch)

    @torch.no_grad()
    def _redraw(self) -> None:
        run = int(os.environ.get("PL_GLOBAL_SEED", 0)) + 10_007
        generator = torch.Generator().manual_seed(self.seed if self.seed is not None else run)
        parameters = self.trainable
        for name, mask in self.redrawn.items():
            weight = parameters[name]
            drawn = torch.empty(weight.shape, dtype=weight.dtype)
            nn.init.kaiming_normal_(drawn, mode="fan_out", generator=generator)
            weight.copy_(torch.where(mask, drawn.to(weight.device), weight))

    def _losses(self, batch: Batch) -> Tensor:
        losses = self.original.per_sample_loss(self.original(batch), batch)
        return losses * batch["weight"] if "weight" in batch else losses
