import json

import numpy as np
import pytest

from erasus_pl.requests import ForgetIndices, ForgetRequestError


def resolve(path, n=10):
    return ForgetIndices(path=str(path)).resolve({}, n).tolist()


def test_inline_indices_are_sorted():
    request = ForgetIndices([7, 0, 3])
    assert request.resolve({}, 8).tolist() == [0, 3, 7]
    assert request.to_dict()["init_args"] == {"indices": [0, 3, 7], "path": None}
    assert ForgetIndices(np.array([2, 1], np.uint8)).resolve({}, 3).tolist() == [1, 2]
    assert ForgetIndices([4]).describe() == "the sample at 4"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "3, 1\n# a comment\n\n7 # another\n"),
        ("b.TXT", "\ufeff3\r\n1\r\n7\r\n"),
        ("c.csv", "3\n1\n\n7\n"),
        ("d.csv", 'name,Index\nann,3\nbob,1\n"c,d",7\n'),
        ("e.csv", "ids\n3\n1\n7\n"),
        ("f.json", "[3, 1, 7]"),
    ],
)
def test_files_of_text(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert resolve(tmp_path / name) == [1, 3, 7]


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8, ">i2"])
def test_files_of_arrays(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.array([3, 1, 7], dtype))
    assert resolve(tmp_path / "a.npy") == [1, 3, 7]
    assert ForgetIndices(path="x.npy").describe() == "the samples listed in x.npy"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"1\n2 x\n", "`path` must hold whole numbers, got 'x' on line 2 of "),
        ("a.txt", b"1.0\n", "got '1.0' on line 1 of "),
        ("a.txt", b"\xff\xfe1", "`path` must be UTF-8 text, got "),
        ("a.txt", b"12\n", "`path` must hold positions in 0..9, got 12 (entry 1 of 1)"),
        (
            "a.txt",
            b"1 1\n",
            "`path` must name each position once, got 1, 2 times (at entries 1, 2)",
        ),
        ("a.txt", b"", "`path` selects no sample of 10 (the samples listed in "),
        ("a.txt", b"9" * 30, "`path` must hold positions in a data set, got 999"),
        ("a.csv", b"", "`path` selects no sample of 10"),
        ("a.csv", b"1,2\n3,4\n", "CSV of one column, or with a column headed `index`, got 2 col"),
        ("a.csv", b"position\n3\n", "got 'position' on line 1 of "),
        ("a.csv", b"name,index\nann\n", "got '' on line 2 of "),
        ("a.json", b"[1, 2", "`path` must be valid JSON, got "),
        ("a.json", b'{"a": 1}', "`path` must hold a JSON list of indices, got dict in "),
        ("a.json", b"[1, 2.0]", "`path` must hold whole numbers, got 2.0 (entry 2)"),
        ("a.json", b"[true]", "`path` must hold whole numbers, got True (entry 1)"),
        ("a.npy", b"not an array", "`path` must be a .npy file of whole numbers, without Python"),
        ("a.npy", b"", "`path` must be a .npy file of whole numbers"),
        ("a.xlsx", b"", "`path` must end in .txt, .csv, .json or .npy, got "),
        ("missing", None, "`path` must end in "),
        ("missing.txt", None, "No such file or directory"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ForgetRequestError) as caught:
        resolve(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_arrays_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    for array, message in [
        (np.array([1.0]), "float64 of shape"),
        (np.array([[1]]), r"int64 of shape \(1, 1\)"),
        (np.array([True]), "bool of shape"),
        (np.array([2**64 - 1], np.uint64), "positions in 0..9, got 18446744073709551615"),
    ]:
        np.save(path, array)
        with pytest.raises(ForgetRequestError, match=message):
            resolve(path)
    np.savez(tmp_path / "b.npz", a=[1])
    (tmp_path / "b.npz").rename(path)
    with pytest.raises(ForgetRequestError, match=r"one .npy array, got an archive"):
        resolve(path)


def test_pickles_are_not_opened(tmp_path):
    trace = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return trace.touch, ()

    np.save(tmp_path / "a.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    with pytest.raises(ForgetRequestError, match="without Python objects"):
        resolve(tmp_path / "a.npy")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of `indices` and `path`, got neither"),
        ({"indices": [1], "path": "a.txt"}, "exactly one of `indices` and `path`, got both"),
        ({"indices": [1, 2.0]}, r"`indices` must hold whole numbers, got 2.0 \(entry 2\)"),
        ({"indices": [True]}, "`indices` must hold whole numbers, got True"),
        ({"indices": ["1"]}, "`indices` must hold whole numbers, got '1'"),
        ({"indices": [10**30]}, "`indices` must hold positions in a data set, got 1000"),
    ],
)
def test_bad_arguments_are_refused_when_built(arguments, message):
    with pytest.raises(ForgetRequestError, match=message):
        ForgetIndices(**arguments)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([9, 10], r"`indices` must hold positions in 0..9, got 10 \(entry 2 of 2\)"),
        ([5, -2, 1], r"`indices` must hold positions in 0..9, got -2 \(entry 2 of 3\)"),
        ([5, 2, 5], r"`indices` must name each position once, got 5, 2 times \(at entries 1, 3\)"),
        ([], "`indices` selects no sample of 10"),
        (list(range(10)), "`indices` forgets all 10 training samples"),
    ],
)
def test_bad_indices_are_refused_when_resolved(indices, message):
    with pytest.raises(ForgetRequestError, match=message):
        ForgetIndices(indices).resolve({}, 10)


def test_large_lists_read_back(tmp_path):
    ids = np.random.default_rng(0).permutation(50_000)[:20_000]
    (tmp_path / "a.json").write_text(json.dumps(ids.tolist()))
    assert resolve(tmp_path / "a.json", 50_000) == sorted(ids.tolist())
