"""Keep the curves and the clock of an unlearning run, through crashes and resumes."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from erasus_pl.tasks.base import SPLITS, on_curve

__all__ = ["Recorder"]

_SPLITS = tuple(f"{split}/" for split in SPLITS)


class Recorder(Callback):
    """Records logged values by step, and the wall seconds spent, without validation."""

    def __init__(self) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.seconds = 0.0
        self._since = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; selection counts."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in what was logged at this step."""
        if on_curve(trainer, trainer.global_step):
            self._take(trainer, validation=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again."""
        self._since = time.perf_counter()
        self._take(trainer, validation=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop()

    def state_dict(self) -> dict[str, Any]:
        """Curves and seconds so far."""
        running = time.perf_counter() - self._since if self._since else 0.0
        return {"curves": self.curves, "seconds": self.seconds + running}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.curves = {k: [tuple(p) for p in v] for k, v in state_dict["curves"].items()}
        self.seconds = state_dict["seconds"]

    def _stop(self) -> None:
        if self._since:
            self.seconds += time.perf_counter() - self._since
            self._since = 0.0

    def _take(self, trainer: Trainer, validation: bool) -> None:
        for name, value in trainer.logged_metrics.items():
            if name.startswith(_SPLITS) == validation:
                self.curves.setdefault(name, []).append((trainer.global_step, float(value)))
