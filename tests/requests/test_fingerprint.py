import tracemalloc
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from erasus_pl.requests import ForgetRequestError, fingerprint

FIXED = "3e329955e7bf8062794fe5069ee63be3b3e15cc8f1e85dc053505f2b38cfa2eb"

arrays = hnp.arrays(
    st.sampled_from(["<i4", ">i4", "u1", "f2", "f8", "?", "c8", "M8[s]", "m8[ns]", "U3", "S2"]),
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5),
)


@given(arrays)
def test_any_byte_dtype_shape_name_or_count_changes_it(array):
    print_ = fingerprint({"x": array}, 5)
    assert print_ == fingerprint({"x": array.copy()}, 5)
    assert len(print_) == 64
    assert int(print_, 16) >= 0
    assert print_ != fingerprint({"x": array}, 6)
    assert print_ != fingerprint({"y": array}, 5)
    assert print_ != fingerprint([array], 5)
    assert print_ != fingerprint({"x": array[None]}, 5)
    assert print_ != fingerprint({"x": array.reshape(-1, 1, 1, 1)}, 5)
    if array.dtype.itemsize > 1 and array.dtype.kind not in "US":
        assert print_ != fingerprint({"x": array.view(array.dtype.newbyteorder())}, 5)


@given(arrays.filter(lambda array: array.dtype.kind in "iuM"), st.data())
def test_any_flipped_bit_changes_it(array, data):
    raw = bytearray(array.tobytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    other = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
    assert fingerprint([array], 1) != fingerprint([other], 1)


@given(arrays)
def test_memory_layout_does_not_change_it(array):
    expected = fingerprint([array], 1)
    wide = np.repeat(array, 2, axis=0)[::2]
    backwards = np.ascontiguousarray(array[::-1])[::-1]
    for same in (np.asfortranarray(array), wide, backwards):
        assert fingerprint([same], 1) == expected


def test_large_strided_arrays_match_their_copies_and_are_not_copied():
    big = np.arange(4_000_000, dtype=np.int64).reshape(2000, 2000)
    expected = fingerprint([np.ascontiguousarray(big.T)], 1)
    tracemalloc.start()
    assert fingerprint([big.T], 1) == expected
    assert fingerprint([big], 1) != expected
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < big.nbytes / 10


def test_order_of_a_mapping_does_not_matter_and_of_a_sequence_does():
    a, b = np.arange(3), np.arange(4)
    assert fingerprint({"a": a, "b": b}, 3) == fingerprint({"b": b, "a": a}, 3)
    assert fingerprint([a, b], 3) != fingerprint([b, a], 3)


def objects(*items):
    array = np.empty(len(items), dtype=object)
    for at, item in enumerate(items):
        array[at] = item
    return array


def test_objects_that_differ_never_read_the_same():
    cases = [
        objects("ab", "c"),
        objects("a", "bc"),
        objects("abc"),
        objects("abc", ""),
        objects("abc", None),
        objects("abc", "n"),
        objects(b"ab", "c"),
        objects(1),
        objects(True),
        objects(1.0),
        objects("1"),
        objects(12),
        objects(1, 2),
        objects([1, 2]),
        objects([1], 2),
        objects([[1], 2]),
        objects([[1, 2]]),
        objects(np.array([1, 2])),
        objects(np.array([1, 2], np.int8)),
        objects(date(2024, 1, 1)),
        objects("2024-01-01"),
        objects(np.datetime64("2024-01-01")),
        objects(np.datetime64("2024-01-01", "s")),
        objects(),
    ]
    assert len({fingerprint([case], 1) for case in cases}) == len(cases)


def test_numpy_scalars_count_as_the_python_values_they_hold():
    assert fingerprint([objects(np.int8(1), np.str_("a"))], 1) == fingerprint([objects(1, "a")], 1)


def test_empty_and_scalar_arrays():
    prints = {
        fingerprint(case, 0)
        for case in ([], [np.empty(0)], [np.empty((0, 3))], [np.array(0.0)], [np.zeros(1)], {})
    }
    assert len(prints) == 6


def test_what_has_no_stable_bytes_is_refused():
    with pytest.raises(ForgetRequestError, match=r"array `x` must hold numbers, text.*got object"):
        fingerprint({"x": objects(object())}, 1)
    with pytest.raises(ForgetRequestError, match="array `0` must be of a plain dtype"):
        fingerprint([np.zeros(2, "i4,f4")], 2)


def test_the_value_is_fixed_for_ever():
    columns = {"target": np.arange(5, dtype="<i8"), "user": objects("a", None, "c", 1, 2.5)}
    assert fingerprint(columns, 5) == FIXED
