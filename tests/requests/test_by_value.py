import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasus_pl.requests import ForgetAttribute, ForgetClass, ForgetGroup, ForgetRequestError

INTS = [0, 1, 3, 3, 10]


@pytest.mark.parametrize(
    "column",
    [
        np.array(INTS, np.uint8),
        np.array(INTS, ">i4"),
        np.array(INTS, np.uint64),
        np.array(INTS, np.float16),
        np.array(INTS).astype(str),
        np.array(INTS).astype("S"),
        np.array(INTS, dtype=object),
        np.array([str(i) for i in INTS], dtype=object),
    ],
    ids=lambda column: column.dtype.str,
)
@pytest.mark.parametrize("wanted", [3, "3", [3], ["3"], np.array([3])], ids=repr)
def test_numbers_and_text_name_the_same_value(column, wanted):
    assert ForgetClass(wanted).resolve({"target": column}, 5).tolist() == [2, 3]


def test_text_keeps_leading_zeros_apart():
    column = np.array(["01", "1", "2"])
    assert ForgetGroup("01").resolve({"user": column}, 3).tolist() == [0]
    assert ForgetGroup("1").resolve({"user": column}, 3).tolist() == [1]
    assert ForgetGroup(1).resolve({"user": column}, 3).tolist() == [1]
    assert ForgetGroup("-0").ids == ["-0"]


@pytest.mark.parametrize("wanted", [True, "true", "True", 1, "1"])
def test_boolean_columns(wanted):
    column = np.array([True, False, True])
    assert ForgetAttribute("flag", wanted).resolve({"flag": column}, 3).tolist() == [0, 2]


def test_large_integers_are_not_rounded():
    column = np.array([2**53, 2**53 + 1, 2**63], np.uint64)
    assert ForgetGroup(2**53 + 1).resolve({"user": column}, 3).tolist() == [1]
    assert ForgetGroup(2**63).resolve({"user": column}, 3).tolist() == [2]


def test_float_columns_compare_as_they_are_stored():
    column = np.array([0.1, 0.2, np.nan], np.float32)
    assert ForgetAttribute("x", 0.1).resolve({"x": column}, 3).tolist() == [0]
    assert ForgetAttribute("x", "2e-1").resolve({"x": column}, 3).tolist() == [1]


def test_missing_entries_match_nothing():
    column = np.array(["a", None, float("nan"), b"b"], dtype=object)
    assert ForgetAttribute("x", ["a", "b"]).resolve({"x": column}, 4).tolist() == [0, 3]
    with pytest.raises(ForgetRequestError, match="got 'None'; valid values: a, b"):
        ForgetAttribute("x", "None").resolve({"x": column}, 4)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            ForgetClass(7),
            "`classes` must be among the values of column `target`, got 7; "
            "valid classes: 0, 1, 3, 10",
        ),
        (ForgetClass([3, "cat"]), "got 'cat'; valid classes: 0, 1, 3, 10"),
        (ForgetClass(-1), "got -1; valid classes: 0, 1, 3, 10"),
        (ForgetClass(300), "got 300; valid classes: 0, 1, 3, 10"),
        (ForgetClass("3_0"), "got '3_0'; valid classes: 0, 1, 3, 10"),
        (ForgetClass("9" * 5000), "valid classes: 0, 1, 3, 10"),
        (ForgetAttribute("target", 3.5), "got 3.5; valid values: 0, 1, 3, 10"),
        (ForgetAttribute("target", "inf"), "got 'inf'; valid values: 0, 1, 3, 10"),
        (
            ForgetGroup("bop"),
            "`ids` must be among the values of column `user`, got 'bop'; "
            "valid ids: ann, bob; did you mean bob?",
        ),
        (ForgetAttribute("flag", 2), "got 2; valid values: False, True"),
        (ForgetGroup(5, "many"), "got 5; valid ids: 10, 11, 12"),
        (ForgetGroup(5, "many"), "19, … 109 (100 in all)"),
        (ForgetClass(0, "when"), "must hold numbers, booleans or text, got datetime64[D]; use F"),
        (ForgetClass(0, "complex"), "must hold numbers, booleans or text, got complex128"),
        (ForgetClass([0, 1, 3, 10]), "`classes` forgets all 100 training samples (every sample"),
    ],
    ids=str,
)
def test_what_cannot_be_found_is_refused_with_what_there_is(request_, message):
    columns = {
        "target": np.tile(np.array(INTS, np.uint8), 20),
        "user": np.repeat(["ann", "bob"], 50),
        "flag": np.repeat([True, False], 50),
        "many": np.arange(10, 110),
        "when": np.zeros(100, "datetime64[D]"),
        "complex": np.zeros(100, complex),
    }
    with pytest.raises(ForgetRequestError) as caught:
        request_.resolve(columns, 100)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ForgetClass([]), "`classes` must name at least one value, got an empty list"),
        (lambda: ForgetClass([3, "3"]), "`classes` must name each value once, got 3 twice"),
        (lambda: ForgetGroup(["a", "a"]), "`ids` must name each value once, got 'a' twice"),
        (lambda: ForgetAttribute("x", float("nan")), "`values` must hold text, finite numbers or"),
        (lambda: ForgetAttribute("x", [1, None]), "`values` must hold text.*got None"),
        (lambda: ForgetGroup(10**400), "`ids` must hold text, finite numbers"),
        (lambda: ForgetGroup(b"ann"), "`ids` must hold text.*got b'ann'"),
    ],
)
def test_bad_arguments_are_refused_when_built(build, message):
    with pytest.raises(ForgetRequestError, match=message):
        build()


def test_descriptions():
    assert ForgetClass("cat").describe() == "every sample of class cat"
    assert ForgetClass(1, "label").describe() == "every sample of class 1 (column `label`)"
    assert ForgetClass(range(9)).describe() == "every sample of classes 0, 1, 2, 3 and 5 more"


@given(
    column=st.lists(st.integers(-5, 5), min_size=2, max_size=30),
    wanted=st.sets(st.integers(-5, 5), min_size=1),
    dtype=st.sampled_from([np.int8, np.int64, np.float32, str, object]),
)
def test_matches_agrees_with_brute_force(column, wanted, dtype):
    values = np.array(column).astype(dtype)
    mask = ForgetAttribute("x", list(wanted)).matches({"x": values}, len(column))
    assert mask.dtype == np.bool_
    assert mask.tolist() == [item in wanted for item in column]
