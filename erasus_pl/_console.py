"""A console that says what is being done, and leaves out what nobody can act on."""

import logging
import re
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

__all__ = ["Progress", "quiet", "say", "show_splits", "watch"]

T = TypeVar("T")

_LOGGED = re.compile(
    r"💡 Tip|GPU available: False|TPU available: False|`weights_only` was not set"
    r"|`Trainer\.\w+` stopped: `max_epochs|Seed set to|Experiment with name"
)
_LOGGERS = (
    "pytorch.utilities.rank_zero",
    "fabric.utilities.rank_zero",
    "fabric.utilities.seed",
    "pytorch.loggers.mlflow",
    "pytorch.trainer.connectors.checkpoint_connector",
)
_WARNED = (
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*does not have many workers",
    r"The number of training batches .* is smaller than the logging interval",
    r"LightningCLI's args parameter",
    r"Detected pickle protocol",
    r"Experiment logs directory .* exists and is not empty",
    r"Total length of `SweepLoader` across ranks is zero",
    r"You're resuming from a checkpoint that ended before the epoch ended",
)
_PER_SECOND = 10


class Progress(RichProgressBar):
    """Lightning's progress bar that says what is trained, and draws ten times a second at most.

    Args:
        doing: what an epoch of training is for, such as `unlearning`.
    """

    validation_description = "measuring"
    test_description = "measuring"
    predict_description = "predicting"

    def __init__(self, doing: str) -> None:
        super().__init__(refresh_rate=_PER_SECOND)
        self.doing = doing
        self._drawn = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw, unless it was just done."""
        now = time.monotonic()
        if trainer.is_last_batch or now - self._drawn > 1 / _PER_SECOND:
            self._drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What was logged, without the number of the logger's run."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Lightning's, less the speed, so that a line of 80 characters holds them."""
        columns: list[Any] = super().configure_columns(trainer)
        return columns[:-1]

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs
        return f"{self.doing}, epoch {current_epoch + 1}{f'/{last}' if last else ''}"


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _LOGGED.match(record.getMessage())


_QUIET = _Quiet()


def quiet() -> None:
    """Leave out adverts and what Lightning says of itself, by message; all else stays."""
    for name in _LOGGERS:
        logging.getLogger(f"lightning.{name}").addFilter(_QUIET)
    for message in _WARNED:
        warnings.filterwarnings("ignore", message)


def say(text: str) -> None:
    """One line on what is being done."""
    print(f"erasus_pl · {text}", flush=True)


def show_splits(results: list[Mapping[str, float]]) -> None:
    """A table of what was measured on each set, from `split/name` → value."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = {tuple(k.split("/", 1)): v for result in results for k, v in result.items()}
    splits = list(dict.fromkeys(key[0] for key in found))
    names = list(dict.fromkeys(key[-1] for key in found))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("set")
    for name in names:
        table.add_column(name, justify="right")
    for split in splits:
        values = (found.get((split, name)) for name in names)
        table.add_row(split, *("" if value is None else f"{value:.4f}" for value in values))
    Console(highlight=False).print(table)


def watch(batches: Iterable[T], split: str) -> Iterable[T]:
    """Go through the batches of a split with a progress bar that goes away at the end."""
    from rich import get_console
    from rich.progress import track

    doing = f"measuring, {split} set"
    plain = not get_console().is_terminal
    return track(batches, doing, transient=True, refresh_per_second=_PER_SECOND, disable=plain)
