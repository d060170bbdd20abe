"""Files are read without running what is in them, and what is wrong with one is said in a line."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.files import check_file, named, read_npz, read_table, split


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(12).reshape(4, 3), name=np.array(list("abcd")))
    return path


def test_an_archive_gives_the_arrays_asked_for(archive):
    assert read_npz(str(archive), ["x"])["x"].tolist() == np.arange(12).reshape(4, 3).tolist()
    assert set(read_npz(str(archive))) == {"x", "name"}


def test_a_missing_key_is_answered_with_what_there_is(archive):
    with pytest.raises(
        ValueError, match=r"there is no 'nam'.*which has x, name; did you mean name"
    ):
        read_npz(str(archive), ["nam"])


@pytest.mark.parametrize("name", ["missing.npz", "folder"])
def test_a_path_that_is_no_file_is_refused(tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    what = "is a folder" if name == "folder" else "does not exist"
    with pytest.raises(FileNotFoundError, match=f"`path` must be a file, and '{name}' {what}"):
        check_file(name)


def test_python_objects_in_an_archive_are_never_unpickled(tmp_path):
    mark = tmp_path / "mark"
    np.savez(tmp_path / "evil.npz", x=np.array([Bomb(mark)], dtype=object))
    with pytest.raises(ValueError, match=r"'x' of .* is damaged or holds Python objects"):
        read_npz(str(tmp_path / "evil.npz"))
    np.save(tmp_path / "evil.npy", np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    (tmp_path / "evil.npy").rename(tmp_path / "renamed.npz")
    with pytest.raises(ValueError, match=r"must be an .npz archive"):
        read_npz(str(tmp_path / "renamed.npz"))
    assert not mark.exists()


def test_a_damaged_archive_is_named(tmp_path, archive):
    whole = archive.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:60] + b"xx" + whole[62:]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.npz' is damaged"):
            read_npz(str(tmp_path / "bad.npz"))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"is one array; use np.savez"):
        read_npz(str(tmp_path / "one.npy"))


def _csv(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text, "utf-8")
    return str(path)


def test_csv_columns_have_the_type_of_all_their_cells(tmp_path):
    text = '\ufeffn, x ,word,gap,big,empty\n1,0.5,a,2,99999999999999999999,\n2, 1e3,"b,c",NA,1,\n'
    table = read_table(_csv(tmp_path, text))
    assert list(table) == ["n", "x", "word", "gap", "big", "empty"]
    assert {k: v.dtype.kind for k, v in table.items()} == dict(
        n="i", x="f", word="U", gap="f", big="f", empty="U"
    )
    assert table["x"].tolist() == [0.5, 1000.0]
    assert table["word"].tolist() == ["a", "b,c"]
    assert np.isnan(table["gap"][1])


def test_csv_parquet_and_npz_agree(tmp_path):
    columns = {
        "a": np.array([3, 1, 2]),
        "b": np.array([0.5, -1.0, 2.0]),
        "c": np.array(list("xyx")),
    }
    text = "a,b,c\n" + "".join(f"{a},{b},{c}\n" for a, b, c in zip(*columns.values(), strict=True))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", **columns)
    for name in ("t.csv.gz", "t.parquet", "t.npz"):
        table = read_table(str(tmp_path / name))
        assert list(table) == ["a", "b", "c"]
        assert all(table[k].tolist() == v.tolist() for k, v in columns.items()), name
        assert table["a"].dtype == np.int64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "must have a header and rows, got 1 lines"),
        ("a,a\n1,2\n", "has 'a' more than once in its header"),
        ("a,b\n1,2\n\n1,2,3\n", "line 4 of .* has 3 cells, its header 2"),
    ],
)
def test_a_csv_that_is_no_table_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_table(_csv(tmp_path, text))


def test_unreadable_tables_are_refused(tmp_path):
    for name, content in (
        ("t.csv", b"a,b\n\xff\xfe,1\n"), ("t.csv.gz", b"no gzip"), ("t.parquet", b"no parquet"),
        ("cut.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 999)[:-20]),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"could not be read"):
            read_table(str(tmp_path / name))
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must end in \.csv, \.csv\.gz, \.parquet or \.npz"):
        read_table(str(tmp_path / "t.xlsx"))


def test_missing_parquet_values_stay_missing(tmp_path):
    pq.write_table(pa.table({"n": [1, None], "s": ["a", None]}), tmp_path / "t.parquet")
    table = read_table(str(tmp_path / "t.parquet"))
    assert np.isnan(table["n"][1])
    assert table["s"][1] is None


@given(n=st.integers(4, 500), part=st.floats(0.01, 0.99))
def test_a_split_is_complete_disjoint_and_of_the_size_asked_for(n, part):
    if not 2 <= round(part * n) <= n - 2:
        with pytest.raises(ValueError, match=r"`held_out` must leave 2 samples or more"):
            split(n, part)
        return
    train, held_out = split(n, part)
    assert sorted([*train, *held_out]) == list(range(n))
    assert len(held_out) == round(part * n)
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()


def test_a_split_is_the_same_on_every_machine_and_nested():
    assert split(12, 0.25)[1].tolist() == [2, 3, 11]
    assert set(split(100, 0.2)[1]) < set(split(100, 0.5)[1])


@pytest.mark.parametrize("part", [0, 1, -0.1, 1.5])
def test_a_part_outside_its_range_is_refused(part):
    with pytest.raises(ValueError, match=r"`held_out` must be in \(0, 1\)"):
        split(100, part)


def test_a_long_list_of_names_is_cut():
    with pytest.raises(ValueError, match=r"c19, …$"):
        named("zz", [f"c{i}" for i in range(50)], "target", "f.csv")
