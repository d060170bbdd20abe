from itertools import product

import pytest
import torch

from erasus_pl.selectors import KMeans
from erasus_pl.selectors.k_means import medoids


def cloud(n, d, seed):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def best_partition(points, k):
    """The clusters of least inertia, of all ways to put the points into k."""
    best, found = float("inf"), None
    for rest in product(range(k), repeat=len(points) - 1):
        labels = torch.tensor([0, *rest])
        if labels.unique().numel() < k:
            continue
        groups = [points[labels == c] for c in range(k)]
        inertia = sum((g - g.mean(0)).square().sum() for g in groups)
        if inertia < best:
            best, found = inertia, labels
    return found


@pytest.mark.parametrize(("k", "seed"), [(1, 0), (2, 1), (2, 2), (3, 3), (3, 4)])
def test_medoids_of_the_best_partition(k, seed):
    points = cloud(7, 2, seed)
    labels = best_partition(points, k)
    squared = torch.cdist(points, points).square()
    expected = []
    for c in range(k):
        members = (labels == c).nonzero().flatten()
        inner = squared[members][:, members].sum(1)
        expected.append(int(members[inner <= inner.min() + 1e-9][0]))
    assert medoids(points, k).tolist() == sorted(expected)


def test_one_of_each_cluster():
    centers = 50 * cloud(6, 3, 0)
    points = (centers[:, None] + cloud(60, 3, 1).view(6, 10, 3)).flatten(0, 1)
    assert (medoids(points, 6) // 10).tolist() == list(range(6))


@pytest.mark.parametrize("k", [1, 4, 5, 19, 20])
def test_copies_are_picked_once_each(k):
    points = torch.arange(4.0).repeat(5)[:, None]
    picked = medoids(points, k)
    assert picked.unique().numel() == k
    assert points[picked].unique().numel() == min(k, 4)
    assert medoids(torch.ones(20, 2), k).unique().numel() == k


def test_it_reads_the_features_of_the_head(fit, modality):
    task = modality.task.eval()
    batch = {name: column[:60] for name, column in modality.columns.items()}
    expected = medoids(task.features(batch).detach(), 8, seed=3)
    picked = fit(KMeans(k=8, seed=3), modality.task, modality.columns, batch_size=16).picked
    assert torch.equal(picked, expected)


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="`restarts` must be at least 1, got 0"):
        KMeans(k=1, restarts=0)
