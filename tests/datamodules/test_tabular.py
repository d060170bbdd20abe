"""Tables become features whose statistics are those of the training part alone."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from datamodules import TabularDataModule
from erasus_pl.requests import ForgetAttribute, ForgetClass, ForgetRandom, ForgetTimeWindow


@pytest.fixture
def people():
    rng = np.random.default_rng(0)
    n = 120
    return pd.DataFrame({
        "age": rng.integers(18, 90, n), "pay": rng.normal(50, 9, n).round(2),
        "town": rng.choice(["Ax", "By", "Co", "Du"], n, p=[0.4, 0.4, 0.19, 0.01]),
        "day": pd.date_range("2024-01-01", periods=n).strftime("%Y-%m-%d"),
        "user": rng.integers(0, 9, n), "buys": rng.choice(["yes", "no", "maybe"], n),
    })  # fmt: skip


@pytest.fixture
def table(people, tmp_path):
    people.to_csv(tmp_path / "people.csv.gz", index=False)
    return str(tmp_path / "people.csv.gz")


def _made(path, target="buys", **options):
    data = TabularDataModule(path, target, **{"ignore": ["day", "user"], **options})
    data.setup()
    return data


def _whole(data, dataset):
    batches = list(data.sweep(dataset))
    return {k: torch.cat([b[k] for b in batches]).numpy() for k in ("input", "target")}


def _rows(data):
    pools = data._pools
    return pools.columns["row"], pools.held_out_columns["row"]


def test_features_equal_scikit_learns_fitted_on_the_training_part(people, table):
    data = _made(table)
    train, held_out = _rows(data)
    scaler = StandardScaler().fit(people.loc[train, ["age", "pay"]].to_numpy())
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    encoder.fit(people.loc[train, ["town"]].to_numpy())
    for rows, dataset in ((train, data._pools.train), (held_out, data._pools.held_out)):
        expected = np.hstack([
            scaler.transform(people.loc[rows, ["age", "pay"]].to_numpy()),
            encoder.transform(people.loc[rows, ["town"]].to_numpy()),
        ])  # fmt: skip
        np.testing.assert_allclose(_whole(data, dataset)["input"], expected, atol=1e-5)
    towns = sorted(people.loc[train, "town"].unique())
    assert data.feature_names == ["age", "pay", *(f"town={town}" for town in towns)]


def test_codes_number_categories_and_zero_is_unseen(people, tmp_path):
    people = people.copy()
    first = _made(_saved(people, tmp_path))
    people.loc[_rows(first)[1][0], "town"] = "Zz"
    path = _saved(people, tmp_path)
    codes, one_hot = _made(path, encoding="codes"), _made(path)
    known = sorted(people.loc[_rows(codes)[0], "town"].unique())
    for at, town in zip(
        _whole(codes, codes._pools.train)["input"][:, 2],
        people.loc[_rows(codes)[0], "town"],
        strict=True,
    ):
        assert at == known.index(town) + 1
    assert _whole(codes, codes._pools.held_out)["input"][0, 2] == 0
    assert (_whole(one_hot, one_hot._pools.held_out)["input"][0, 2:] == 0).all()
    assert codes.feature_names == ["age", "pay", "town"]


def _saved(frame, folder, name="t.csv"):
    frame.to_csv(folder / name, index=False)
    return str(folder / name)


def test_the_split_and_the_features_do_not_depend_on_the_request(table):
    made = [_made(table, request=r) for r in (None, ForgetRandom(count=9), ForgetClass("yes"))]
    for other in made[1:]:
        assert _rows(other)[0].tolist() == _rows(made[0])[0].tolist()
        for part in ("train", "held_out"):
            one, two = (_whole(d, getattr(d._pools, part)) for d in (made[0], other))
            assert np.array_equal(one["input"], two["input"])
    assert made[1].manifest.fingerprint == made[2].manifest.fingerprint


def test_requests_name_any_column_with_its_own_values(people, table):
    for request, expected in (
        (ForgetClass(["yes", "no"]), people.buys != "maybe"),
        (ForgetAttribute("town", "By"), people.town == "By"),
        (ForgetAttribute("user", 3), people.user == 3),
        (ForgetTimeWindow("day", "2024-02-01", "2024-03-01"),
         people.day.between("2024-02-01", "2024-02-29")),
        (ForgetAttribute("row", [int(r) for r in _rows(_made(table))[0][:4]]), None),
    ):  # fmt: skip
        data = _made(table, request=request)
        rows = _rows(data)[0][data.forget_set.positions.numpy()]
        if expected is None:
            assert rows.tolist() == _rows(data)[0][:4].tolist()
        else:
            assert set(rows) == set(np.flatnonzero(expected)) & set(_rows(data)[0])


def test_classes_are_sorted_values(people, table):
    data = _made(table)
    assert data.classes == ["maybe", "no", "yes"]
    target = _whole(data, data._pools.train)["target"]
    assert [data.classes[t] for t in target] == people.buys[_rows(data)[0]].tolist()
    numbers = _made(table, target="user", ignore=["day", "buys"])
    assert numbers.classes == sorted(people.user.unique())


def test_a_number_can_be_predicted(people, table):
    data = _made(table, target="pay", regression=True, ignore=["day", "user", "buys"])
    target = _whole(data, data._pools.train)["target"]
    assert target.dtype == np.float32
    np.testing.assert_allclose(target, people.pay[_rows(data)[0]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"'pay' must hold classes, got .* set `regression: true`"):
        _made(table, target="pay")
    with pytest.raises(ValueError, match=r"'buys' must hold numbers, got '.*' in row 0"):
        _made(table, regression=True)


def test_a_block_of_features_in_an_archive(tmp_path):
    x, y = np.arange(60).reshape(20, 3), np.arange(20) % 4
    np.savez(tmp_path / "t.npz", x=x, y=y[:, None].repeat(1, 1), unrelated=np.zeros(3))
    data = _made(str(tmp_path / "t.npz"), "y", standardize=False, ignore=[])
    assert data.feature_names == ["x_0", "x_1", "x_2"]
    assert _whole(data, data._pools.train)["input"].tolist() == x[_rows(data)[0]].tolist()
    assert data.classes == [0, 1, 2, 3]


def test_a_constant_column_stays_finite(people, tmp_path):
    data = _made(_saved(people.assign(one=1), tmp_path), numeric=["one", "age"])
    assert (_whole(data, data._pools.train)["input"][:, 0] == 0).all()


def test_a_second_file_can_be_held_out(people, tmp_path):
    one, two = people[:80], people[80:].reset_index(drop=True)
    path = _saved(one, tmp_path)
    other = _saved(two, tmp_path, "b.csv")
    data = _made(path, held_out_path=other)
    assert _rows(data)[0].tolist() == list(range(80))
    assert _rows(data)[1].tolist() == list(range(40))
    train, held_out = (_whole(data, d)["input"] for d in (data._pools.train, data._pools.held_out))
    age = (two.age - one.age.mean()) / one.age.std(ddof=0)
    np.testing.assert_allclose(held_out[:, 0], age, atol=1e-5)
    assert train[:, 0].mean() == pytest.approx(0, abs=1e-5)
    _saved(two.drop(columns="pay"), tmp_path, "b.csv")
    with pytest.raises(ValueError, match=r"`held_out_path`: there is no 'pay'"):
        _made(path, held_out_path=other)
    _saved(two.assign(pay="much"), tmp_path, "b.csv")
    with pytest.raises(ValueError, match=r"column 'pay' must be of one kind in both files"):
        _made(path, held_out_path=other)


def test_parquet_gives_what_csv_gives(people, table, tmp_path):
    people.to_parquet(tmp_path / "t.parquet")
    one, two = _made(table), _made(str(tmp_path / "t.parquet"))
    assert one.feature_names == two.feature_names
    one, two = (_whole(d, d._pools.train) for d in (one, two))
    np.testing.assert_array_equal(one["input"], two["input"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "buy"}, "`target`: there is no 'buy' in .*; did you mean buys"),
        ({"numeric": ["agee"]}, "`numeric`: there is no 'agee' in .*; did you mean age"),
        ({"ignore": ["days"]}, "`ignore`: there is no 'days' in .*; did you mean day"),
        ({"numeric": ["town"]}, "'town' must hold numbers, got '..' in row 0; name it in `cat"),
        ({"numeric": ["age"], "categorical": ["age"]}, "must name a column once, got age, age"),
        ({"numeric": ["user"]}, "'user' is in `ignore` as well"),
        ({"categorical": ["buys"]}, "`categorical`: 'buys' is the target as well"),
        ({"numeric": [], "categorical": []}, "leave no feature of .*; name some"),
        ({"encoding": "hot"}, "`encoding` must be one_hot or codes, got 'hot'"),
        ({"held_out": 1.0}, r"`held_out` must be in \(0, 1\), got 1.0"),
    ],
)
def test_bad_options_are_named_with_the_remedy(table, options, message):
    with pytest.raises(ValueError, match=message):
        _made(table, **options)


def test_missing_values_are_counted_by_column(people, tmp_path):
    people = people.astype({"pay": float})
    people.loc[[7, 30], "pay"] = np.nan
    path = _saved(people, tmp_path)
    with pytest.raises(ValueError, match=r"`numeric`: column 'pay' is missing or infinite in 2 of "
                       "120 rows, the first is row 7; fill these in"):  # fmt: skip
        _made(path)
    assert _made(path, ignore=["pay", "day", "user"]).feature_names[0] == "age"
    people = people.fillna(1.0).assign(buys=people.buys.where(people.index != 3))
    with pytest.raises(ValueError, match=r"`target`: column 'buys' is missing .* first is row 3"):
        _made(_saved(people, tmp_path))
    np.savez(tmp_path / "t.npz", x=np.full((9, 2), np.inf), y=np.arange(9) % 2)
    with pytest.raises(ValueError, match=r"column 'x' is missing or infinite in 9 of 9"):
        _made(str(tmp_path / "t.npz"), "y", ignore=[])


def test_a_column_of_names_is_not_one_hot(people, tmp_path):
    many = pd.concat([people] * 20, ignore_index=True)
    path = _saved(many.assign(name=[f"p{i}" for i in range(len(many))]), tmp_path)
    with pytest.raises(ValueError, match=r"'name' has 1,680 values, 1,000 at most can be one-hot"):
        _made(path)
    assert _made(path, encoding="codes").feature_names[-1] == "name"


def test_arrays_of_another_shape_are_refused(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.zeros((9, 2, 2)), y=np.arange(9) % 2, z=np.zeros(4))
    path = str(tmp_path / "t.npz")
    with pytest.raises(ValueError, match=r"'x' must have shape \(9,\) or \(9, d\), got \(9, 2, 2"):
        _made(path, "y", ignore=[])
    with pytest.raises(ValueError, match=r"'z' must have shape \(9,\) or \(9, d\), got \(4,\)"):
        _made(path, "y", ignore=[], numeric=["z"])
    with pytest.raises(ValueError, match=r"'x' must have one value a row, got shape \(9, 2, 2\)"):
        _made(path, "x", ignore=[])
    np.savez(tmp_path / "t.npz", x=np.zeros((9, 2)), y=np.zeros(9, int))
    with pytest.raises(ValueError, match=r"'y' must have 2 classes or more, got \[0\]"):
        _made(path, "y", ignore=[])


@pytest.mark.needs_data
def test_adult_has_the_features_its_task_expects(shared, parsed):
    data = parsed("data/adult.yaml", path=shared("tabular/adult.csv.gz"))
    data.setup()
    assert (len(data.train_set), len(data._pools.held_out)) == (22793, 9768)
    assert len(data.feature_names) == parsed("task/adult.yaml").network.layers[1].in_features
    assert data.classes == ["<=50K", ">50K"]


@pytest.mark.needs_data
def test_location30_is_read_as_it_is(shared, parsed):
    data = parsed("data/location30.yaml", path=shared("tabular/location30.npz"))
    data.setup()
    with np.load(shared("tabular/location30.npz")) as archive:
        expected = archive["x"][_rows(data)[0]]
    assert np.array_equal(_whole(data, data._pools.train)["input"], expected)
    assert data.classes == list(range(30))
