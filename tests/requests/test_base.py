import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from erasus_pl.requests import (
    ForgetAttribute,
    ForgetClass,
    ForgetGroup,
    ForgetIndices,
    ForgetRandom,
    ForgetRequest,
    ForgetRequestError,
    ForgetTimeWindow,
)

pytestmark = pytest.mark.smoke

COLUMNS = {
    "target": np.array([0, 1, 2, 0, 1, 2]),
    "user": np.array(["ann", "bob", "ann", "cid", "bob", "dan"]),
    "timestamp": np.arange("2024-01-01", "2024-01-07", dtype="datetime64[D]"),
}


class Given(ForgetRequest):
    field = "given"

    def __init__(self, given=None):
        self.given = given

    def select(self, columns, n):
        return np.asarray(self.given)

    def describe(self):
        return "what was given"


def test_import_loads_nothing_heavy():
    code = (
        "import sys, erasus_pl.requests as r; r.ForgetClass(3);"
        "print(*({'torch', 'lightning', 'pandas', 'jsonargparse', 'scipy'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([], "`given` selects no sample of 6 (what was given); widen it"),
        (
            [0, 6, 7],
            "`given` must hold positions in 0..5, got 6 (entry 2 of 3); remove it or correct it",
        ),
        ([-1], "`given` must hold positions in 0..5, got -1 (entry 1 of 1); remove it"),
        (
            [4, 2, 4],
            "`given` must name each position once, got 4, 2 times (at entries 1, 3); remove",
        ),
        (
            range(6),
            "`given` forgets all 6 training samples (what was given); leave at least one to",
        ),
        ([0.5], "`given` must give whole numbers of shape (k,), got float64 of shape (1,)"),
        ([[0]], "`given` must give whole numbers of shape (k,), got int64 of shape (1, 1)"),
        ([True], "`given` must give whole numbers of shape (k,), got bool of shape (1,)"),
        (np.array([2**64 - 1], np.uint64), "`given` must hold positions in 0..5, got 1844674"),
    ],
)
def test_every_request_is_checked_the_same_way(positions, message):
    with pytest.raises(ForgetRequestError) as caught:
        Given(positions).resolve({}, 6)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_empty_training_set_is_refused():
    with pytest.raises(ForgetRequestError, match="at least 1 sample, got 0"):
        Given([0]).resolve({}, 0)


def test_unknown_column_lists_the_columns_there_are():
    with pytest.raises(ForgetRequestError) as caught:
        ForgetClass(1, column="targte").resolve(COLUMNS, 6)
    assert str(caught.value) == (
        "`column` must name a column of the data, got 'targte'; "
        "there are: target, timestamp, user; did you mean target?"
    )
    with pytest.raises(ForgetRequestError, match="the data has none"):
        ForgetClass(1).resolve({}, 6)


def test_column_of_another_length_is_refused():
    with pytest.raises(ForgetRequestError, match=r"`target` must have shape \(7,\).*got \(6,\)"):
        ForgetClass(1).resolve(COLUMNS, 7)
    with pytest.raises(ForgetRequestError, match=r"must have shape \(6,\).*got \(6, 2\)"):
        ForgetClass(1).resolve({"target": np.eye(6)[:, :2]}, 6)


@given(n=st.integers(2, 50), data=st.data())
def test_forget_and_retain_split_the_training_set(n, data):
    columns = {
        "target": np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))),
        "timestamp": np.array(
            data.draw(st.lists(st.floats(allow_nan=True), min_size=n, max_size=n))
        ),
    }
    request = data.draw(
        st.one_of(
            st.builds(ForgetClass, st.integers(0, 3)),
            st.builds(ForgetAttribute, st.just("target"), st.sets(st.integers(0, 3), min_size=1)),
            st.builds(ForgetGroup, st.integers(0, 3), st.just("target")),
            st.builds(ForgetRandom, st.floats(0.01, 0.99), seed=st.integers(0, 5)),
            st.builds(ForgetRandom, count=st.integers(1, 60), seed=st.integers(0, 5)),
            st.builds(ForgetTimeWindow, start=st.floats(-10, 10)),
            st.builds(ForgetIndices, st.lists(st.integers(-1, 50), max_size=20)),
        )
    )
    try:
        forget = request.resolve(columns, n)
    except ForgetRequestError:
        return
    assert forget.dtype == np.int64
    assert (np.diff(forget) > 0).all()
    assert forget[0] >= 0
    assert forget[-1] < n
    assert 0 < forget.size < n
    retain = np.setdiff1d(np.arange(n), forget)
    assert sorted([*forget, *retain]) == list(range(n))
    mask = request.matches(columns, n)
    if mask is not None:
        np.testing.assert_array_equal(np.flatnonzero(mask), forget)


def test_predicates_apply_to_other_data_and_position_requests_do_not():
    held_out = {"target": np.array([1, 9, 1]), "user": np.array(["eve", "bob", "bob"])}
    assert ForgetClass(1).matches(held_out, 3).tolist() == [True, False, True]
    assert ForgetClass(7).matches(held_out, 3).tolist() == [False] * 3
    assert ForgetGroup("bob").matches(held_out, 3).tolist() == [False, True, True]
    assert ForgetTimeWindow(start="2024-01-01").matches(held_out, 3) is None
    assert ForgetIndices([0]).matches(held_out, 3) is None
    assert ForgetRandom(0.5).matches(held_out, 3) is None
    assert ForgetClass(1).matches({"target": np.array([])}, 0).shape == (0,)


REQUESTS = {
    "ForgetClass": ({"classes": [3, 5]}, "every sample of classes 3 and 5"),
    "ForgetAttribute": (
        {"column": "colour", "values": ["red", True, 2.5]},
        "every sample whose `colour` is True, 2.5 or red",
    ),
    "ForgetGroup": ({"ids": [17, "ann"]}, "everything of user 17 and ann"),
    "ForgetIndices": ({"indices": [4, 1]}, "the samples at 1 and 4"),
    "ForgetRandom": (
        {"fraction": 0.05, "seed": 3},
        "5% of the training samples, drawn at random (seed 3)",
    ),
    "ForgetTimeWindow": (
        {"start": "2024-01-01", "end": "2024-02-01"},
        "every sample with `timestamp` from 2024-01-01 up to but not including 2024-02-01",
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_yaml_builds_each_request_and_the_record_rebuilds_it(name, tmp_path):
    arguments, description = REQUESTS[name]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ForgetRequest, "request")
    parser.add_argument("--config", action="config")
    config = tmp_path / "request.yaml"
    spec = {"class_path": f"erasus_pl.requests.{name}", "init_args": arguments}
    config.write_text(f"request: {spec!r}\n".replace("True", "true"))
    request = parser.instantiate(parser.parse_args([f"--config={config}"])).request
    assert type(request).__name__ == name
    assert request.describe() == description
    record = request.to_dict()
    assert record["class_path"] == f"erasus_pl.requests.{name}"
    again = parser.instantiate(parser.parse_object({"request": record})).request
    assert again.to_dict() == record
    assert again.difference(record) == []
    assert repr(again) == f"<{name}: {description}>"


def test_short_names_and_overrides_work_on_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ForgetRequest, "request")
    args = ["--request=ForgetClass", "--request.classes=3", "--request.column=label"]
    request = parser.instantiate(parser.parse_args(args)).request
    assert request.to_dict() == ForgetClass(3, column="label").to_dict()


def test_difference_names_each_changed_field():
    record = ForgetClass([3, 5]).to_dict()
    assert ForgetClass(["5", "3"]).difference(record) == []
    assert ForgetClass(3, column="label").difference(record) == [
        "classes was [3, 5], is now [3]",
        "column was 'target', is now 'label'",
    ]
    assert ForgetRandom(count=2).difference(record) == [
        "request was ForgetClass(classes=[3, 5], column='target'), "
        "is now ForgetRandom(fraction=None, count=2, seed=0)"
    ]
    assert ForgetIndices([5, 1]).difference(ForgetIndices([1, 5]).to_dict()) == []
    long = ForgetIndices(list(range(1000))).difference(ForgetIndices([1]).to_dict())
    assert long == ["indices was [1], is now [0, 1, 2, 3, 4, …] (1,000 values)"]
    assert ForgetClass(3).difference({**record, "init_args": {"classes": [3], "old": 1}}) == [
        "column was absent, is now 'target'",
        "old was 1, is now absent",
    ]


def test_own_requests_are_recorded_under_their_own_path():
    record = Given([np.int64(3), (1, None)]).to_dict()
    assert record["class_path"] == f"{__name__}.Given"
    assert record["init_args"] == {"given": [3, [1, None]]}
    assert Given({"a": Path("b")}).to_dict()["init_args"] == {"given": {"a": "b"}}
    with pytest.raises(ForgetRequestError, match=r"`Given.given` must be numbers.*got object"):
        Given(object()).to_dict()
