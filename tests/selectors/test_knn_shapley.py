import copy
import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasus_pl.selectors import KNNShapley
from erasus_pl.selectors.knn_shapley import knn_shapley


def worth(coalition, distance, right, neighbors):
    """The chance that the nearest of a coalition give to the right label."""
    nearest = sorted(coalition, key=lambda i: (float(distance[i]), float(right[i])))[:neighbors]
    return sum(float(right[i]) for i in nearest) / neighbors


def shapley(distance, right, neighbors):
    """From the definition: every player's gain over every coalition of the others."""
    n = len(distance)
    values = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            for coalition in combinations(others, size):
                gain = worth((*coalition, i), distance, right, neighbors)
                gain -= worth(coalition, distance, right, neighbors)
                values[i] += gain / (n * math.comb(n - 1, size))
    return values


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 7), m=st.integers(1, 3), neighbors=st.integers(1, 9),
    seed=st.integers(0, 99), tied=st.booleans(),
)  # fmt: skip
def test_against_the_definition(n, m, neighbors, seed, tied):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n + m, 2, dtype=torch.float64, generator=generator)
    points = points.sign() if tied else points
    labels = torch.randint(3, (n + m,), generator=generator)
    features, queries = points[:n], points[n:]
    distance = torch.cdist(queries, features)
    each = [shapley(distance[q], labels[:n] == labels[n + q], neighbors) for q in range(m)]
    found = knn_shapley(features, labels[:n], queries, labels[n:], neighbors)
    torch.testing.assert_close(found, torch.stack(each).mean(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_values_share_out_what_the_classifier_reaches(dtype):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 3, generator=generator).to(dtype)
    queries = torch.randn(70, 3, generator=generator).to(dtype)
    labels, answers = (features[:, 0] > 0).long(), (queries[:, 0] > 0).long()
    nearest = torch.cdist(queries, features).topk(5, largest=False).indices
    reached = (labels[nearest] == answers[:, None]).double().mean()
    found = knn_shapley(features, labels, queries, answers, 5)
    torch.testing.assert_close(found.sum(), reached)
    flipped = labels.clone()
    flipped[:20] = 1 - flipped[:20]
    assert knn_shapley(features, flipped, queries, answers, 5)[:20].mean() < found.min() / 2


@pytest.mark.parametrize("target", ["retain", "holdout", "forget"])
def test_the_selector_on_real_splits(fit, modality, target):
    scores = []

    class Spy(KNNShapley):
        def scores(self, strategy, dataset):
            scores.append(super().scores(strategy, dataset))
            return scores[-1]

    selector = Spy(k=9, target=target, neighbors=3)
    run = fit(selector, copy.deepcopy(modality.task), modality.columns, batch_size=16)
    task = modality.task.eval()

    def rows(dataset):
        """Features, label and sample of every prediction, a sample at a time."""
        found = []
        for i in range(len(dataset)):
            item = dataset[i]
            row = {k: torch.as_tensor(v)[None] for k, v in item.items()}
            inputs = task._head_input(row).detach()[0]
            if modality.name == "images":
                found.append((inputs, row["target"][0], i))
            else:
                for t, label in enumerate(row["labels"][0, 1:]):
                    if label != -100:
                        found.append((inputs[t], label, i))
        features, labels, owner = zip(*found, strict=True)
        return torch.stack(features), torch.stack(labels), torch.tensor(owner)

    features, labels, owner = rows(run.data.forget_set)
    queries, answers, _ = rows(getattr(run.data, f"{target}_set"))
    values = knn_shapley(features, labels, queries, answers, 3)
    truth = torch.stack([values[owner == i].sum() for i in range(60)])
    torch.testing.assert_close(scores[0], truth, atol=2e-11, rtol=0)
    torch.testing.assert_close(truth[run.picked].sort(descending=True)[0], truth.topk(9).values)


@pytest.mark.parametrize(("name", "value"), [("target", "train"), ("neighbors", 0), ("samples", 0)])
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must .*got"):
        KNNShapley(k=1, **{name: value})
