import math
from itertools import combinations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from erasus_pl.selectors import FacilityLocation
from erasus_pl.selectors.facility_location import facility_location


def matrix(n, seed, whole=False):
    generator = torch.Generator().manual_seed(seed)
    if whole:  # many ties
        return torch.randint(4, (n, n), generator=generator).double()
    return torch.rand(n, n, dtype=torch.float64, generator=generator)


def value(similarity, picked):
    return float(similarity[:, list(picked)].max(1).values.sum())


def greedy(similarity, k):
    """Every gain anew at every step; of equal ones that of the sample most alike to all."""
    picked, covered = [], torch.zeros(len(similarity), dtype=torch.float64)
    for _ in range(k):
        gains = (similarity - covered[:, None]).clamp(min=0).sum(0)
        gains[picked] = -1
        equal = gains >= gains.max() - 1e-9
        picked.append(int(similarity.sum(0).where(equal, torch.tensor(-1.0)).argmax()))
        covered = covered.maximum(similarity[:, picked[-1]])
    return picked


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 30), seed=st.integers(0, 99), whole=st.booleans(), data=st.data())
def test_lazy_is_greedy(n, seed, whole, data):
    similarity = matrix(n, seed, whole)
    k = data.draw(st.integers(1, n))
    assert facility_location(lambda j: similarity[:, j], n, k).tolist() == greedy(similarity, k)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 99), whole=st.booleans(), data=st.data())
def test_the_bound_of_the_greedy_rule(n, seed, whole, data):
    similarity = matrix(n, seed, whole)
    k = data.draw(st.integers(1, n))
    picked = facility_location(lambda j: similarity[:, j], n, k).tolist()
    best = max(value(similarity, c) for c in combinations(range(n), k))
    assert value(similarity, picked) >= (1 - 1 / math.e) * best - 1e-9
    assert k > 1 or value(similarity, picked) == best


def test_memory_is_linear_and_few_gains_are_computed():
    n, k = 3000, 30
    rows = F.normalize(torch.randn(n, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    asked = []

    def likeness(columns):
        asked.append(len(columns))
        return (1 + rows @ rows[columns].T) / 2

    facility_location(likeness, n, k)
    assert max(asked) * n <= 2**22
    assert sum(asked) < n + n * k / 3


def test_the_features_are_those_of_the_head(fit, modality):
    task = modality.task.eval()
    batch = {name: column[:60] for name, column in modality.columns.items()}
    features = task.features(batch).detach()
    likeness = (1 + F.cosine_similarity(features[:, None], features[None], dim=2)) / 2
    picked = fit(FacilityLocation(k=8), modality.task, modality.columns, batch_size=16).picked
    assert picked.tolist() == sorted(greedy(likeness, 8))


def test_copies_come_last():
    copies = torch.eye(4).repeat(5, 5)
    picked = facility_location(lambda j: copies[:, j], 20, 20).tolist()
    assert picked == list(range(20))
    assert facility_location(lambda _: torch.ones(20, len(_)), 20, 20).tolist() == picked


def test_of_two_that_are_near_each_other_alone_the_order_decides_nothing():
    points = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.7], dtype=torch.float64)
    for order in (torch.arange(5), torch.tensor([4, 2, 3, 0, 1])):
        near = 10 - (points[order][:, None] - points[order]).abs()
        assert order[facility_location(lambda j, s=near: s[:, j], 5, 2)].tolist() == [2, 3]
