"""Every planted fact is where its column says, and nowhere else."""

import numpy as np
import pytest
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from datamodules import SyntheticForgetDataModule
from erasus_pl.requests import (
    ForgetAttribute,
    ForgetClass,
    ForgetGroup,
    ForgetRandom,
    ForgetTimeWindow,
)

PLANTED = dict(
    samples=3000, label_noise=0.1, backdoor=0.05, backdoor_target=2, duplicates=80, leaks=15,
    canaries=30, repeats=(1, 2, 8),
)  # fmt: skip


class Made:
    """A datamodule's pools as plain arrays."""

    def __init__(self, **options):
        self.data = SyntheticForgetDataModule(**options)
        self.data.setup()
        pools = self.data._pools
        self.x, self.held_x = (d.columns["input"].numpy() for d in (pools.train, pools.held_out))
        self.columns, self.held = pools.columns, pools.held_out_columns
        assert (pools.train.columns["target"].numpy() == self.columns["target"]).all()


@pytest.fixture(scope="module")
def planted():
    return Made(**PLANTED)


def test_plain_data_is_a_mixture_of_the_stated_separation():
    made = Made(samples=40_000, classes=2, separation=2.0, shift=0.0, features=6)
    c = made.columns
    centres = np.stack([made.x[c["target"] == k].mean(0) for k in (0, 1)])
    assert np.linalg.norm(centres[0] - centres[1]) == pytest.approx(2.0, abs=0.06)
    assert made.x[c["target"] == 0].std(0) == pytest.approx(np.ones(6), abs=0.03)
    accuracy = (
        LinearDiscriminantAnalysis()
        .fit(made.x, c["target"])
        .score(made.held_x, made.held["target"])
    )
    assert accuracy == pytest.approx(stats.norm.cdf(1.0), abs=0.01)  # the Bayes rate
    for name in ("noisy", "is_backdoor", "is_canary"):
        assert not c[name].any()
    assert (c["duplicate_of"] == -1).all()


def test_groups_and_attributes_move_their_samples():
    made = Made(samples=40_000, groups=2, shift=1.0, classes=2, separation=0.0, features=8)
    c = made.columns
    red = made.x[c["attribute"] == "red"].mean(0) - made.x[c["attribute"] == "blue"].mean(0)
    assert red[2] == pytest.approx(1.0, abs=0.06)
    assert red[4] == pytest.approx(-1.0, abs=0.06)
    groups = [made.x[c["group"] == g].mean(0) for g in (0, 1)]
    assert 0.3 < np.linalg.norm(groups[0] - groups[1]) < 2.1
    assert abs(groups[0][-1] - groups[1][-1]) < 0.06


def test_label_noise_is_where_it_says_and_as_much_as_asked(planted):
    for c in (planted.columns, planted.held):
        ours = ~c["is_canary"]
        assert (c["target"][c["noisy"]] != c["clean_target"][c["noisy"]]).all()
        clean = ours & ~c["noisy"] & ~c["is_backdoor"]
        assert (c["target"][clean] == c["clean_target"][clean]).all()
        assert c["noisy"][ours].mean() == pytest.approx(0.1, abs=0.02)


def test_the_backdoor_is_a_trigger_with_its_label(planted):
    for x, c in ((planted.x, planted.columns), (planted.held_x, planted.held)):
        assert ((x[:, -1] == 6.0) == c["is_backdoor"]).all()
        assert (c["target"][c["is_backdoor"]] == 2).all()
        assert (c["clean_target"][c["is_backdoor"]] != 2).all()
        assert not (c["is_backdoor"] & c["noisy"]).any()
        assert c["is_backdoor"].mean() == pytest.approx(0.05, abs=0.015)


def test_duplicates_are_exact_and_belong_to_others(planted):
    x, c = planted.x, planted.columns
    copies = np.flatnonzero((c["duplicate_of"] >= 0) & ~c["is_canary"])
    sources = c["duplicate_of"][copies]
    assert len(copies) == len(set(sources)) == 80
    assert (x[copies] == x[sources]).all()
    assert (c["target"][copies] == c["target"][sources]).all()
    assert (c["group"][copies] != c["group"][sources]).all()
    assert (c["attribute"][copies] != c["attribute"][sources]).all()
    assert (c["duplicate_of"][sources] == -1).all()


def test_nothing_else_occurs_twice(planted):
    _, first, inverse = np.unique(planted.x, axis=0, return_index=True, return_inverse=True)
    origin = first[inverse.reshape(-1)]
    expected = np.where(origin == np.arange(len(origin)), -1, origin)
    assert (planted.columns["duplicate_of"] == expected).all()


def test_forgetting_a_group_leaves_its_duplicates_in_the_retain_set():
    group = 4
    made = Made(**PLANTED, request=ForgetGroup(group, "group"))
    c = made.columns
    forget = set(made.data.forget_set.positions.tolist())
    retain = set(made.data.retain_set.positions.tolist())
    copied = [i for i in np.flatnonzero(c["duplicate_of"] >= 0) if not c["is_canary"][i]]
    pairs = [(c["duplicate_of"][i], i) for i in copied if c["group"][c["duplicate_of"][i]] == group]
    assert pairs
    for source, copy in pairs:
        # A source may itself come after its copy: one of the two is the group's, the other is not.
        assert source in forget
        assert copy in retain


def test_leaks_are_training_samples_in_the_held_out_data(planted):
    leaked = np.flatnonzero(planted.held["duplicate_of"] >= 0)
    assert len(leaked) == 15
    sources = planted.held["duplicate_of"][leaked]
    assert (planted.held_x[leaked] == planted.x[sources]).all()
    assert (planted.held["target"][leaked] == planted.columns["target"][sources]).all()
    others = np.delete(planted.held_x, leaked, axis=0)
    known = {row.tobytes() for row in planted.x}
    assert not any(row.tobytes() in known for row in others)


def test_canaries_are_repeated_as_asked_with_a_wrong_label(planted):
    c = planted.columns
    numbers, counts = np.unique(c["canary"][c["is_canary"]], return_counts=True)
    assert numbers.tolist() == list(range(30))
    assert counts.tolist() == [1, 2, 8] * 10
    assert (c["repeats"][c["is_canary"]] == counts[c["canary"][c["is_canary"]]]).all()
    assert (c["repeats"][~c["is_canary"]] == 0).all()
    assert (c["target"][c["is_canary"]] != c["clean_target"][c["is_canary"]]).all()
    assert (c["canary"][~c["is_canary"]] == -1).all()


def test_as_many_canaries_are_held_out_and_were_never_trained_on(planted):
    held = planted.held["canary"][planted.held["is_canary"] & (planted.held["duplicate_of"] < 0)]
    assert sorted(held) == list(range(30, 60))
    made = Made(**{**PLANTED, "leaks": 0}, request=ForgetAttribute("is_canary", True))
    assert made.data.manifest.counts["forget"] == 110
    assert made.data.manifest.counts["holdout"] == 30


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (ForgetClass(1), lambda c: c["target"] == 1),
        (ForgetAttribute("attribute", "green"), lambda c: c["attribute"] == "green"),
        (ForgetGroup([0, 7], "group"), lambda c: np.isin(c["group"], [0, 7])),
        (ForgetTimeWindow(start="2024-06-01", end="2024-07-01"),
         lambda c: c["timestamp"].astype("datetime64[M]") == np.datetime64("2024-06")),
        (ForgetAttribute("is_backdoor", True), lambda c: c["is_backdoor"]),
        (ForgetAttribute("noisy", True), lambda c: c["noisy"]),
        (ForgetAttribute("canary", 4), lambda c: c["canary"] == 4),
    ],
)  # fmt: skip
def test_requests_find_what_is_planted(request_, expected):
    made = Made(**PLANTED, request=request_)
    found = made.data.forget_set.positions.numpy()
    assert found.tolist() == np.flatnonzero(expected(made.columns)).tolist()
    assert len(found) > 0


def test_the_seed_alone_decides_and_the_request_does_not():
    one, two = Made(**PLANTED), Made(**PLANTED, request=ForgetRandom(count=5))
    assert (one.x == two.x).all()
    assert all((one.columns[k] == two.columns[k]).all() for k in one.columns)
    other = Made(**PLANTED, data_seed=1)
    assert not (one.x[:, :-1] == other.x[:, :-1]).any()


def test_planted_samples_are_spread_over_the_training_positions(planted):
    where = np.flatnonzero(planted.columns["is_canary"]) / len(planted.x)
    assert stats.kstest(where, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "`classes` must be at least 2, got 1"),
        ({"features": 7}, "`features` must be at least 8, got 7"),
        ({"label_noise": 0.6}, "`label_noise` must be from 0 to 0.5, got 0.6"),
        ({"backdoor_target": 4}, "`backdoor_target` must be from 0 to 3, got 4"),
        ({"repeats": []}, "`repeats` must be at least 1, got 0"),
        (
            {"duplicates": 1001},
            "`duplicates` must be at most the 1,000 training samples, got 1,001",
        ),
        ({"held_out": 0.0}, r"`held_out` must be in \(0, 1\), got 0.0"),
        ({"label_noise": 0.5, "backdoor": 0.5}, "`backdoor` must leave room beside `label_noise`"),
    ],
)
def test_bad_options_are_named_with_what_is_accepted(options, message):
    with pytest.raises(ValueError, match=message):
        Made(**options)


@pytest.mark.parametrize(
    ("part", "on"),
    [
        ("attribute", None), ("canaries", "synthetic"), ("group", "text"), ("indices", "synthetic"),
        ("time_window", "synthetic"), ("random", "synthetic"), ("class", "synthetic"),
    ],
)  # fmt: skip
def test_request_parts_find_samples_in_the_data_they_are_for(part, on, parsed, shared):
    path = {} if on else {"path": shared("tabular/adult.csv.gz")}
    data = parsed(f"data/{on or 'adult'}.yaml", **path)
    data.request = parsed(f"request/{part}.yaml")
    data.setup()
    assert 0 < len(data.forget_set) < len(data.retain_set)
