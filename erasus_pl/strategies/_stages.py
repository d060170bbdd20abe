"""Several strategies within one fit, one after another: what combinations of strategies share.

Each stage is a strategy of its own over the same task. While it runs it sees what it would see
alone: its own epochs, counted from 0, its own `loader_mode`, optimiser and schedule, and the steps,
samples and random numbers of a run that starts with it. Only the original is that of the whole run.
So a stage equals a run of its own on what the stages before it left, bit for bit.

What is remembered across a crash is what a run remembers anyway, and which stage it was in.
"""

import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from erasus_pl.strategies._stage_view import (
    FORWARDED,
    Forwarded,
    StageTrainer,
    between_epochs,
    no_loss,
)
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

if TYPE_CHECKING:
    _Base = Strategy
else:
    _Base = object


class Staged(_Base):
    """Runs the stages of a strategy; mixed into a `Strategy`, whose constructor calls `compose`."""

    stages: list[Strategy | None]
    epochs: list[int]
    running: int | None = None

    @property
    def stage(self) -> Strategy | None:
        """The stage that runs."""
        return None if self.running is None else self.stages[self.running]

    def compose(
        self,
        name: str,
        stages: Sequence[Callable[[Task], Strategy] | None],
        epochs: Sequence[int],
        optimizer: OptimizerCallable | None,
    ) -> None:
        """Make the stages.

        Args:
            name: of the argument that gave them, for errors.
            stages: what makes each of the task; None for one that does nothing.
            epochs: how long each runs.
            optimizer: of those that name none of their own.
        """
        if not any(stages):
            msg = f"`{name}` must name at least one strategy, got {list(stages)}"
            raise ValueError(msg)
        if len(epochs) != len(stages):
            msg = (
                f"`epochs` must have one number for each of the {len(stages)} {name}, got "
                f"{list(epochs)}"
            )
            raise ValueError(msg)
        self.stages = [make and make(self.task) for make in stages]
        self.epochs = list(epochs)
        for i, (stage, length) in enumerate(zip(self.stages, self.epochs, strict=True)):
            if stage is None:
                _require(length == 0, f"`epochs[{i}]` must be 0 where nothing runs, got {length}")
                continue
            kind = type(stage).__name__
            if isinstance(stage, Staged):
                msg = f"`{name}[{i}]` cannot be a {kind}; write what it runs in its place"
                raise TypeError(msg)
            _require(length > 0, f"`epochs[{i}]` must be at least 1, got {length}")
            _require(
                length == 1 or not stage.one_shot,
                f"`epochs[{i}]` must be 1, since {kind} edits the weights once, got {length}",
            )
            stage.optimizer = stage.optimizer or optimizer
            stage.automatic_optimization = True  # one way of counting steps for all stages
        self.loader_mode = self._stage(None).loader_mode
        self.needs_original = self.needs_original or any(  # type: ignore[misc]
            stage.needs_original for stage in self.stages if stage is not None
        )

    def between(self, stage: int) -> None:
        """What happens to weights or data before a later stage begins; here nothing."""

    def at_start(self) -> None:
        """What happens when the model is on its device, whichever stage it is in; nothing here."""

    def check_task(self) -> None:
        """See that the task can do what every stage requires."""
        super().check_task()
        for stage in self.stages:
            if stage is not None:
                stage.check_task()

    def setup(self, stage: str) -> None:
        """Check that the epochs are those of the stages, and set up the first."""
        super().setup(stage)
        if stage != "fit":
            return
        total, given = sum(self.epochs), self.trainer.max_epochs
        if given == -1:
            self.trainer.fit_loop.max_epochs = total
        elif given != total:
            msg = (
                f"{type(self).__name__} runs {' + '.join(map(str, self.epochs))} epochs: set "
                f"trainer.max_epochs: {total} or -1, or change `epochs` (got {given})"
            )
            raise ValueError(msg)
        self._modes = {module: module.training for module in self.task.modules()}
        self._begin(self._at(0), 0)

    def on_fit_start(self) -> None:
        """Start the stage that the run is in."""
        super().on_fit_start()
        self.at_start()
        self._start()

    def on_train_start(self) -> None:
        """Go on, with the next stage where a resumed run had finished one."""
        due = self._at(self.trainer.current_epoch)
        if due == self.running:
            self._stage(due).on_train_start()
        else:
            between_epochs(self.trainer.fit_loop)
            self._move_on(due)

    def on_train_epoch_start(self) -> None:
        """Begin a stage with its first epoch."""
        due = self._at(self.trainer.current_epoch)
        if due != self.running:
            self._move_on(due)
        stage = self._stage(due)
        stage._current_fx_name = self._current_fx_name
        stage.on_train_epoch_start()

    def training_step(self, batch: dict[str, Batch | None], batch_idx: int) -> Tensor | None:
        """One step of the stage that runs."""
        stage = self.stages[self.running]  # type: ignore[index]
        assert stage is not None
        stage._current_fx_name = self._current_fx_name
        loss = stage.training_step(batch, batch_idx)
        return no_loss(self) if stage.one_shot else loss

    def on_train_end(self) -> None:
        """End the last stage."""
        self._stage(self.running).on_train_end()

    def teardown(self, stage: str) -> None:
        """Let go of the stage that ran."""
        self._let_go()

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule of the stage that runs."""
        return self._stage(self.running).configure_optimizers()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which stage runs, and what it keeps."""
        stage = self.stage
        if stage is not None:
            stage.on_save_checkpoint(checkpoint)
            checkpoint["stages"] = {
                "names": self._names(),
                "epochs": list(self.epochs),
                "running": self.running,
                "step": stage.trainer.first_step,  # type: ignore[attr-defined]
                "before": list(stage._before),
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the stage that ran."""
        if self.stage is None:
            return
        found = checkpoint.get("stages", {})
        if found.get("names") != self._names() or found.get("epochs") != self.epochs:
            msg = (
                f"`ckpt_path`: the checkpoint was made by the stages {found.get('names')} with "
                f"epochs {found.get('epochs')}, and this run has {self._names()} with "
                f"{self.epochs}; resume with what it was made for, or start without --ckpt_path"
            )
            raise ValueError(msg)
        self._begin(found["running"], found["step"])
        self._stage(self.running)._before = list(found["before"])
        self._stage(self.running).on_load_checkpoint(checkpoint)

    def _names(self) -> list[str | None]:
        return [None if stage is None else type(stage).__name__ for stage in self.stages]

    def _stage(self, i: int | None) -> Strategy:
        first = next(stage for stage in self.stages if stage is not None)
        return (None if i is None else self.stages[i]) or first

    def _at(self, epoch: int) -> int:
        """The stage of an epoch, that of the last epoch for those after it."""
        ends = list(accumulate(self.epochs))
        return next(i for i, end in enumerate(ends) if end > min(epoch, ends[-1] - 1))

    def _let_go(self) -> None:
        if self.stage is not None:
            self.stage.teardown("fit")
        self.running = None

    def _begin(self, i: int, step: int) -> None:
        """Set a stage up, on the weights as they are."""
        self._let_go()
        self.running, stage = i, self._stage(i)
        self.loader_mode = stage.loader_mode
        view: Any = StageTrainer(self.trainer, sum(self.epochs[:i]), step, self.epochs[i])
        stage.trainer = view
        self.task.trainer = self.trainer
        if stage.needs_original:
            stage.__dict__["_given_original"] = self.original
        stage.setup("fit")

    def _start(self) -> None:
        """Start the stage that was set up; what it draws follows from the seed of the run."""
        stage = self._stage(self.running).to(self.device)
        with torch.random.fork_rng():
            torch.manual_seed(int(os.environ.get("PL_GLOBAL_SEED", 0)))
            stage.on_fit_start()

    def _move_on(self, i: int) -> None:
        """End the stage that runs, and begin another on what it left."""
        self._stage(self.running).on_train_end()
        for parameter in self.task.parameters():
            parameter.grad = None
        self._let_go()
        self.between(i)
        for module, mode in self._modes.items():
            module.training = mode
        self._begin(i, self.trainer.global_step)
        trainer: Any = self.trainer
        if isinstance(trainer.strategy, DDPStrategy):  # it may be about other parameters now
            trainer.strategy.model = self
            trainer.strategy.configure_ddp()
        trainer.strategy.setup_optimizers(trainer)
        self._start()
        self.data.step = 0
        trainer.fit_loop._combined_loader = None
        trainer.fit_loop.setup_data()
        self._stage(i).on_train_start()


for _name in FORWARDED:
    setattr(Staged, _name, Forwarded(_name))


def _require(fits: bool, msg: str) -> None:
    if not fits:
        raise ValueError(msg)
