import math

import pytest
import torch

from erasus_pl.selectors import UPCORE
from erasus_pl.selectors.upcore import normality


def cloud(n, d, seed):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def average_path(n):
    """Mean depth of an unsuccessful search among n points (Liu et al. 2008, eq. 1)."""
    if n <= 2:
        return float(n - 1)
    return 2 * (math.log(n - 1) + 0.5772156649) - 2 * (n - 1) / n


def expected_depth(points, x, limit):
    """Of x in a random isolation tree on a line, over all trees: the splits are uniform.

    A split of the sorted points falls into a gap with the gap's share of the range.
    """
    points = sorted(points)
    if limit == 0 or len(points) == 1:
        return average_path(len(points))
    span = points[-1] - points[0]
    total = 1.0
    for i in range(len(points) - 1):
        side = points[: i + 1] if x <= points[i] else points[i + 1 :]
        total += (points[i + 1] - points[i]) / span * expected_depth(side, x, limit - 1)
    return total


def test_against_the_expectation_over_all_trees():
    points = [0.0, 0.3, 1.0, 1.2, 1.5, 2.6, 9.0]
    limit = math.ceil(math.log2(len(points)))
    c = average_path(len(points))
    truth = torch.tensor([-(2 ** (-expected_depth(points, x, limit) / c)) for x in points])
    column = torch.tensor(points, dtype=torch.float64)[:, None]
    found = normality(column, trees=800)
    torch.testing.assert_close(found.float(), truth, atol=0.03, rtol=0)
    assert found.argmin() == 6


def test_what_is_pruned_is_what_was_planted():
    points = cloud(300, 6, 0)
    outliers = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:30]
    points[outliers] = 8 * torch.nn.functional.normalize(points[outliers], dim=1)
    core = normality(points).topk(270).indices
    assert len(set(core.tolist()) & set(outliers.tolist())) <= 1
    assert points[core].var(0).sum() < points.var(0).sum() / 1.5


def test_the_features_are_those_of_the_head(fit, modality):
    task = modality.task.eval()
    batch = {name: column[:60] for name, column in modality.columns.items()}
    truth = normality(task.features(batch).detach(), trees=20, seed=5)
    selector = UPCORE(fraction=0.9, trees=20, seed=5)
    picked = fit(selector, modality.task, modality.columns, batch_size=16).picked
    assert (
        picked.tolist() == truth.sort(descending=True, stable=True).indices[:54].sort()[0].tolist()
    )


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="`trees` must be at least 1, got 0"):
        UPCORE(k=1, trees=0)
