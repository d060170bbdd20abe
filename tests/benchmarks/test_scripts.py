"""Every script in benchmarks/ keeps the convention; how fast it finds things is not tested here."""

import dataclasses
import importlib
import json
import math
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_"))
AREAS = {
    "foundation", "strategies", "evaluation", "scale", "federated", "graph-rl", "certified", "llm",
}  # fmt: skip


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def _last_line(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def _check(line, module):
    assert line["area"] == module.area
    assert line["name"] == module.name
    assert line["targets"].keys() == {t.figure for t in module.TARGETS}
    for figure, target in line["targets"].items():
        value = line["figures"][figure]
        held = value >= target["limit"] if target["at_least"] else value <= target["limit"]
        assert target["ok"] == held
    assert line["ok"] == all(t["ok"] for t in line["targets"].values())


@pytest.mark.parametrize("script", SCRIPTS)
def test_declares_what_it_is(script, load, capsys):
    module = load(script)
    assert module.area in AREAS
    assert module.name == script
    assert module.TARGETS
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--quick" in shown
    assert module.__doc__.splitlines()[0] in shown


def test_overhead(load, monkeypatch, capsys):
    module = load("overhead")
    tiny = {
        key: dataclasses.replace(case, steps=7, burst=2, batch=4, network_args=args)
        for (key, case), args in zip(
            module.cases(True).items(),
            ({"inputs": 64}, {"width": 2}, {"inputs": 64}, {"inputs": 64}),
            strict=True,
        )
    }
    monkeypatch.setattr(module, "cases", lambda quick: tiny)
    status = module.main(["--quick", "--rounds", "2"])
    line = _last_line(capsys)
    _check(line, module)
    assert status == (0 if line["ok"] else 1)
    for key in tiny:
        assert line["figures"][f"{key}_weights_differ_by"] <= 1e-6
        assert line["figures"][f"{key}_fit_cpu_ms"]["n"] == 4


def test_overhead_stops_where_the_sides_differ(load, monkeypatch):
    module = load("overhead")
    case = dataclasses.replace(module.cases(True)["mlp"], steps=7, burst=2, batch=4)
    another = dataclasses.replace(case, strategy="NegGradPlus")
    bare = module.bare
    monkeypatch.setattr(module, "cases", lambda quick: {"mlp_paired": case})
    monkeypatch.setattr(module, "bare", lambda case, network: bare(another, network))
    with pytest.raises(SystemExit, match="the two sides differ"):
        module.main(["--quick", "--rounds", "1"])


def test_a_race_splits_the_clocks_between_the_sides(load, monkeypatch):
    parts = load("_parts")
    now = {"process": 0.0, "thread": 0.0, "wall": 0.0}
    monkeypatch.setattr(parts, "clock", lambda: (now["process"], now["wall"]))
    monkeypatch.setattr(parts.time, "thread_time", lambda: now["thread"])
    monkeypatch.setattr(parts.time, "perf_counter", lambda: now["wall"])

    def spend(own, threads, wall):
        now["thread"] += own
        now["process"] += own + threads
        now["wall"] += wall

    def rival():
        while True:
            spend(1.0, 0.5, 2.0)
            yield

    race = parts.Race()
    race.start(rival(), burst=3, forwards=2)
    for _ in range(7):
        race.forward()
        race.forward()
        spend(4.0, 0.0, 5.0)
    assert race.steps == 7
    assert race.bursts(skip=0) == [((4.5, 5.0), (1.0, 2.0))] * 2
    assert race.bursts(skip=1) == [((4.5, 5.0), (1.0, 2.0))]


def test_start_up(load, monkeypatch, capsys):
    module = load("start_up")
    nothing = {key: ["-c", "pass"] for key in ("python", "import_lightning", "fit_help")}
    monkeypatch.setattr(module, "COMMANDS", {**nothing, "help": ["-m", "erasus_pl", "--help"]})
    module.main(["--quick", "--rounds", "2"])
    line = _last_line(capsys)
    _check(line, module)
    assert line["figures"]["help_cpu_s"]["median"] > 0


def test_start_up_stops_where_a_command_fails(load):
    module = load("start_up")
    with pytest.raises(SystemExit, match="bogus failed"):
        module.start(["-m", "erasus_pl", "bogus"])()


def test_selectors_speed(load, monkeypatch, capsys):
    module = load("selectors_speed")
    monkeypatch.setattr(module, "N", 150)
    monkeypatch.setattr(module, "K", 15)
    status = module.main(["--quick"])
    line = _last_line(capsys)
    _check(line, module)
    assert status == (0 if line["ok"] else 1)
    figures = line["figures"]
    assert figures["grad_norm_same_picks"] == figures["el2n_same_picks"] == 1
    assert figures["influence_spearman_with_exact"] >= 0.99


def test_second_order_speed(load, monkeypatch, capsys):
    module = load("second_order_speed")
    monkeypatch.setattr(module, "SAMPLES", 200)
    monkeypatch.setattr(module, "BATCH", 16)
    monkeypatch.setattr(module, "SIZES", (150, 300))
    status = module.main(["--quick"])
    line = _last_line(capsys)
    _check(line, module)
    assert status == (0 if line["ok"] else 1)
    assert line["figures"]["fisher_differs_by"] < 1e-4
    assert line["figures"]["mlp_method"] == line["figures"]["cnn_method"] == "ghost"


def test_verdict_errors(load, monkeypatch, capsys):
    module = load("verdict_errors")
    requests = ("class 1", "mislabelled 5 %", "few, noise")
    tiny = module.Setting((((16,), 8, 1e-2, 1),), requests, originals=2, retrained=3)
    monkeypatch.setattr(module, "QUICK", tiny)
    monkeypatch.setattr(module, "CHECKED", 2)
    status = module.main(["--quick"])
    line = _last_line(capsys)
    _check(line, module)
    assert status == (0 if line["ok"] else 1)
    figures = line["figures"]
    assert figures["combinations"] == 3 * 2 * 3
    assert figures["class_conclusive"] == 1
    assert figures["original_judged"] == figures["conclusive"] == figures["retrained_judged"]
    assert figures["checked_with_verdict"] > 0
    assert figures["differs_from_verdict"] == 0
    assert figures["weaker_asked"] == 2 * (2 + 3)


def test_verdict_errors_counts_what_is_wrong(load, monkeypatch):
    module, models = load("verdict_errors"), load("_study")
    monkeypatch.setattr(module, "CHECKED", 1)
    network = models.Network((16,), 8, 1e-2, 1)
    found = models.train_for("class 1", network, (2, 3), {})
    right = module.judge(found, random_draw=False)
    assert right["other wrong"] == right["retrained wrong"] == 0
    whole, without = found.originals[1], found.retrained[2]
    found.originals[1], found.retrained[2] = without, whole
    wrong = module.judge(found, random_draw=False)
    assert wrong["other wrong"] > 0
    assert wrong["retrained wrong"] > 0
    assert wrong["differs"] == 0


def test_the_study_splits_as_it_says(load):
    study = load("_study")
    for requests, _ in study.REGIMES.values():
        for request in requests:
            parts = study.split(request, seed=3)
            sizes = {k: len(y) for k, (_, y) in parts.items()}
            trained = study.FEW if request.startswith("few") else study.TRAINED
            assert sizes["forget"] + sizes["retain"] == trained, request
            assert sizes["test"] + sizes["holdout"] == 600, request
            assert min(sizes.values()) >= 8, (request, sizes)
            if request.startswith("class"):
                label = int(request[-1])
                assert (parts["forget"][1] == label).all()
                assert (parts["holdout"][1] == label).all()
                assert (parts["retain"][1] != label).all()
                assert (parts["test"][1] != label).all()


def test_summary_and_targets(load):
    measure = load("_measure")
    assert measure.summary([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3.0, "low": 2.0, "high": 4.0, "n": 5,
    }  # fmt: skip
    assert measure.summary([0.123456]) == {
        "median": 0.1235, "low": 0.1235, "high": 0.1235, "n": 1,
    }  # fmt: skip
    assert measure.Target("a", 2.0).holds(2.0)
    assert not measure.Target("a", 2.0).holds(2.1)
    assert measure.Target("a", 2.0, at_least=True).holds(2.1)
    assert not measure.Target("a", 2.0).holds(None)
    assert not measure.Target("a", 2.0).holds(math.nan)


def test_interleaving_turns_round_and_ends_in_time(load, monkeypatch):
    measure = load("_measure")
    ran, now = [], [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def side(name):
        def once():
            ran.append(name)
            now[0] += 1.0
            return 1.0, 2.0

        return once

    taken = measure.interleave({"a": side("a"), "b": side("b")}, repeats=9, seconds=6.5)
    assert ran == ["a", "b", "b", "a", "a", "b"]
    assert taken["a"] == {"cpu": [1.0] * 3, "wall": [2.0] * 3}


def test_a_missed_target_is_said_and_is_no_success(load, capsys):
    measure = load("_measure")
    assert measure.report("foundation", "x", {"ratio": 3.0}, [measure.Target("ratio", 2.0)]) == 1
    assert "RED ratio = 3.0" in (out := capsys.readouterr().out)
    assert json.loads(out.splitlines()[-1])["ok"] is False


@pytest.mark.parametrize("useful", [True, False])
def test_learn_selector(load, tmp_path, capsys, useful):
    """A table in which one feature says which of two selectors is right, and one in which none."""
    module = load("learn_selector")
    learned = importlib.import_module("erasus_pl.selectors.learned")
    head = ("dataset", "request", "strategy", "selector", "fraction", "seed", "AvgGap", "seconds")
    lines = [",".join([*head, *learned.FEATURES])]
    for dataset in "abcd":
        for seed in range(6):
            share = (seed + 0.5) / 6
            values = [str(share) if f == "concentration" else "" for f in learned.FEATURES]
            for selector, side in (("Random", 0), ("EL2N", -1), ("Moderate", 1)):
                gap = 0.3 + 0.2 * side * (share - 0.5) * useful
                row = [dataset, "class", "SSD", selector, "0.1", str(seed), str(gap), "1", *values]
                lines.append(",".join(row))
    path, model = tmp_path / "runs.csv", tmp_path / "model.json"
    path.write_text("\n".join(lines))
    status = module.main(["--quick", "--table", str(path), "--model", str(model)])
    line = _last_line(capsys)
    _check(line, module)
    assert status == 0
    assert line["figures"]["runs"] == 72
    assert line["figures"]["learned_beats_average"] == useful
    assert json.loads(model.read_text())["evaluation"]["learned_beats_random"] == useful
    assert learned.Learned(model=str(model)).learnt is not None


def test_learn_selector_says_what_a_table_lacks(load, tmp_path, capsys):
    module = load("learn_selector")
    path = tmp_path / "runs.csv"
    for content, said in ((None, "there is no file"), ("dataset\n", "no rows"),
                          ("dataset\na\n", "lacks the columns")):  # fmt: skip
        if content is not None:
            path.write_text(content)
        with pytest.raises(SystemExit):
            module.main(["--table", str(path), "--model", str(tmp_path / "model.json")])
        assert said in capsys.readouterr().err
    assert not (tmp_path / "model.json").exists()
