"""Runs in MLflow and Weights & Biases, by one overlay each."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from erasus_pl.__main__ import main

CONF = Path(__file__).parents[1] / "conf"
FIT = ["fit", "--config", str(CONF / "quickstart.yaml"), "--config", str(CONF / "debug.yaml")]
FIT += ["--model", str(CONF / "strategy" / "gradient_ascent.yaml")]
FIT += ["--data.forget_batch_size=32", "--selector=null"]
STEPS = 4  # 117 samples to forget
QUIET = ["--trainer.enable_progress_bar=false"]

needs_mlflow = pytest.mark.skipif(
    find_spec("mlflow") is None, reason="needs MLflow: pip install 'erasus-pl[mlflow]'"
)
needs_wandb = pytest.mark.skipif(
    find_spec("wandb") is None, reason="needs W&B: pip install 'erasus-pl[wandb]'"
)


def _fit(logger, *more):
    assert main([*FIT, "--config", str(CONF / "logger" / f"{logger}.yaml"), *QUIET, *more]) == 0


def _query(text):
    with sqlite3.connect("runs/mlflow.db") as database:
        return database.execute(text).fetchall()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with one run in MLflow, made once: a new database takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = Path.cwd()
    os.chdir(folder)
    try:
        _fit("mlflow")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def run(recorded, tmp_path, monkeypatch):
    """A copy of that folder, to work in; its MLflow run's id."""
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return json.loads(Path("runs/quickstart/mlflow.json").read_text())["run_id"]


@needs_mlflow
def test_mlflow_has_the_resolved_parameters(run):
    found = dict(_query(f"select key, value from params where run_uuid = '{run}'"))
    assert found["model/class_path"] == "erasus_pl.strategies.GradientAscent"
    assert found["model/init_args/optimizer/init_args/lr"] == "0.0001"
    assert found["request/init_args/classes"] == "[3]"
    assert found["task/init_args/epochs"] == "1"
    assert found["seed_everything"] == "0"


@needs_mlflow
def test_mlflow_has_the_curves(run):
    rows = _query(f"select key, step, value from metrics where run_uuid = '{run}'")
    assert [step for key, step, _ in rows if key == "forget_ascent"] == list(range(STEPS))
    assert {f"{s}/accuracy" for s in ("forget", "retain", "test", "holdout")} <= {
        key for key, _, _ in rows
    }


@needs_mlflow
def test_mlflow_has_report_configuration_and_checkpoint(run, recorded):
    kept = recorded / "runs" / "mlflow" / run / "artifacts"
    made = recorded / "runs" / "quickstart"
    for name in ("config.yaml", "report.html", "report.json", "report.md", "checkpoints/last.ckpt"):
        assert (kept / name).read_bytes() == (made / name).read_bytes()


@needs_mlflow
def test_a_resumed_run_goes_on_under_the_same_id_and_a_new_one_does_not(run):
    _fit("mlflow", "--resume", "--trainer.max_epochs=2")
    assert _query("select run_uuid, status from runs") == [(run, "FINISHED")]
    rows = _query("select step from metrics where key = 'forget_ascent' order by step")
    assert [step for (step,) in rows] == list(range(2 * STEPS))
    _fit("mlflow", "--evidence.enabled=false")
    assert len(_query("select run_uuid from runs")) == 2
    latest = json.loads(Path("runs/quickstart/mlflow.json").read_text())["run_id"]
    assert latest != run


@needs_mlflow
def test_measuring_again_makes_no_run_in_mlflow(run):
    assert main(["validate", "--config", "runs/quickstart/config.yaml", *QUIET]) == 0
    assert main(["evaluate", "--config", "runs/quickstart/config.yaml", *QUIET]) == 0
    assert len(_query("select run_uuid from runs")) == 1


@needs_mlflow
def test_resuming_a_run_that_mlflow_has_lost(run, capsys):
    with sqlite3.connect("runs/mlflow.db") as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"delete from {table}")
    overlay = ["--config", str(CONF / "logger" / "mlflow.yaml"), "--resume"]
    assert main([*FIT, *overlay, *QUIET]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "delete that file to go on as a new MLflow run" in line
    assert run in line


@pytest.mark.parametrize("uri", ["./mlruns", "file:./mlruns", "/srv/mlruns"])
def test_a_folder_of_files_is_refused(uri, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    overlay = ["--config", str(CONF / "logger" / "mlflow.yaml")]
    given = f"--trainer.logger.tracking_uri={uri}"
    assert main([*FIT, *overlay, given, *QUIET]) == 2
    assert capsys.readouterr().err.startswith(
        "error: `tracking_uri` must be a database or a server, such as sqlite:///runs/mlflow.db"
    )


class _Absent:
    def __bool__(self):
        return False

    def __str__(self):
        return "Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U wandb`"


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_logger_names_its_extra(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", _Absent())
    assert main([*FIT, "--config", str(CONF / "logger" / f"{name}.yaml")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.endswith(f"needs `{name}`: pip install 'erasus-pl[{name}]'\n")


@needs_wandb
@pytest.mark.slow
def test_wandb_keeps_a_run_offline(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "erasus_pl", *FIT, "--config", str(CONF / "logger" / "wandb.yaml"),
         "--evidence.enabled=false"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CONF.parent), "WANDB_SILENT": "true"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = (tmp_path / "runs" / "wandb").glob("offline-run-*/run-*.wandb")
    content = found.read_bytes()
    assert b"forget_ascent" in content
    assert b"erasus_pl.strategies.GradientAscent" in content
