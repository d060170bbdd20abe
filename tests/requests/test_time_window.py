from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasus_pl.requests import ForgetRequestError, ForgetTimeWindow

DAYS = np.arange("2024-01-01", "2024-01-07", dtype="datetime64[D]")


def inside(values, start=None, end=None):
    values = np.asarray(values)
    mask = ForgetTimeWindow(start=start, end=end).matches({"timestamp": values}, values.size)
    return np.flatnonzero(mask).tolist()


@pytest.mark.parametrize(
    "column",
    [
        DAYS,
        DAYS.astype("datetime64[ns]"),
        DAYS.astype(str),
        DAYS.astype("S"),
        DAYS.astype(object),
        np.array([datetime(2024, 1, day) for day in range(1, 7)], dtype=object),
        np.array([f"2024-01-0{day}T00:00:00Z" for day in range(1, 7)], dtype=object),
        np.array([f"2024-01-0{day}T02:00:00+02:00" for day in range(1, 7)]),
        np.array([f"2024010{day}" for day in range(1, 7)]),
    ],
    ids=lambda column: f"{column.dtype.str} {column[0]}",
)
def test_dates_in_every_form(column):
    assert inside(column, "2024-01-02", "2024-01-05") == [1, 2, 3]
    assert inside(column, "20240102", "2024-01-04T00:00:01") == [1, 2, 3]
    assert inside(column, start="2024-01-05T00:00:00.000001Z") == [5]
    assert inside(column, end="2024-01-02T01:00:00+01:00") == [0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, object])
@pytest.mark.parametrize(("start", "end"), [(2, 5), ("2", "5"), (1.5, 4.5), ("1.5", 5)])
def test_numbers_in_every_form(dtype, start, end):
    assert inside(np.arange(7).astype(dtype), start, end) == [2, 3, 4]


def test_missing_times_are_in_no_window():
    assert inside(np.array(["2024-01-01", "NaT"], "datetime64[D]"), end="2025-01-01") == [0]
    assert inside(np.array(["2024-01-01", "", "nan", None], object), end="2025-01-01") == [0]
    assert inside(np.array([1.0, np.nan]), end=5) == [0]
    assert inside(np.array([1, None, float("nan")], object), end=5) == [0]
    assert inside(np.array([None, ""], object), end=5) == []


def test_extreme_bounds():
    ns = np.array(["1970-01-01", "2200-01-01"], "datetime64[ns]")
    assert inside(ns, "0001-01-01", "9999-12-31") == [0, 1]
    big = np.array([2**53, 2**53 + 1, 2**53 + 2])
    assert inside(big, 2**53 + 1, 2**53 + 2) == [1]
    assert inside(big, -1e300, 1e300) == [0, 1, 2]
    assert inside(np.array([0, 255], np.uint8), -5, 10**18) == [0, 1]


@given(
    times=st.lists(
        st.one_of(st.integers(-50, 50), st.floats(-50, 50, allow_nan=False)), min_size=1
    ),
    start=st.none() | st.integers(-50, 50) | st.floats(-50, 50),
    end=st.none() | st.integers(-50, 50) | st.floats(-50, 50),
    whole=st.booleans(),
)
def test_half_open_agrees_with_brute_force_on_numbers(times, start, end, whole):
    times = [int(time) for time in times] if whole else times
    if (start is None and end is None) or (None not in (start, end) and start >= end):
        with pytest.raises(ForgetRequestError):
            ForgetTimeWindow(start=start, end=end)
        return
    expected = [
        at
        for at, time in enumerate(times)
        if (start is None or start <= time) and (end is None or time < end)
    ]
    assert inside(times, start, end) == expected


zones = st.none() | st.integers(-12, 12).map(lambda hours: timezone(timedelta(hours=hours)))
moments = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=zones)


def as_utc(moment):
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


@given(times=st.lists(moments, min_size=1, max_size=20), start=moments, end=moments)
def test_half_open_agrees_with_brute_force_on_times(times, start, end):
    if as_utc(start) >= as_utc(end):
        with pytest.raises(ForgetRequestError, match="must be before"):
            ForgetTimeWindow(start=start.isoformat(), end=end.isoformat())
        return
    expected = [at for at, t in enumerate(times) if as_utc(start) <= as_utc(t) < as_utc(end)]
    texts = [time.isoformat() for time in times]
    bounds = start.isoformat(), end.isoformat()
    assert inside(np.array(texts), *bounds) == expected
    assert inside(np.array(times, dtype=object), *bounds) == expected
    naive = [as_utc(t).astimezone(UTC).replace(tzinfo=None) for t in times]
    assert inside(np.array(naive, "datetime64[ns]"), *bounds) == expected


@given(cuts=st.lists(st.floats(-9, 9), min_size=2, max_size=6, unique=True))
def test_adjacent_windows_share_no_sample_and_miss_none(cuts):
    times = np.concatenate([np.linspace(-10, 10, 41), cuts])
    cuts = sorted(cuts)
    bounds = zip([None, *cuts], [*cuts, None], strict=True)
    pieces = [inside(times, start, end) for start, end in bounds]
    assert sorted(at for piece in pieces for at in piece) == list(range(times.size))


@given(ns=st.lists(st.integers(-(10**7), 10**7), min_size=1), cut=st.integers(-9999, 9999))
def test_nanosecond_columns_are_not_rounded_into_a_window(ns, cut):
    bound = (np.datetime64(0, "us") + np.timedelta64(cut, "us")).item().isoformat()
    assert inside(np.array(ns, "datetime64[ns]"), end=bound) == [
        at for at, time in enumerate(ns) if time < cut * 1000
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give `start`, `end` or both, got neither"),
        ({"start": "yesterday"}, "`start` must be a finite number or an ISO time such as 2024-0"),
        ({"end": float("inf")}, "`end` must be a finite number or an ISO time"),
        ({"end": 10**400}, "`end` must be a finite number or an ISO time"),
        ({"start": True}, "`start` must be a finite number.*got True"),
        ({"start": date(2024, 1, 1)}, "`start` must be a finite number or an ISO time"),
        ({"start": "0001-01-01T00:00:00+10:00"}, "`start` must be a finite number or an ISO"),
        ({"start": 5, "end": 5}, "`start` must be before `end`, got 5 and 5"),
        ({"start": "2024-02-01", "end": "2024-01-01"}, "`start` must be before `end`"),
        (
            {"start": 5, "end": "2024-01-01"},
            "must both be numbers or both be ISO times, got 5 and '2024-01-01'",
        ),
    ],
)
def test_bad_arguments_are_refused_when_built(arguments, message):
    with pytest.raises(ForgetRequestError, match=message):
        ForgetTimeWindow(**arguments)


@pytest.mark.parametrize(
    ("column", "start", "message"),
    [
        (
            DAYS,
            "2030-01-01",
            "`start` and `end` must enclose a sample, got '2030-01-01' and None; "
            "column `timestamp` runs from 2024-01-01T00:00:00.000000 to 2024-01-06T",
        ),
        (np.arange(6), 99, "got 99 and None; column `timestamp` runs from 0 to 5"),
        (np.full(6, np.nan), 0, "column `timestamp` has no times"),
        (DAYS, "2000-01-01", "`start` forgets all 6 training samples"),
        (
            DAYS,
            5,
            "`start` must be an ISO time such as 2024-01-31 or 2024-01-31T12:00:00Z, "
            "because column `timestamp` holds times, got 5",
        ),
        (
            np.arange(6),
            "2024-01-01",
            "`start` must be a number in the unit of column `timestamp`, which holds numbers, "
            "got '2024-01-01'",
        ),
        (np.array(["2024-01-01", "soon", *"abcd"]), "2024-01-01", "got 'soon' for sample 1"),
        (np.zeros(6, bool), 0, "must hold numbers, datetime64 or ISO text, got bool"),
    ],
    ids=str,
)
def test_what_cannot_be_resolved_is_refused(column, start, message):
    with pytest.raises(ForgetRequestError) as caught:
        ForgetTimeWindow(start=start).resolve({"timestamp": np.asarray(column)}, 6)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_everything_before_an_end_names_the_end():
    with pytest.raises(ForgetRequestError, match="`end` forgets all 6 training samples"):
        ForgetTimeWindow(end="2030-01-01").resolve({"timestamp": DAYS}, 6)


def test_descriptions():
    assert ForgetTimeWindow(start=3).describe() == "every sample with `timestamp` from 3 on"
    assert ForgetTimeWindow("t", end=3).describe() == "every sample with `t` before 3"
