"""Runs in an MLflow database: parameters, curves and files, continued by a resumed run."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from erasus_pl._extras import require

__all__ = ["RunMLFlowLogger"]

_SQLITE = "sqlite:///"
_SCHEMES = (_SQLITE, "postgresql", "mysql", "mssql", "http://", "https://", "databricks")


class RunMLFlowLogger(MLFlowLogger):
    """Lightning's MLFlowLogger on a database, with the files of a run; needs the extra `mlflow`.

    The id of its MLflow run is kept in `mlflow.json` in the run's folder, so that `--resume` goes
    on with the same one.

    Args:
        tracking_uri: a database, or a server's address. MLflow refuses to keep runs in a folder of
            files from 3.17 on.
        experiment_name: what runs are grouped by.
        run_name: name of the run; that of its folder if not given.
        artifact_location: where MLflow keeps files; beside an SQLite database if not given.

    Raises:
        ValueError: `tracking_uri` is a folder.
        ImportError: MLflow is not installed.
    """

    def __init__(
        self,
        tracking_uri: str = "sqlite:///runs/mlflow.db",
        experiment_name: str = "erasus-pl",
        run_name: str | None = None,
        artifact_location: str | None = None,
    ) -> None:
        if not tracking_uri.startswith(_SCHEMES):
            msg = (
                "`tracking_uri` must be a database or a server, such as sqlite:///runs/mlflow.db "
                f"or http://127.0.0.1:5000, got {tracking_uri!r}: MLflow keeps no runs in a folder "
                "of files any more"
            )
            raise ValueError(msg)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        require("mlflow", "mlflow")
        self._given_uri = tracking_uri
        if tracking_uri.startswith(_SQLITE):
            database = Path(tracking_uri.removeprefix(_SQLITE)).resolve()
            database.parent.mkdir(parents=True, exist_ok=True)
            artifact_location = artifact_location or (database.parent / "mlflow").as_uri()
            tracking_uri = f"{_SQLITE}{database}"
        super().__init__(
            experiment_name=experiment_name,
            run_name=run_name,
            tracking_uri=tracking_uri,
            artifact_location=artifact_location,
        )

    @rank_zero_only
    def open(self, run_dir: Path, parameters: dict[str, Any], resume: bool = False) -> None:
        """Start an MLflow run, or go on with the one of this folder.

        Args:
            run_dir: the run's folder.
            parameters: the resolved configuration; recorded when the MLflow run is started.
            resume: whether to go on.

        Raises:
            ValueError: the MLflow run to go on with is not in the database.
        """
        record = run_dir / "mlflow.json"
        known = json.loads(record.read_text("utf-8")) if resume and record.is_file() else None
        if known is not None and known["tracking_uri"] == self._given_uri:
            self._run_id = known["run_id"]
            self._take_up(record)
            return
        self._run_name = self._run_name or run_dir.name
        self.log_hyperparams(parameters)
        run_dir.mkdir(parents=True, exist_ok=True)
        content = {"tracking_uri": self._given_uri, "run_id": self.run_id}
        record.write_text(json.dumps(content, indent=2), "utf-8")

    @rank_zero_only
    def log_files(self, run_dir: Path, names: Iterable[str]) -> None:
        """Keep files of the run's folder, where they are there, under the same names."""
        for path in (Path(run_dir) / name for name in names):
            if path.is_file():
                folder = path.parent.relative_to(run_dir).as_posix()
                self.experiment.log_artifact(
                    self.run_id, str(path), None if folder == "." else folder
                )

    def _take_up(self, record: Path) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.experiment.update_run(self.run_id, "RUNNING")
        except MlflowException as error:
            msg = (
                f"{str(record)!r} names the MLflow run {self._run_id}, which {self._given_uri} "
                "does not have; delete that file to go on as a new MLflow run"
            )
            raise ValueError(msg) from error
