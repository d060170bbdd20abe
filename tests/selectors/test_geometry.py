from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasus_pl.selectors import Herding, KCenter
from erasus_pl.selectors.herding import herding
from erasus_pl.selectors.k_center import k_center


def cloud(n, d, seed, copies=False):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return points[torch.randint(max(1, n // 3), (n,), generator=generator)] if copies else points


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 15), d=st.integers(1, 4), seed=st.integers(0, 99), data=st.data())
def test_herding_is_the_greedy_rule_of_icarl(n, d, seed, data):
    features = cloud(n, d, seed)
    k = data.draw(st.integers(1, n))
    mean, picked = features.mean(0), herding(features, k).tolist()
    assert len(set(picked)) == k
    for step in range(k):
        so_far = features[picked[:step]].sum(0)
        left = [i for i in range(n) if i not in picked[:step]]
        gaps = {i: float((mean - (features[i] + so_far) / (step + 1)).norm()) for i in left}
        assert gaps[picked[step]] <= min(gaps.values()) + 1e-9


def test_herding_follows_the_mean_better_than_chance():
    features = cloud(400, 5, 0)
    mean = features.mean(0)
    herded = (features[herding(features, 20)].mean(0) - mean).norm()
    drawn = [(features[torch.randperm(400)[:20]].mean(0) - mean).norm() for _ in range(50)]
    assert herded < min(drawn) / 3


def test_herding_follows_a_mean_that_is_given():
    features = cloud(50, 3, 0)
    assert herding(features, 1, features[17])[0] == 17


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), d=st.integers(1, 3), seed=st.integers(0, 99), data=st.data())
def test_k_center_is_greedy_and_within_twice_the_optimum(n, d, seed, data):
    features = cloud(n, d, seed)
    k, start = data.draw(st.integers(1, n)), data.draw(st.integers(0, n - 1))
    distance = torch.cdist(features, features)
    chosen = [start]
    while len(chosen) < k:
        chosen.append(int(distance[:, chosen].min(1).values.argmax()))
    picked = k_center(features, k, start).tolist()
    assert picked == chosen
    radius = distance[:, picked].min(1).values.max()
    best = min(distance[:, list(c)].min(1).values.max() for c in combinations(range(n), k))
    assert radius <= 2 * best + 1e-12


@pytest.mark.parametrize("select", [lambda x, k: k_center(x, k, 0), herding])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_copies_are_picked_once_each(select, k):
    for features in (cloud(20, 2, 0, copies=True), torch.ones(20, 2)):
        assert select(features, k).unique().numel() == k


def test_k_center_takes_one_of_each_copy_first():
    features = torch.arange(4.0).repeat(5)[:, None]
    assert sorted(features[k_center(features, 4, 7), 0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [KCenter, Herding])
def test_the_features_are_those_of_the_head(fit, modality, kind):
    task = modality.task.eval()
    batch = {name: column[:60] for name, column in modality.columns.items()}
    features = task.features(batch).detach()
    if kind is KCenter:
        start = int(torch.randint(60, (), generator=torch.Generator().manual_seed(0)))
        expected = k_center(features, 8, start)
    else:
        features = torch.nn.functional.normalize(features, dim=1)
        mean = torch.nn.functional.normalize(features.mean(0), dim=0)
        expected = herding(features, 8, mean)
    picked = fit(kind(k=8), modality.task, modality.columns, batch_size=16).picked
    assert sorted(picked.tolist()) == sorted(expected.tolist())


def test_without_scaling_long_features_lead(fit, modality):
    task = modality.task.eval()
    batch = {name: column[:60] for name, column in modality.columns.items()}
    expected = herding(task.features(batch).detach(), 8)
    picked = fit(Herding(k=8, normalize=False), modality.task, modality.columns).picked
    assert sorted(picked.tolist()) == sorted(expected.tolist())
