"""Submodular functions against plain greedy, the best set, and the definition of submodular."""

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from erasus_pl.linalg.greedy import lazy_greedy
from erasus_pl.selectors import FeatureBased, GraphCut, LogDet
from erasus_pl.selectors.feature_based import feature_based
from erasus_pl.selectors.graph_cut import graph_cut
from erasus_pl.selectors.log_det import log_det

FUNCTIONS = ("cut 0", "cut 0.3", "cut 0.5", "det", "sqrt", "log", "saturated")


def _points(n, seed):
    return torch.rand(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _likeness(x):
    return (1 + F.cosine_similarity(x[:, None], x[None], dim=2)) / 2


def _kernel(x, ridge=0.1):
    return (
        torch.eye(len(x), dtype=x.dtype) + F.cosine_similarity(x[:, None], x[None], dim=2) / ridge
    )


def value(name, x, chosen):
    """The function as it is written in the papers, of one set."""
    chosen = list(chosen)
    if not chosen:
        return 0.0
    if name.startswith("cut"):
        s = _likeness(x)
        return float(s[:, chosen].sum() - float(name[4:]) * s[chosen][:, chosen].sum())
    if name == "det":
        return float(torch.linalg.slogdet(_kernel(x)[chosen][:, chosen]).logabsdet)
    mass = x[chosen].sum(0)
    if name == "saturated":
        return float(torch.minimum(mass, 0.3 * x.sum(0)).sum())
    return float((mass.sqrt() if name == "sqrt" else (1 + mass).log()).sum())


def pick(name, x, k):
    if name.startswith("cut"):
        s = _likeness(x)
        return graph_cut(lambda j: s[:, j], s.sum(0), s.diagonal(), k, float(name[4:])).tolist()
    if name == "det":
        kernel = _kernel(x)
        return log_det(lambda j: kernel[:, j], kernel.diagonal(), x.sum(1), k).tolist()
    return feature_based(x, k, name, saturation=0.3).tolist()


drawn = {
    "name": st.sampled_from(FUNCTIONS),
    "n": st.integers(2, 9),
    "seed": st.integers(0, 999),
    "data": st.data(),
}


@settings(max_examples=80, deadline=None)
@given(**drawn)
def test_each_pick_has_the_largest_gain(name, n, seed, data):
    x = _points(n, seed)
    picked = pick(name, x, data.draw(st.integers(1, n)))
    assert len(set(picked)) == len(picked)
    for i, j in enumerate(picked):
        before = picked[:i]
        gain = {
            m: value(name, x, [*before, m]) - value(name, x, before)
            for m in set(range(n)) - set(before)
        }
        assert gain[j] >= max(gain.values()) - 1e-7 * max(1.0, value(name, x, picked[:1]))


@settings(max_examples=60, deadline=None)
@given(**drawn)
def test_the_bound_of_the_greedy_rule(name, n, seed, data):
    x = _points(n, seed)
    k = data.draw(st.integers(1, n))
    best = max(value(name, x, chosen) for chosen in combinations(range(n), k))
    assert value(name, x, pick(name, x, k)) >= (1 - 1 / math.e) * best - 1e-9


@settings(max_examples=80, deadline=None)
@given(**drawn)
def test_returns_diminish_and_are_not_negative(name, n, seed, data):
    x = _points(n, seed)
    order = data.draw(st.permutations(range(n)))
    small, large = sorted((data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))))
    j = order[-1]

    def gain(chosen):
        return value(name, x, [*chosen, j]) - value(name, x, chosen)

    assert gain(order[:small]) >= gain(order[:large]) - 1e-9
    assert gain(order[:large]) >= -1e-9


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 99), block=st.integers(1, 9), data=st.data())
def test_lazy_in_blocks_is_greedy(n, seed, block, data):
    """On coverage by sets of whole numbers, where gains tie all the time."""
    k = data.draw(st.integers(1, n))
    covers = torch.rand(n, 12, generator=torch.Generator().manual_seed(seed)) < 0.3
    left = torch.ones(12, dtype=torch.bool)
    rank = covers.sum(1).double()
    asked = []

    def gains(j):
        asked.append(len(j))
        return (covers[j] & left).sum(1).double()

    def add(j):
        left[covers[j]] = False

    found = lazy_greedy(gains, add, rank.clone(), rank, k, block).tolist()
    assert max(asked, default=0) <= block
    left[:] = True
    expected = []
    for _ in range(k):
        gain = (covers & left).sum(1).double()
        gain[expected] = -1
        best = max(range(n), key=lambda j: (float(gain[j]), float(rank[j]), -j))
        expected.append(best)
        add(best)
    assert found == expected


def test_without_a_trade_off_the_cut_takes_the_most_central():
    x = _points(30, 1)
    expected = _likeness(x).sum(0).topk(7).indices
    assert sorted(pick("cut 0", x, 7)) == sorted(expected.tolist())


def test_orthogonal_samples_come_before_any_copy_of_them():
    basis = torch.eye(5, dtype=torch.float64).repeat(3, 1)
    kernel = _kernel(basis, 0.01)
    found = log_det(lambda j: kernel[:, j], kernel.diagonal(), torch.zeros(15), 5)
    assert sorted(j % 5 for j in found.tolist()) == list(range(5))
    assert sorted(j % 5 for j in pick("sqrt", basis, 5)) == list(range(5))


@pytest.mark.parametrize("seed", range(5))
def test_with_a_small_ridge_the_picks_are_those_of_the_process_itself(seed):
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cosines = F.cosine_similarity(x[:, None], x[None], dim=2)
    kernel = _kernel(x, 1e-6)
    found = log_det(lambda j: kernel[:, j], kernel.diagonal(), -torch.arange(20.0), 6).tolist()
    chosen = []
    for _ in range(6):
        dets = {
            j: float(torch.linalg.det(cosines[[*chosen, j]][:, [*chosen, j]])) + 0.0
            for j in set(range(20)) - set(chosen)
        }
        chosen.append(max(dets, key=lambda j, d=dets: (round(d[j], 9), -j)))
    assert found == chosen


def test_a_saturated_feature_counts_no_more():
    x = torch.tensor([[10.0, 0.0], [9.0, 0.0], [8.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert feature_based(x, 2, "saturated", saturation=0.3).tolist() == [0, 3]
    assert feature_based(x, 2, "saturated", saturation=1.0).tolist() == [0, 1]


def _reference(kind, features):
    """The picks of four samples from explicit matrices."""
    if kind is FeatureBased:
        return feature_based(torch.cat([features.relu(), (-features).relu()], 1), 6, "sqrt")
    if kind is GraphCut:
        s = _likeness(features)
        return graph_cut(lambda j: s[:, j], s.sum(0), s.diagonal(), 6, 0.5)
    kernel = _kernel(features, 0.01)
    cosines = F.cosine_similarity(features[:, None], features[None], dim=2)
    return log_det(lambda j: kernel[:, j], kernel.diagonal(), cosines.sum(0), 6)


@pytest.mark.parametrize("kind", [FeatureBased, GraphCut, LogDet])
def test_the_features_are_those_of_the_head(fit, modality, kind):
    task = modality.task.eval()
    batch = {name: column[:60] for name, column in modality.columns.items()}
    features = task.features(batch).detach()
    picked = fit(kind(k=6), modality.task, modality.columns, batch_size=16).picked
    assert picked.tolist() == sorted(_reference(kind, features).tolist())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GraphCut(k=1, trade_off=0.6), r"`trade_off` must be in \[0, 0.5\], got 0.6"),
        (lambda: LogDet(k=1, ridge=0.0), "`ridge` must be positive, got 0.0"),
        (lambda: FeatureBased(k=1, function="exp"), "`function` must be one of"),
        (lambda: FeatureBased(k=1, saturation=0.0), r"`saturation` must be in \(0, 1\], got 0.0"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
