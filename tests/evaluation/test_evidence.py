import datetime
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasus_pl.evaluation import _store, report
from erasus_pl.evaluation.evidence import Evidence, Measure, ModelRecord, Verdict

_FILES = {"evidence.npz", "report.html", "report.json", "report.md"}


def _evidence(**changes):
    record = ModelRecord(
        "original",
        1.5,
        scores={"forget": np.array([1.0, np.inf, np.nan])},
        losses={"forget": np.array([0.5, np.inf, np.nan], dtype=np.float32)},
        correct={"forget": np.array([1.0, 0.0, 0.5])},
        kl_to_retrained={"forget": None, "test": math.inf},
    )
    fields = {
        "run": {"name": "a run", "seed": 0, "started": datetime.datetime(2026, 3, 2, 10, 15)},
        "manifest": {"counts": {"forget": 3, "train": 30}, "path": Path("data")},
        "coreset": {"size": np.int64(2), "of": 3, "selector": "Full", "seconds": 0.1},
        "models": {"original": record},
        "measures": {"original": [Measure("attack AUC", math.nan, "How well.", -math.inf, None)]},
        "verdict": Verdict("inconclusive", "Cannot tell.", ["Too few."], {"p": math.nan}),
        "curves": {"loss": [(0, 1.0), (1, math.inf)]},
        "notes": ["One."],
    }
    return Evidence(**(fields | changes))


def _refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_json_is_strict_and_comes_back_whole():
    evidence = _evidence()
    text = evidence.to_json()
    json.loads(text, parse_constant=_refuse)
    back = Evidence.from_json(text)
    assert back.to_json().replace('"samples": {}', "") == text.replace(
        '"samples": {\n    "forget": 3\n   }', ""
    )
    assert back.models["original"].kl_to_retrained == {"forget": None, "test": math.inf}
    measure = back.measures["original"][0]
    assert math.isnan(measure.value)
    assert (measure.low, measure.high) == (-math.inf, None)
    assert math.isnan(back.verdict.statistics["p"])
    assert back.curves == {"loss": [(0, 1.0), (1, math.inf)]}
    assert back.run["started"] == "2026-03-02T10:15:00"


@settings(max_examples=50, deadline=None)
@given(
    st.floats(),
    st.one_of(st.none(), st.floats()),
    st.text(),
    st.dictionaries(st.text(), st.floats()),
    st.lists(st.tuples(st.integers(0, 10**9), st.floats())),
)
def test_any_number_and_text_survives_json(value, low, text, statistics, points):
    evidence = _evidence(
        measures={"original": [Measure(text, value, text, low, None)]},
        verdict=Verdict("forgotten", text, [text], statistics),
        curves={text: points},
        notes=[text],
    )
    back = Evidence.from_json(evidence.to_json())
    assert repr(back.measures) == repr(evidence.measures)
    assert repr(back.verdict) == repr(evidence.verdict)
    assert repr(back.curves) == repr(evidence.curves)
    assert back.notes == evidence.notes


def test_write_and_read_keep_every_sample(tmp_path):
    evidence = _evidence()
    assert evidence.write(tmp_path / "run") == tmp_path / "run" / "report.html"
    assert set(_contents(tmp_path / "run")) == _FILES
    back = Evidence.read(tmp_path / "run")
    assert back.to_json() == evidence.to_json()
    for kind in ("scores", "losses", "correct"):
        ours = getattr(evidence.models["original"], kind)["forget"]
        theirs = getattr(back.models["original"], kind)["forget"]
        assert theirs.dtype == ours.dtype
        np.testing.assert_array_equal(theirs, ours)


def test_the_same_evidence_gives_the_same_bytes(tmp_path):
    _evidence().write(tmp_path / "a")
    _evidence().write(tmp_path / "b")
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_full_disk_leaves_the_old_report(tmp_path, monkeypatch, after):
    _evidence().write(tmp_path)
    before = _contents(tmp_path)
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > after:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(_store.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        _evidence(notes=["another"]).write(tmp_path)
    assert _contents(tmp_path) == before


def test_a_renderer_that_fails_leaves_the_old_report(tmp_path, monkeypatch):
    _evidence().write(tmp_path)
    before = _contents(tmp_path)

    def broken(evidence):
        raise RuntimeError("cannot draw")

    monkeypatch.setattr(report, "to_html", broken)
    with pytest.raises(RuntimeError, match="cannot draw"):
        _evidence(notes=["another"]).write(tmp_path)
    assert _contents(tmp_path) == before


def test_the_files_obey_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        _evidence().write(tmp_path)
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_arrays_of_another_report_are_refused(tmp_path):
    _evidence().write(tmp_path / "a")
    other = _evidence()
    other.models["original"].losses["forget"] = np.zeros(3)
    other.write(tmp_path / "b")
    (tmp_path / "b" / "evidence.npz").replace(tmp_path / "a" / "evidence.npz")
    with pytest.raises(ValueError, match=r"evidence\.npz does not belong to the report\.json"):
        Evidence.read(tmp_path / "a")


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "something else"}'])
def test_what_is_no_evidence_is_refused(text):
    with pytest.raises(ValueError, match="not an evidence document"):
        Evidence.from_json(text)


def test_an_object_without_a_json_form_is_named():
    with pytest.raises(TypeError, match=r"`evidence\.run\.model\[0\]` is a object"):
        _evidence(run={"model": [object()]}).to_json()


def test_importing_evidence_is_light():
    code = (
        "import sys, erasus_pl.evaluation.evidence, erasus_pl.evaluation.terminal\n"
        "heavy = {'torch', 'lightning', 'matplotlib', 'rich', 'scipy', 'sklearn'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
