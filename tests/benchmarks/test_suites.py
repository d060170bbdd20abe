"""Suites behind the benchmark runner: read, tuned, run, gone on with, and written down."""

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml

from erasus_pl.__main__ import main
from erasus_pl._words import UsageError
from erasus_pl.benchmarks.cell import build, judged_on, measured, strategy_of
from erasus_pl.benchmarks.page import summary
from erasus_pl.benchmarks.runner import Results, best
from erasus_pl.benchmarks.suite import Cell, load_suite
from erasus_pl.evaluation.evidence import ModelRecord

CONF = Path(__file__).parents[2] / "conf"
SUITES = sorted((CONF / "benchmark").glob("*.yaml"))
CLASS = {"class_path": "erasus_pl.requests.ForgetClass", "init_args": {"classes": [3]}}
SMALL = {
    "title": "Small",
    "seeds": 2,
    "scenarios": {
        "digits": {
            "task": {"part": str(CONF / "task/digits.yaml"), "epochs": 2},
            "data": str(CONF / "data/digits.yaml"),
            "request": CLASS,
        },
        "absent": {
            "task": str(CONF / "task/mnist.yaml"),
            "data": {"part": str(CONF / "data/mnist.yaml"), "path": "no/such.npz"},
            "request": CLASS,
        },
    },
    "defaults": {"epochs": 1, "epoch": "forget"},
    "search": {"trials": 3, "space": {"lr": [0.003, 0.03]}},
    "strategies": {"fine_tune": None, "ssd": {"alpha": [2.0, 5.0]}, "assd": None},
}


@pytest.fixture
def suite_file(tmp_path):
    """Writes a suite beside links to the parts, as in conf/benchmark."""
    for name in ("strategy", "selector"):
        (tmp_path / name).symlink_to(CONF / name)
    (tmp_path / "benchmark").mkdir()

    def write(**changed):
        file = tmp_path / "benchmark" / "small.yaml"
        file.write_text(yaml.safe_dump({**SMALL, **changed}, sort_keys=False))
        return file

    return write


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_a_suite_runs_everything_there_is_or_says_why_not(path):
    suite = load_suite(path)
    kind = "selector" if suite.selectors else "strategy"
    there = {p.stem for p in (CONF / kind).glob("*.yaml")}
    run = set(suite.selectors or suite.strategies)
    assert run | set(suite.left_out) == there
    assert not run & set(suite.left_out)
    assert all(suite.left_out.values())
    for name in suite.strategies:
        for settings in suite.settings(name):
            made = {"lr", "epochs", "epoch", "forget_batch_size"}
            assert set(settings) - made <= set(suite.strategies[name]["init_args"]), name


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_every_setting_of_every_search_is_accepted(path):
    """A value out of range would be found in the middle of a long run otherwise."""
    suite = load_suite(path)
    scenario = next(iter(suite.scenarios.values()))
    task, _ = build(scenario)
    for name, part in suite.strategies.items():
        tried = [{k: v} for k, values in suite.spaces[name].items() for v in values]
        for settings in [suite.fixed[name], *tried]:
            make = strategy_of(Cell(scenario, name, part, settings, 0, "test"))
            assert type(make(task)).__name__ == part["class_path"].rpartition(".")[2]


def test_a_search_begins_with_the_defaults_and_does_not_repeat_itself(suite_file):
    suite = load_suite(suite_file())
    assert suite.settings("fine_tune") == suite.settings("fine_tune")
    first, *drawn = suite.settings("fine_tune")
    assert first == {"epochs": 1, "epoch": "forget"}
    assert sorted(s["lr"] for s in drawn) == [0.003, 0.03]
    assert suite.settings("ssd")[0] == {}
    assert suite.settings("assd") == [{}]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sceanrios": {}}, "`sceanrios` is no key .* did you mean 'scenarios'"),
        ({"seeds": 0}, "`seeds` must be a whole number of at least 1, got 0"),
        ({"search": {"trials": 0}}, "`search.trials` must be"),
        ({"strategies": {}}, "`strategies`: .* names none"),
        ({"strategies": {"no_such": None}}, "no file"),
        ({"scenarios": {"a": {"task": 3}}}, "`scenarios.a.task` must be a part's file"),
    ],
)
def test_says_what_is_wrong_with_a_suite(changed, message, suite_file):
    with pytest.raises(UsageError, match=message):
        load_suite(suite_file(**changed))


def test_the_settings_of_a_cell_reach_the_strategy(suite_file):
    suite = load_suite(suite_file())
    scenario = suite.scenarios["digits"]
    task, _ = build(scenario)
    cell = Cell(scenario, "fine_tune", suite.strategies["fine_tune"], {"lr": 0.5}, 1, "test")
    (group,) = strategy_of(cell)(task).configure_optimizers().param_groups
    assert (group["lr"], group["momentum"]) == (0.5, 0.9)
    cell = Cell(scenario, "ssd", suite.strategies["ssd"], {"alpha": 7.0}, 1, "test")
    assert strategy_of(cell)(task).alpha == 7.0
    other = Cell(scenario, "ssd", suite.strategies["ssd"], {"alpha": 8.0}, 1, "test")
    assert cell.key != other.key


def test_validation_and_reported_data_share_no_sample(suite_file):
    scenario = load_suite(suite_file()).scenarios["digits"]
    seen = {}
    for judge in ("validation", "test"):
        _, data = build(scenario)
        data.setup("validate")
        whole = {n: set(getattr(data, n).positions.tolist()) for n in ("test_set", "holdout_set")}
        judged_on(data, judge)
        seen[judge] = {n: set(getattr(data, n).positions.tolist()) for n in whole}
    for name, positions in whole.items():
        assert not seen["validation"][name] & seen["test"][name]
        assert seen["validation"][name] | seen["test"][name] == positions
        assert len(seen["validation"][name]) == round(len(positions) / 3)


def test_the_best_has_the_smallest_gap_and_failures_are_no_candidates():
    rows = [
        {"AvgGap": 0.3, "settings": {"lr": 1}},
        {"AvgGap": 0.1, "settings": {"lr": 2}},
        {"AvgGap": 0.1, "settings": {"lr": 3}},
        {"error": "diverged", "settings": {"lr": 4}},
    ]
    assert best(rows) == {"lr": 2}
    assert best(rows[3:]) is None


def _record(correct, members, others):
    splits = {s: np.array(c, dtype=float) for s, c in correct.items()}
    scores = {s: np.zeros(len(c)) for s, c in correct.items()}
    scores |= {"forget": np.array(members), "holdout": np.array(others)}
    return ModelRecord("m", correct=splits, scores=scores)


def test_measures_by_hand():
    unlearned = _record(
        {"forget": [1, 0], "retain": [1, 1], "test": [1, 0, 0, 0]}, [3.0, 1.0], [2.0, 0.0]
    )
    gold = _record(
        {"forget": [0, 0], "retain": [1, 1], "test": [1, 1, 0, 0]}, [1.0, 0.0], [1.0, 0.0]
    )
    found = measured(unlearned, gold)
    assert found["UA"] == 0.5
    assert found["RA"] == 1.0
    assert found["TA"] == 0.25
    assert found["MIA"] == 0.75
    assert found["AvgGap"] == pytest.approx((0.5 + 0 + 0.25 + 0.25) / 4)
    assert found["ToW"] == pytest.approx(0.5 * 1 * 0.75)
    unlearned.scores["forget"][0] = math.nan
    with pytest.raises(ArithmeticError, match="diverged"):
        measured(unlearned, gold)


def test_runs_reports_and_goes_on_where_it_was(suite_file, tmp_path, capsys):
    file, page = suite_file(), tmp_path / "out" / "page.md"
    arguments = ["benchmark", "--config", str(file), "--folder", str(tmp_path / "runs"),
                 "--page", str(page)]  # fmt: skip
    assert main([*arguments, "--minutes", "0"]) == 0
    assert "runs are missing" in capsys.readouterr().out
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "left out absent:" in out
    rows = sorted((tmp_path / "runs" / "rows").glob("*.json"))
    assert len(rows) == 3 + 3 + 1 + 3 * 2
    assert f"runs: {len(rows)}, of which 0 failed" in out

    content = [json.loads(p.read_text()) for p in rows]
    ssd = [r for r in content if r["strategy"] == "ssd"]
    chosen = min((r for r in ssd if r["judge"] == "validation"), key=lambda r: r["AvgGap"])
    reported = [r for r in ssd if r["judge"] == "test"]
    assert {r["seed"] for r in reported} == {1, 2}
    assert all(r["settings"] == chosen["settings"] for r in reported)
    gaps = [100 * r["AvgGap"] for r in reported]
    shown = f"{statistics.mean(gaps):.1f} ± {statistics.stdev(gaps):.1f}"
    line = next(x for x in page.read_text().splitlines() if x.startswith("| ssd |"))
    assert shown in line
    assert "Not run: " in page.read_text()
    assert page.with_suffix(".png").stat().st_size > 0
    saved = json.loads(page.with_suffix(".json").read_text())
    assert saved["digits"]["retrained"]["AvgGap"] == [0.0, 0.0]
    assert saved["digits"]["floor"]["AvgGap"][0] > 0

    times = [p.stat().st_mtime_ns for p in rows]
    before = page.read_text()
    assert main(arguments) == 0
    assert [p.stat().st_mtime_ns for p in rows] == times
    assert page.read_text() == before


def test_a_selector_is_held_against_random_at_each_fraction(suite_file, tmp_path):
    file = suite_file(
        seeds=1, selectors=["random", "el2n"], fractions=[0.2, 0.5],
        strategies={"fine_tune": None}, search={"trials": 1},
        scenarios={"digits": SMALL["scenarios"]["digits"]},
    )  # fmt: skip
    page = tmp_path / "page.md"
    arguments = ["--config", str(file), "--folder", str(tmp_path / "runs"), "--page", str(page)]
    assert main(["benchmark", *arguments]) == 0
    text = page.read_text()
    assert "| selector | 20 % | 50 % | time at 20 % | time at 50 % | seconds |" in text
    assert f"`python -m erasus_pl benchmark --config {file} --page {page}`" in text
    assert "| Random |" in text
    assert "| EL2N |" in text


def test_a_strategy_that_fails_is_shown_with_its_reason(suite_file):
    suite = load_suite(suite_file())
    row = {"scenario": "digits", "strategy": "ssd", "judge": "validation", "settings": {},
           "error": "ValueError: no", "selector": None, "fraction": None, "seed": 0}  # fmt: skip
    found = summary(suite, Results(rows=[row]))
    assert found["digits"]["strategies"] == [
        {"strategy": "ssd", "selector": None, "error": "ValueError: no"}
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "no.yaml"], "there is no file 'no.yaml'"),
        ([], "required: --config"),
        (["--config", str(SUITES[0]), "--workers", "0"], "`--workers` must be at least 1, got 0"),
        (["--config", str(SUITES[0]), "--strategies", "sssd"], "did you mean 'ssd'"),
    ],
)
def test_says_what_is_wrong_on_the_command_line(arguments, message, capsys):
    assert main(["benchmark", *arguments]) == 2
    assert message in capsys.readouterr().err
