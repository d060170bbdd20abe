"""The curves of a run as a table that a resumed run continues."""

import csv
from pathlib import Path

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
        path = Path(run_dir) / "metrics.csv"
        self._earlier: list[dict[str, str]] = []
        if path.exists():
            if resume:
                with path.open(newline="", encoding="utf-8") as file:
                    self._earlier = list(csv.DictReader(file))
            path.unlink()

    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        """Record metrics of a step, after those of the run that is resumed."""
        if self._earlier:
            for row in self._earlier:
                if step is None or int(row["step"]) < step:
                    self.experiment.metrics.append({k: v for k, v in row.items() if v != ""})
            self._earlier = []
        super().log_metrics(metrics, step)
