"""A resumed run continues its table of curves."""

import csv

from erasus_pl.callbacks import RunCSVLogger


def _steps(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def _log(folder, steps, value, resume):
    logger = RunCSVLogger(folder, resume=resume)
    for step in steps:
        logger.log_metrics({"loss": value}, step)
    logger.save()


def test_resume_keeps_rows_before_the_step_it_goes_on_from(tmp_path):
    _log(tmp_path, range(6), 1.0, resume=False)
    _log(tmp_path, range(4, 8), 2.0, resume=True)
    assert _steps(tmp_path) == [(s, 1.0 if s < 4 else 2.0) for s in range(8)]


def test_a_new_run_starts_a_new_table(tmp_path):
    _log(tmp_path, range(6), 1.0, resume=False)
    _log(tmp_path, range(2), 2.0, resume=False)
    assert _steps(tmp_path) == [(0, 2.0), (1, 2.0)]
