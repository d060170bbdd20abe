"""The comparison with other packages: what is measured, what is written, and our side end to end.

The peers' environments are not made here: where they are absent, their drivers are not run.
"""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"
PEERS = ("erasus", "supreme", "torchunlearn")


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def problem(tmp_path, load):
    """Two inputs, two classes, networks without a hidden layer: all of it known by hand.

    The original takes the larger input and is right about everything. The retrained model and its
    second take class 0 for whatever they see.
    """
    folder = tmp_path / "problem"
    folder.mkdir()
    about = {"layers": [["flatten"], ["linear", 2, 2]], "classes": 2, "batch_size": 2,
             "seed": 0, "kind": "class", "forget_class": 1, "setting": "made-up"}  # fmt: skip
    (folder / "problem.json").write_text(json.dumps(about))
    x = {"forget": [[0, 1], [0, 2]], "retain": [[1, 0], [2, 0], [3, 0], [0, 3]],
         "test": [[4, 0], [5, 0]], "holdout": [[0, 3], [0, 4]]}  # fmt: skip
    arrays = {f"{s}_x": np.array(v, np.float32) for s, v in x.items()}
    arrays |= {f"{s}_y": np.array(v).argmax(1) for s, v in x.items()}
    np.savez(folder / "data.npz", **arrays)
    identity = {"1.weight": torch.eye(2), "1.bias": torch.zeros(2)}
    always_0 = {"1.weight": torch.zeros(2, 2), "1.bias": torch.tensor([1.0, 0.0])}
    torch.save(identity, folder / "original.pt")
    torch.save(always_0, folder / "retrained.pt")
    torch.save(always_0, folder / "retrained_2.pt")
    return folder


def _write(load, problem, stem, state, **result):
    common = load("_common")
    network = common.build([["flatten"], ["linear", 2, 2]])
    network.load_state_dict(state)
    np.savez(f"{stem}.npz", **common.logits(network, common.read(problem)))
    torch.save(state, f"{stem}.pt")
    written = {"cpu_seconds": [2.0, 0.5], "error": None, "warnings": [], **result}
    Path(f"{stem}.json").write_text(json.dumps(written))


def test_the_gap_is_what_is_counted_by_hand(problem, load):
    sides = load("_sides")
    gold = sides.Gold(problem)
    assert gold.reference == {"UA": 1.0, "RA": 0.75, "TA": 1.0, "AUC": 0.5}
    found = sides.rates(gold.logits["original"], gold.target)
    assert found == {"UA": 0.0, "RA": 1.0, "TA": 1.0, "AUC": 0.0}
    assert gold.gap(gold.logits["original"]) == (1 + 0.25 + 0 + 0.5) / 4
    assert gold.gap(gold.logits["retrained_2"]) == 0


def test_a_side_that_did_nothing_is_found_out(problem, load, tmp_path):
    sides = load("_sides")
    gold, stem = sides.Gold(problem), str(tmp_path / "result")
    _write(load, problem, stem, gold.state, warnings=["NoEffectWarning"])
    same = sides.side(gold, stem)
    assert (same.remark, same.warned, same.cpu) == ("no weight changed", True, 0.5)
    _write(load, problem, stem, {k: 2 * v for k, v in gold.state.items()})
    scaled = sides.side(gold, stem)
    assert (scaled.remark, scaled.warned, scaled.predictions) == ("no prediction changed", False, 0)
    swapped = {**gold.state, "1.weight": gold.state["1.weight"].flip(0)}
    _write(load, problem, stem, swapped)
    assert (sides.side(gold, stem).remark, sides.side(gold, stem).predictions) == ("", 10)
    _write(load, problem, stem, gold.state, error="ValueError: no", cpu_seconds=None)
    assert sides.side(gold, stem) == sides.Side(error="ValueError: no")


def test_nearer_is_nearer_in_every_seed_and_by_more_than_noise(load):
    sides = load("_sides")

    def verdict(theirs, ours, floor=0.01):
        return sides.compare(*([sides.Side(gap=g) for g in x] for x in (theirs, ours)), floor)

    assert verdict([0.1, 0.1], [0.2, 0.3]) == "theirs"
    assert verdict([0.2, 0.3], [0.1, 0.1]) == "ours"
    assert verdict([0.2, 0.1], [0.1, 0.5]) == "even"
    assert verdict([0.1, 0.1], [0.2, 0.3], floor=0.15) == "even"
    assert verdict([0.1, None], [0.2, 0.3]) == "even"
    assert verdict([None], [0.3]) == "even"


def test_the_page_says_what_the_results_say(load):
    pairs, sides, maker = load("_pairs"), load("_sides"), load("_page")
    side, pair = sides.Side, pairs.Pair
    still = side(0.4, 0.3, weights=False, predictions=0)
    broken = side(error="KeyError: 'x' (torchunlearn/a.py:3)")
    lines = [
        maker.Line(pair("erasus", "better", "ssd", 5, lambda _: {}), "a",
                   [side(0.1, 0.2)] * 2, [side(0.2, 0.1)] * 2, [side(0.05, 0.1)] * 2),
        maker.Line(pair("erasus", "worse", "scrub"), "a",
                   [side(0.3, 0.1)] * 2, [side(0.2, 0.2)] * 2, []),
        maker.Line(pair("erasus", "idle", note=" (lr 1)"), "a", [still] * 2, [], []),
        maker.Line(pair("erasus", "at_times", "salun"), "a",
                   [still, side(0.2, 0.3)], [side(0.2, 0.3)] * 2, []),
        maker.Line(pair("torchunlearn", "broken", "ssd"), "a",
                   [broken] * 2, [side(0.2, 0.1)] * 2, []),
    ]  # fmt: skip
    own = {
        "ssd": {"a": [side(0.4, 0.1, weights=False, predictions=0, warned=True)] * 2},
        "jit": {"a": [side(0.4, 0.1, predictions=0)] * 2},
        "salun": {"a": [side(0.01, 0.1), side(0.03, 0.1)]},
    }
    anchors = {"original": {"a": [0.4, 0.4]}, "retrained_2": {"a": [0.01, 0.03]}}
    text = maker.page(lines, own, anchors, {"a": "Setting A"}, ["A fact."])
    rows = {
        cells[0]: cells[1:]
        for line in text.splitlines()
        if line.startswith("| ")
        for cells in [line.strip("| ").split(" | ")]
    }
    assert "- A fact." in text
    assert rows["erasus"][:6] == ["4", "none", "idle (lr 1)", "none", "at_times (1 of 2)",
                                  "1 / 1 / 1"]  # fmt: skip
    assert rows["erasus"][6] == "1 / 0 / 0"
    assert rows["erasus"][-1] == "1"  # the median of 2, 0.5 and 1
    assert rows["torchunlearn"][:2] == ["1", "broken"]
    assert rows["torchunlearn"][-1] == "\N{EN DASH}"
    assert rows["ours, at defaults"][:4] == ["3", "none", "ssd", "jit"]
    better = ["`ssd`", "5", "10.0 ± 0.0", "20.0 ± 0.0", "0.5", "5.0 ± 0.0", "2"]
    assert rows["`better`"][:10] == [*better, "200.0", "100.0", "2"]
    assert rows["`worse`"][4] == "1.5"
    assert rows["`at_times`"][-1] == "theirs: no weight changed in 1 of 2"
    assert "- `broken`: `KeyError: 'x' (torchunlearn/a.py:3)`" in text
    assert "### torchunlearn" not in text  # there is nothing to put in its tables
    (beaten,) = [line for line in text.splitlines() if line.startswith("- Setting A")]
    assert beaten.endswith("`ssd` 20.0 ± 0.0; at their values 5.0 ± 0.0, the other way round")
    assert rows["`ssd`"][-1].endswith("‡")
    assert rows["`jit`"][-1].endswith("†")
    assert rows["`salun`"][-1] == "2.0 ± 1.4"
    assert "none ended without saying so" in text


FAKE = """
import json, os, pathlib, sys
jobs, started = map(pathlib.Path, sys.argv[1:])
assert not pathlib.Path("broken").exists(), "cannot start"
for job in json.loads(jobs.read_text()):
    started.write_text(job["out"])
    if job["method"] == "killer":
        os._exit(3)
    pathlib.Path(job["out"] + ".json").write_text(json.dumps({"error": None}))
"""


def test_a_run_that_kills_its_process_costs_no_other_run(load, monkeypatch, tmp_path):
    runs = load("_runs")
    monkeypatch.setattr(runs, "HERE", tmp_path)
    (tmp_path / "drive_ours.py").write_text(FAKE)
    specs = [runs.job("ours", tmp_path, m, 1, {}, tmp_path, "") for m in ("a", "killer", "b")]

    def errors():
        return [json.loads(Path(s["out"] + ".json").read_text())["error"] for s in specs]

    (tmp_path / "broken").touch()
    runs.drive("ours", specs, tmp_path)
    assert errors() == ["the driver did not start: AssertionError: cannot start"] * 3
    (tmp_path / "broken").unlink()
    runs.drive("ours", specs, tmp_path)
    assert errors() == [None, "the process ended with status 3", None]
    (tmp_path / "drive_ours.py").unlink()  # nothing is left to do, so it is not missed
    runs.drive("ours", specs, tmp_path)
    assert errors() == [None, "the process ended with status 3", None]


def test_ours_from_training_to_the_page_and_again_from_what_was_kept(load, monkeypatch, tmp_path):
    run, problems, runs = load("run"), load("_problems"), load("_runs")
    short = dataclasses.replace(problems.SETTINGS["digits-class"], epochs=3)
    monkeypatch.setitem(problems.SETTINGS, "digits-class", short)
    monkeypatch.setattr(run, "_own", lambda: ["random_label"])
    options = ["--settings", "digits-class", "--seeds", "0", "--kept", str(tmp_path / "kept"),
               "--page", str(tmp_path / "page.md"), "--peers"]  # fmt: skip
    assert run.main(options) == 0
    page = (tmp_path / "page.md").read_text("utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| `random_label` |")]
    assert 0 <= float(row.split("|")[2].split("±")[0]) < 30
    (result,) = (tmp_path / "kept/results").glob("*.json")
    written = json.loads(result.read_text())
    assert written["error"] is None
    assert len(written["cpu_seconds"]) == 2
    assert min(written["cpu_seconds"]) > 0
    monkeypatch.setattr(runs, "subprocess", None)  # whoever drives anything again fails
    assert run.main(options) == 0
    assert (tmp_path / "page.md").read_text("utf-8") == page


@pytest.mark.parametrize("peer", PEERS)
def test_a_peers_driver(peer, load, problem, tmp_path):
    runs, pairs = load("_runs"), load("_pairs")
    if not (FOLDER.parents[1] / ".peers" / peer / "made").is_file():
        pytest.skip(f"there is no environment of {peer}; benchmarks/peers/run.py makes it")
    pair = next(p for p in pairs.PAIRS if p.peer == peer)
    spec = runs.job(peer, problem, pair.method, pair.epochs, pair.options, tmp_path, "")
    runs.drive(peer, [spec], tmp_path)
    side = load("_sides").side(load("_sides").Gold(problem), spec["out"])
    if peer == "torchunlearn":
        assert "No module named 'torchunlearn.unlearn.trainers'" in side.error
    else:
        assert side.error is None
        assert side.weights


def test_every_pair_names_what_there_is(load):
    pairs = load("_pairs")
    conf = FOLDER.parents[1] / "conf/strategy"
    about = {"kind": "random", "batch_size": 64}
    for pair in pairs.PAIRS:
        assert pair.peer in PEERS
        if pair.ours:
            known = yaml.safe_load((conf / f"{pair.ours}.yaml").read_text())["init_args"]
            assert (pair.alike(about) if pair.alike else {}).keys() <= known.keys()
    assert pairs.LEFT_OUT.keys() == set(PEERS)


@pytest.mark.parametrize("peer", PEERS)
def test_environments_are_pinned_whole_and_without_torchvision(peer, load):
    runs = load("_runs")
    lines = [x for x in runs._requirements(peer).read_text().splitlines() if x[:1] != "#"]
    assert all("==" in line for line in lines)
    pins = runs.pins(peer)
    assert len(pins) == len(lines)
    assert pins["torch"] == "2.13.0"
    assert "torchvision" not in pins


def test_the_stand_in_for_torchvision_raises_where_it_is_used():
    program = (
        "import _absent; _absent.install()\n"
        "from torchvision.transforms import v2\n"
        "from torchvision import datasets, transforms\n"
        "class Mine(datasets.ImageFolder): pass\n"
        "assert v2.Compose([abs, str])(-1) == '1'\n"
        "transforms.Resize(3)(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=FOLDER, capture_output=True,
                          text=True)  # fmt: skip
    assert done.stderr.splitlines()[-1] == (
        "RuntimeError: torchvision is not installed: Resize was called"
    )
