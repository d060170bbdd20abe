import math
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasus_pl.selectors import DataShapley, data_shapley
from erasus_pl.selectors._heads import Game, fit, moments, worth
from erasus_pl.selectors.data_shapley import marginals


def game(n, rows=1, d=3, classes=3, held=9, seed=0, noise=()):
    """Rows of blobs; ``noise`` names samples with a wrong label."""
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(classes, d, generator=generator, dtype=torch.float64)

    def draw(*shape):
        labels = torch.randint(classes, shape, generator=generator)
        x = centers[labels] + torch.randn(*shape, d, generator=generator, dtype=torch.float64)
        return x, labels

    (x, y), (queries, answers) = draw(n, rows), draw(held)
    y[list(noise)] = (y[list(noise)] + 1) % classes
    if rows > 1:
        x[::2, -1], y[::2, -1] = 0, -1
    return Game(x, y, *moments(queries, answers, classes), 0.7), queries, answers


def performance(coalition, played, queries, answers):
    """From the definition: normal equations of the coalition, mean squared error on held rows."""
    d = queries.shape[1]
    gram, cross = played.ridge * torch.eye(d, dtype=torch.float64), queries.new_zeros(d, 3)
    for i in coalition:
        for x, label in zip(played.features[i], played.labels[i], strict=True):
            gram = gram + torch.outer(x, x)
            if label >= 0:
                cross[:, label] += x
    head = torch.linalg.inv(gram) @ cross
    hot = torch.eye(3, dtype=torch.float64)[answers]
    return float(1 - (hot - queries @ head).square().sum(1).mean())


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 5), rows=st.integers(1, 3), seed=st.integers(0, 99))
def test_all_orders_give_the_shapley_value(n, rows, seed):
    """Eq. 1, summed over all coalitions; and the values share out what all are worth."""
    played, queries, answers = game(n, rows, seed=seed)
    truth = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            for coalition in combinations(others, size):
                gain = performance((*coalition, i), played, queries, answers)
                gain -= performance(coalition, played, queries, answers)
                truth[i] += gain / (n * math.comb(n - 1, size))
    orders = torch.tensor(list(permutations(range(n))))
    found = marginals(played, orders)
    torch.testing.assert_close(found.mean(0), truth)
    nobody, everybody = (performance(c, played, queries, answers) for c in ((), range(n)))
    assert nobody == 0
    torch.testing.assert_close(found.sum(1), torch.full_like(found.sum(1), everybody))


def test_six_samples_in_all_orders():
    played, queries, answers = game(6, seed=5)
    orders = torch.tensor(list(permutations(range(6))))
    found = marginals(played, orders)
    for order, row in zip(orders[::97], found[::97], strict=True):
        prefix = [performance(order[:j].tolist(), played, queries, answers) for j in range(7)]
        gains = torch.tensor(prefix, dtype=torch.float64).diff()
        torch.testing.assert_close(row[order], gains)


def test_copies_have_one_value():
    played, _, _ = game(5, seed=2)
    played.features[3], played.labels[3] = played.features[1], played.labels[1]
    values = marginals(played, torch.tensor(list(permutations(range(5))))).mean(0)
    torch.testing.assert_close(values[3], values[1])
    assert (values[3] - values[[0, 2, 4]]).abs().min() > 1e-4


def test_who_brings_nothing_has_no_value():
    played, _, _ = game(5, rows=2, seed=3)
    played.features[2], played.labels[2] = 0, -1
    assert (marginals(played, torch.tensor([[0, 2, 1, 4, 3]]))[:, 2] == 0).all()


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("block", [1, 8, 64])
@pytest.mark.parametrize("tolerance", [0.05, 0.3])
def test_an_order_ends_where_the_algorithm_ends_it(monkeypatch, tolerance, block, rows):
    """Alg. 1, line by line."""
    monkeypatch.setattr(data_shapley, "_ROWS", block)
    played, queries, answers = game(30, rows, seed=4)
    everybody = performance(range(30), played, queries, answers)
    orders = torch.stack([torch.randperm(30, generator=torch.Generator().manual_seed(s))
                          for s in range(6)])  # fmt: skip
    found, ended = marginals(played, orders, tolerance), 0
    for order, row in zip(orders.tolist(), found, strict=True):
        value = 0.0
        for j, player in enumerate(order):
            if abs(everybody - value) < tolerance * abs(everybody):
                assert row[player] == 0
                ended += 1
                continue
            now = performance(order[: j + 1], played, queries, answers)
            assert float(row[player]) == pytest.approx(now - value, abs=1e-12)
            value = now
    assert 0 < ended < 180


def test_wrong_labels_have_low_values():
    """The paper's Sec. 4.3: values find mislabelled samples."""
    wrong = range(0, 60, 5)
    played, _, _ = game(60, d=5, held=300, seed=2, noise=wrong)
    orders = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(s))
                          for s in range(100)])  # fmt: skip
    values = marginals(played, orders).mean(0)
    bad = torch.zeros(60, dtype=torch.bool)
    bad[list(wrong)] = True
    auc = (values[~bad][:, None] > values[bad]).double().mean()
    assert auc > 0.9


def test_long_orders_stay_exact():
    played, _, _ = game(3000, d=6, seed=6)
    added = marginals(played, torch.arange(3000)[None])
    whole = worth(fit(played, torch.ones(1, 3000)), played)
    torch.testing.assert_close(added.sum(1), whole, atol=1e-10, rtol=0)


def test_it_says_when_values_have_not_settled(fit, modality):
    with pytest.warns(UserWarning, match="still move by .*raise `permutations`"):
        fit(DataShapley(k=3, permutations=101, convergence=1e-9), modality.task, modality.columns)


@pytest.mark.parametrize("target", ["retain", "holdout"])
def test_each_held_set_gives_other_values(fit, modality, target):
    scores = []

    class Spy(DataShapley):
        def scores(self, strategy, dataset):
            scores.append(super().scores(strategy, dataset))
            return scores[-1]

    options = {"permutations": 20, "tolerance": 0, "convergence": 0}
    run = fit(Spy(k=9, target=target, **options), modality.task, modality.columns)
    task = modality.task.eval()

    def read(dataset):
        """Inputs of the head and one-hot labels, a sample at a time."""
        found = []
        for i in range(len(dataset)):
            row = {k: torch.as_tensor(v)[None] for k, v in dataset[i].items()}
            inputs = task._head_input(row).detach()[0]
            if modality.name == "images":
                found.append((inputs[None], row["target"]))
            else:
                kept = row["labels"][0, 1:] != -100
                found.append((inputs[:-1][kept], row["labels"][0, 1:][kept]))
        return found

    mine = read(run.data.forget_set)
    held = read(getattr(run.data, f"{target}_set"))
    scale = torch.cat([x for x, _ in mine]).square().sum(1).mean().sqrt()
    classes = task.head.out_features

    def stack(parts):
        x = torch.cat([x for x, _ in parts]) / scale
        hot = torch.eye(classes, dtype=torch.float64)[torch.cat([y for _, y in parts])]
        return torch.cat([x, torch.ones(len(x), 1)], 1), hot

    x, hot = stack(mine)
    head = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ hot)
    queries, answers = stack(held)
    reached = 1 - (answers - queries @ head).square().sum(1).mean()
    torch.testing.assert_close(scores[0].sum(), reached)


@pytest.mark.parametrize(
    ("name", "value"),
    [("target", "test"), ("permutations", 0), ("tolerance", 1.0), ("convergence", -0.1),
     ("ridge", 0), ("samples", 0)],
)  # fmt: skip
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must .*got"):
        DataShapley(k=1, **{name: value})
