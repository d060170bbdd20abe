"""What a model is for: its network, its loss per sample, and what every strategy needs of it."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection

from erasus_pl._lean_loop import install as lean
from erasus_pl.networks import ShardedEnsemble
from erasus_pl.tasks.weights import matching_weights, reset_parameters

__all__ = ["SPLITS", "Batch", "OptimizerCallable", "SchedulerCallable", "Task", "on_curve"]

Batch = dict[str, Any]
OptimizerCallable = Callable[[Iterable], torch.optim.Optimizer]
SchedulerCallable = Callable[[torch.optim.Optimizer], LRScheduler]

SPLITS = ("forget", "retain", "test", "holdout")


def on_curve(trainer: Trainer, step: int) -> bool:
    """Whether curves have a point at a step, counted from 1: the first, and those loggers write."""
    every = cast(Any, trainer).log_every_n_steps
    return every > 0 and (step == 1 or step % every == 0)


class Task(LightningModule):
    """A network with any loss on `(input, target)` batches; also trains the original.

    A batch is a dict with `input`, `target`, `index` (B,) and, where a coreset is weighted,
    `weight` (B,). Subclasses state what else they can do in `provides`.

    Args:
        network: the model that is unlearned, called as `network(batch["input"])`.
        loss: per-sample loss of `(outputs, target)`; a torch loss module is used with
            `reduction="none"`, and what it returns beyond the first dimension is averaged.
        optimizer: trains the original and the retrained model; Adam with lr 1e-3 by default.
        scheduler: learning-rate schedule of that training, stepped every epoch.
        epochs: how long the original and the retrained model are trained.
        checkpoint: weights of a trained original, read with `weights_only=True`.
    """

    provides: ClassVar[tuple[str, ...]] = (
        "features", "linear_head", "vector_outputs", "convolutions", "shards",
    )  # fmt: skip
    loader_mode: str = "train"
    shards_folder: str | None = None

    def __init__(
        self,
        network: nn.Module,
        loss: Callable | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: SchedulerCallable | None = None,
        epochs: int = 30,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        if epochs < 1:
            msg = f"`epochs` must be at least 1, got {epochs}"
            raise ValueError(msg)
        self.network = network
        self.loss_fn = _per_sample(loss) if loss is not None else None
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.epochs = epochs
        self.checkpoint = checkpoint
        if checkpoint is not None:
            self.load_weights(checkpoint)
        self.utility = nn.ModuleDict({split: self.metrics() for split in SPLITS})

    @staticmethod
    def from_module(module: nn.Module, loss: Callable | None = None, **options: Any) -> "Task":
        """Wrap a plain network in one line.

        Args:
            module: any network, called with `batch["input"]`.
            loss: none, or cross-entropy, makes a `ClassificationTask`; any other per-sample loss
                of `(outputs, target)` a plain `Task`.
            **options: passed to the task: `optimizer`, `epochs`, `checkpoint`, ….
        """
        from erasus_pl.tasks.classification import ClassificationTask

        if loss is None or isinstance(loss, nn.CrossEntropyLoss):
            return ClassificationTask(module, loss=loss, **options)
        return Task(module, loss=loss, **options)

    @property
    def capabilities(self) -> frozenset[str]:
        """What this very task can do: `provides`, less what its network lacks."""
        found = set(self.provides)
        sharded = isinstance(self.network, ShardedEnsemble)
        if sharded or self._last_linear() is None:
            found -= {"features", "linear_head"}
        if not any(isinstance(m, nn.Conv2d) for m in self.network.modules()):
            found -= {"convolutions"}
        if not sharded:
            found -= {"shards"}
        return frozenset(found)

    def forward(self, batch: Batch) -> Tensor:
        """The network's outputs for a batch."""
        return self.network(batch["input"])

    def per_sample_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Loss of each sample, `(B,)`."""
        if self.loss_fn is None:
            msg = f"{type(self).__name__} has no loss: give `loss`, such as nn.MSELoss()"
            raise TypeError(msg)
        return _rows(self.loss_fn(outputs, batch["target"]), len(batch["target"]))

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch; weighted by `batch["weight"]` where a coreset is weighted."""
        return self.reduce(self.per_sample_loss(self(batch), batch), batch)

    @staticmethod
    def reduce(values: Tensor, batch: Batch) -> Tensor:
        """Mean of `(B,)` values over the samples of a batch, by `batch["weight"]` if present."""
        weight = batch.get("weight")
        return values.mean() if weight is None else (values * weight).sum() / weight.sum()

    def divergence(
        self, outputs: Tensor, reference: Tensor, batch: Batch, temperature: float = 1.0
    ) -> Tensor:
        """KL(reference ‖ outputs) of each sample, `(B,)`, in nats; no T² factor."""
        msg = (
            f"{type(self).__name__} has no predictive distribution; use ClassificationTask, "
            "CausalLMTask, or a subclass that defines `divergence`"
        )
        raise NotImplementedError(msg)

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Confidence of each sample for membership attacks, `(B,)`; here the negative loss."""
        return -self.per_sample_loss(outputs, batch)

    def correct(self, outputs: Tensor, batch: Batch) -> Tensor:
        """How right each prediction is, `(B,)` in [0, 1]; NaN where that has no meaning."""
        return torch.full((len(outputs),), float("nan"), device=outputs.device)

    def random_targets(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """A copy of the batch with targets drawn uniformly from all classes."""
        msg = (
            f"{type(self).__name__} has no classes to draw from; use ClassificationTask, "
            "CausalLMTask, or a subclass that defines `random_targets`"
        )
        raise NotImplementedError(msg)

    def predictions(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the utility metrics compare: `(predictions, targets)`."""
        return outputs, batch["target"]

    def metrics(self) -> MetricCollection:
        """Fresh utility metrics over `predictions`."""
        return MetricCollection({})

    @property
    def head(self) -> nn.Linear:
        """The last linear layer.

        Raises:
            TypeError: the network has none.
        """
        head = self._last_linear()
        if head is None:
            msg = f"`network` {type(self.network).__name__} has no nn.Linear layer"
            raise TypeError(msg)
        return head

    def features(self, batch: Batch) -> Tensor:
        """Input of the last linear layer, `(B, d)`."""
        return self.pool(self._head_input(batch), batch)

    def pool(self, features: Tensor, batch: Batch) -> Tensor:
        """Make features of `(B, …, d)` into `(B, d)`; here by the mean."""
        return features if features.dim() == 2 else features.flatten(1, -2).mean(1)

    def reset(self) -> None:
        """Initialise every parameter and buffer anew, as retraining from scratch needs.

        Raises:
            TypeError: a module holds parameters and has no `reset_parameters` of its own.
        """
        reset_parameters(self.network)

    def load_weights(self, path: str | Path) -> None:
        """Load the network's weights from a checkpoint of a network, a task or a strategy."""
        self.network.load_state_dict(matching_weights(path, self.network))

    def setup(self, stage: str) -> None:
        """Leave out of the training loop what the run does not use."""
        if stage == "fit":
            if isinstance(self.network, ShardedEnsemble):
                msg = (
                    "`network`: a ShardedEnsemble is trained shard by shard: `fit` with a strategy "
                    "does so before it unlearns, or call erasus_pl.tasks.training.train_task"
                )
                raise TypeError(msg)
            lean(self.trainer)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step of ordinary training."""
        loss = self.loss(batch)
        if on_curve(self.trainer, self.trainer.global_step + 1):
            self.log("loss", loss, prog_bar=True, batch_size=len(batch["index"]))
        return loss

    def evaluation_step(self, host: LightningModule, batch: Batch, split: str) -> None:
        """Log loss and utility of one batch of a split through the module that is run."""
        outputs = self(batch)
        size = len(batch["index"])
        host.log(
            f"{split}/loss",
            self.per_sample_loss(outputs, batch).mean(),
            batch_size=size,
            sync_dist=host.trainer.world_size > 1,
            add_dataloader_idx=False,
        )
        metrics = cast(MetricCollection, self.utility[split])
        if len(metrics):
            metrics.update(*self.predictions(outputs, batch))
            for name, metric in metrics.items():
                host.log(
                    f"{split}/{name}",
                    metric,
                    batch_size=size,
                    add_dataloader_idx=False,
                    metric_attribute=f"{'task.' if host is not self else ''}utility.{split}.{name}",
                )

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Utility on one batch of the forget, retain, test or holdout set."""
        self.evaluation_step(self, batch, SPLITS[dataloader_idx])

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict:
        """Outputs and dataset positions of a batch."""
        return {"index": batch["index"], "outputs": self(batch)}

    def configure_optimizers(self) -> Any:
        """The training recipe of the original."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = (
            self.optimizer(parameters) if self.optimizer else torch.optim.Adam(parameters, lr=1e-3)
        )
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}

    def _last_linear(self) -> nn.Linear | None:
        named = self.network.named_modules()
        linear = [m for n, m in named if isinstance(m, nn.Linear) and ".lora_" not in n]
        return linear[-1] if linear else None

    def _head_input(self, batch: Batch) -> Tensor:
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self(batch)
        finally:
            hook.remove()
        return seen[-1]


def _per_sample(loss: Callable) -> Callable:
    if hasattr(loss, "reduction"):
        loss = copy.deepcopy(loss)
        loss.reduction = "none"
    return loss


def _rows(values: Tensor, n: int) -> Tensor:
    if values.dim() == 0 or len(values) != n:
        msg = (
            f"`loss` must return one value per sample, shape ({n}, …), got {tuple(values.shape)}; "
            'use reduction="none"'
        )
        raise ValueError(msg)
    return values if values.dim() == 1 else values.flatten(1).mean(1)
