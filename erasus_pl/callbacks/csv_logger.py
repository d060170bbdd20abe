"""The curves of a run as a table that a resumed run continues."""

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger

__all__ = ["RunCSVLogger"]


class RunCSVLogger(CSVLogger):
    """Writes `metrics.csv` into the run's folder.

    Args:
        run_dir: the run's folder.
        resume: keep the rows of the run that is resumed, up to the step it goes on from; a stock
            CSVLogger deletes them.
    """

    def __init__(self, run_dir: str | Path, resume: bool = False) -> None:
        super().__init__(run_dir, name="", version="")
        self.path = Path(run_dir) / "metrics.csv"
        self.resume = resume
        self._last: tuple[int | None, dict] | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the table; a stock one starts by deleting what is there."""
        if self._experiment is None:
            rows = self._rows() if self.resume else []
            self._experiment = super().experiment
            self._write(rows)
        return self._experiment

    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        """Record metrics of a step, once, after those of the run that is resumed."""
        if self._last is None and self.resume and step is not None:
            self.save()
            rows = self._rows()
            if any(int(row["step"]) >= step for row in rows):
                self.path.unlink()
                self._write([row for row in rows if int(row["step"]) < step])
        if self._last != (step, metrics):
            self._last = (step, dict(metrics))
            super().log_metrics(metrics, step)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]

    def _write(self, rows: list[dict[str, str]]) -> None:
        if rows:
            self.experiment.metrics = rows
            self.experiment.save()
