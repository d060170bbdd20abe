"""The contract of a strategy: wrap a trained task, forget, leave everything else as it was."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from erasus_pl._lean_loop import install as lean
from erasus_pl.callbacks.training_record import TrainingRecord
from erasus_pl.tasks.base import SPLITS, Batch, OptimizerCallable, Task, on_curve

__all__ = ["NoEffectWarning", "Strategy"]

# From a strategy and what evaluates its terms: these, and a scalar with the gradient of the step.
Rule = Callable[["Strategy", Callable[[], dict[str, Tensor]]], tuple[dict[str, Tensor], Tensor]]


class NoEffectWarning(UserWarning):
    """A strategy ran and left every parameter as it was."""


class Strategy(LightningModule):
    """Makes the model of a task forget. Fill in one of two forms.

    *Iterative:* define `unlearning_losses(forget, retain)`; each named term is logged, their sum
    is minimised. *One-shot:* define `accumulate(forget, retain)`, called on every batch with the
    network in eval mode, and `edit()`, called once after the last batch; what must be summed over
    batches (and processes) goes through `self.add(name, value)` and is read from `self.totals`.

    Args:
        task: the trained model.
        optimizer: makes the optimiser from the trainable parameters; each strategy states its own
            default.
    """

    loader_mode: str = "paired"
    needs_original: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[dict[str, Any]] = {}
    on_weights: ClassVar[str] = ""  # what it does to the weights themselves, beside learning them
    # "class" or "random" → why its defaults bring a small trained network no nearer to the
    # retrained one there; what is not named has been measured to work.
    limits: ClassVar[dict[str, str]] = {}
    record: str | None = None

    def __init__(self, task: Task, optimizer: OptimizerCallable | None = None) -> None:
        super().__init__()
        if not isinstance(cast(object, task), Task):
            msg = (
                f"`task` must be a Task, got {type(task).__name__}; wrap a plain network with "
                "Task.from_module(network)"
            )
            raise TypeError(msg)
        self.task = task
        self.optimizer = optimizer
        self.totals: dict[str, Tensor] = {}
        self.rule: Rule | None = None
        self.automatic_optimization = not self.one_shot

    @property
    def one_shot(self) -> bool:
        """Whether this strategy edits the weights once, after a pass over the data."""
        return type(self).edit is not Strategy.edit

    @property
    def original(self) -> Task:
        """The frozen original, in eval mode; it is in no checkpoint and no optimiser."""
        return self.__dict__["_original"]

    @property
    def data(self) -> Any:
        """The datamodule of the run."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The task's parameters that may change, by name; what the user froze is not among them."""
        return {k: p for k, p in self.task.named_parameters() if p.requires_grad}

    def recorder(self) -> TrainingRecord | None:
        """What must record the original's training for this strategy; none where nothing must.

        `read_record(self, self)` reads the file, from `on_fit_start` on; `fit` sets `record` where
        it trains the original, so give that option and nothing else for it.
        """
        return None

    def unlearning_losses(self, forget: Any, retain: Any) -> dict[str, Tensor]:
        """Named scalar terms of one step, summed; a side that `loader_mode` leaves out is None."""
        msg = f"{type(self).__name__} must define `unlearning_losses`, or `accumulate` and `edit`"
        raise NotImplementedError(msg)

    def accumulate(self, forget: Any, retain: Any) -> None:
        """Take in one batch of each set; None where a set is exhausted."""

    def edit(self) -> None:
        """Change the weights, once, from `self.totals`."""

    def default_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of the paper, used when `optimizer` is not given."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)

    def add(self, name: str, value: Tensor) -> None:
        """Add to a total that is summed over batches, and over processes before `edit`."""
        self.totals[name] = self.totals[name] + value if name in self.totals else value.detach()

    def forward(self, batch: Batch) -> Tensor:
        """The task's outputs."""
        return self.task(batch)

    def setup(self, stage: str) -> None:
        """Check what the strategy needs and keep the original aside, before any resume."""
        self.check_task()
        if stage != "fit":
            return
        if self.one_shot and self.trainer.max_epochs != 1:
            msg = (
                f"{type(self).__name__} edits the weights once: set trainer.max_epochs: 1 "
                f"(got {self.trainer.max_epochs})"
            )
            raise ValueError(msg)
        lean(self.trainer)
        self._before = _checksum(self.task)
        if self.needs_original:
            original = self.__dict__.get("_given_original")
            if original is None:
                original = copy.deepcopy(self.task).requires_grad_(False).eval()
            self.__dict__["_original"] = original

    def check_task(self) -> None:
        """See that the task can do what the strategy requires.

        Raises:
            TypeError: it cannot.
        """
        missing = sorted(set(self.requires) - self.task.capabilities)
        if missing:
            msg = (
                f"{type(self).__name__} needs a task with {missing}, and "
                f"{type(self.task).__name__} over {type(self.task.network).__name__} has none; "
                f"strategies that fit: {', '.join(_fitting(self.task.capabilities))}"
            )
            raise TypeError(msg)

    def on_fit_start(self) -> None:
        """Bring the original to the device of the task."""
        if self.needs_original:
            self.original.to(self.device)

    def on_train_start(self) -> None:
        """Iterative forms train a network that was handed over in eval mode.

        One-shot forms measure it as it is used: dropout off, batch norms untouched.
        """
        if self.one_shot:
            self.task.eval()
        elif not self.task.network.training:
            self.task.train()

    def training_step(self, batch: dict[str, Batch | None], batch_idx: int) -> Tensor | None:
        """Fixed: one step of either form."""
        forget, retain = batch["forget"], batch["retain"]
        if self.one_shot:
            self._one_shot_step(forget, retain)
            return None
        if self.rule is None:
            losses = self.unlearning_losses(forget, retain)
            first, *rest = losses.values()
            total = sum(rest, first)
        else:
            losses, total = self.rule(self, partial(self.unlearning_losses, forget, retain))
        if on_curve(self.trainer, self.trainer.fit_loop.epoch_loop.global_step + 1):
            terms = losses if len(losses) < 2 else {**losses, "loss": total}
            size = max(len(b["index"]) for b in (forget, retain) if b is not None)
            self.log_dict(terms, prog_bar=True, batch_size=size)
        return total

    def on_train_end(self) -> None:
        """Warn where nothing changed."""
        if _checksum(self.task) == self._before:
            warnings.warn(
                f"{type(self).__name__} changed no weight: make its hyper-parameters less "
                "cautious, or check that the forget set reaches it",
                NoEffectWarning,
                stacklevel=2,
            )

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Utility on one batch of the forget, retain, test or holdout set."""
        self.task.evaluation_step(self, batch, SPLITS[dataloader_idx])

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict:
        """Outputs and dataset positions of a batch."""
        return {"index": batch["index"], "outputs": self(batch)}

    def configure_optimizers(self) -> Any:
        """The strategy's optimiser; one-shot forms get one that owns no weight."""
        if self.one_shot:
            return torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=0.0)
        parameters = list(self.trainable.values())
        if not parameters:
            msg = "`task`: every parameter is frozen; set requires_grad on some"
            raise ValueError(msg)
        return (self.optimizer or self.default_optimizer)(parameters)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running totals of a one-shot pass."""
        if self.one_shot:
            checkpoint["totals"] = dict(self.totals)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the running totals of a one-shot pass."""
        self.totals = dict(checkpoint.get("totals", {}))

    def _one_shot_step(self, forget: Batch | None, retain: Batch | None) -> None:
        self.totals = {k: v.to(self.device) for k, v in self.totals.items()}
        self.accumulate(forget, retain)
        if not self.automatic_optimization:  # else a strategy that runs this one steps
            cast(LightningOptimizer, self.optimizers()).step()
        if self.trainer.is_last_batch:
            for name, total in self.totals.items():
                self.totals[name] = self.trainer.strategy.reduce(total, reduce_op="sum")
            with torch.no_grad():
                self.edit()
            self.totals = {}


def _checksum(task: Task) -> list[float]:
    """Two sums for each parameter; one weighs the places, so that exchanging weights shows."""
    found = []
    for parameter in task.parameters():
        p = parameter.detach().double().flatten()
        places = torch.linspace(1, 2, len(p), dtype=p.dtype, device=p.device)
        found += [torch.dot(p, places).item(), torch.linalg.vector_norm(p).item()]
    return found


def _fitting(capabilities: frozenset[str]) -> list[str]:
    import erasus_pl.strategies as room

    found = (getattr(room, name) for name in room.__all__)
    return sorted(
        c.__name__
        for c in found
        if issubclass(c, Strategy) and c is not Strategy and set(c.requires) <= capabilities
    )
