import statistics

import pytest
import torch
from torch import nn

from erasus_pl.selectors import Moderate
from erasus_pl.selectors.moderate import center_distance, moderateness
from erasus_pl.tasks import Task


def by_hand(features, classes):
    """The paper's rule, a sample at a time."""
    distances = []
    for row, own in zip(features, classes, strict=True):
        members = [f for f, c in zip(features, classes, strict=True) if c == own]
        center = sum(members) / len(members)
        distances.append(float(((row - center) ** 2).sum() ** 0.5))
    median = statistics.median_low(distances)
    return distances, sorted(range(len(distances)), key=lambda i: abs(distances[i] - median))


@pytest.mark.parametrize("seed", range(5))
def test_against_a_loop_over_samples(seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(21 + seed, 3, dtype=torch.float64, generator=generator)
    classes = torch.randint(3, (len(features),), generator=generator) * 5 - 1
    distances, order = by_hand(list(features), classes.tolist())
    found = center_distance(features, classes)
    torch.testing.assert_close(found, torch.tensor(distances, dtype=torch.float64))
    assert moderateness(found).argsort(descending=True).tolist() == order


def test_on_a_line():
    """Two classes around 0 and 100, at distances 1, 2, 3 and 9 on either side."""
    offsets = torch.tensor([1.0, -1, 2, -2, 3, -3, 9, -9])
    features = torch.cat([offsets, 100 + offsets])[:, None]
    classes = torch.tensor([0] * 8 + [1] * 8)
    assert center_distance(features, classes).tolist() == offsets.abs().tolist() * 2
    best = moderateness(center_distance(features, classes)).topk(4).indices
    assert sorted(best.tolist()) == [2, 3, 10, 11]


def test_one_of_a_class_is_its_centre():
    assert center_distance(torch.randn(3, 2), torch.tensor([4, 7, 2])).tolist() == [0, 0, 0]


def test_the_classes_are_those_of_the_task(fit, modality):
    task = modality.task.eval()
    batch = {name: column[:60] for name, column in modality.columns.items()}
    features = task.features(batch).detach()
    classes = batch["target"] if "target" in batch else torch.zeros(60)
    _, order = by_hand(list(features), classes.tolist())
    picked = fit(Moderate(k=8), modality.task, modality.columns, batch_size=16).picked
    assert sorted(picked.tolist()) == sorted(order[:8])


@pytest.mark.parametrize("modality", ["images"], indirect=True)
def test_real_targets_are_no_classes(fit, modality):
    task = Task.from_module(nn.Linear(12, 1).double(), loss=nn.MSELoss())
    columns = modality.columns | {"target": torch.randn(160, 1, dtype=torch.float64)}
    _, order = by_hand(list(columns["input"][:60]), [0] * 60)
    picked = fit(Moderate(k=8), task, columns, batch_size=16).picked
    assert sorted(picked.tolist()) == sorted(order[:8])
