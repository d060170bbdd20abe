import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from erasus_pl.selectors import Glister
from erasus_pl.tasks import ClassificationTask


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def after(weight, gradients, picks, eta):
    step = sum((gradients[i] for i in picks), torch.zeros_like(weight))
    return weight - eta * step


def by_formula(gradients, loss, weight, k, eta, size=1):
    """Alg. 2 as it is written: autograd of the validation loss after the step, set by set."""
    picks = []
    while len(picks) < k:
        leaf = after(weight, gradients, picks, eta).requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf), leaf)
        gains = {i: float((g * slope).sum()) for i, g in enumerate(gradients) if i not in picks}
        picks += sorted(gains, key=gains.get, reverse=True)[: min(size, k - len(picks))]
    return picks


def by_brute_force(gradients, loss, weight, k, eta):
    """The greedy rule on the validation loss itself."""
    picks = []
    for _ in range(k):
        left = [i for i in range(len(gradients)) if i not in picks]
        picks.append(min(left, key=lambda i: loss(after(weight, gradients, [*picks, i], eta))))
    return picks


def problem(n=14, m=20):
    weight = draw(3, 5, seed=1)
    x, y = draw(n, 5, seed=2), torch.randint(3, (n,), generator=torch.Generator().manual_seed(3))
    xv, yv = draw(m, 5, seed=4), torch.randint(3, (m,), generator=torch.Generator().manual_seed(5))
    p = (x @ weight.T).softmax(1) - F.one_hot(y, 3)
    gradients = p[:, :, None] * x[:, None]
    return weight, gradients, lambda w: F.cross_entropy(xv @ w.T, yv)


def picks_of(weight, gradients, loss, k, eta, rounds):
    from erasus_pl.selectors.glister import glister

    def slope(w):
        leaf = w.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    return glister(
        lambda g: (gradients * g).sum((1, 2)), lambda i: gradients[i].sum(0), slope, weight, k,
        eta, rounds,
    ).tolist()  # fmt: skip


@pytest.mark.parametrize("eta", [0.01, 0.5, 5.0])
def test_against_the_formula(eta):
    weight, gradients, loss = problem()
    expected = by_formula(gradients, loss, weight, 8, eta)
    assert picks_of(weight, gradients, loss, 8, eta, 8) == expected
    assert picks_of(weight, gradients, loss, 8, eta, 99) == expected
    pairs = by_formula(gradients, loss, weight, 8, eta, size=2)
    assert picks_of(weight, gradients, loss, 8, eta, 4) == pairs
    if eta == 5.0:
        assert expected != pairs


@pytest.mark.parametrize("eta", [0.001, 0.01])
def test_against_brute_force_of_the_greedy_objective(eta):
    """The first-order gain orders as the loss itself does while steps are short."""
    weight, gradients, loss = problem()
    assert picks_of(weight, gradients, loss, 6, eta, 6) == by_brute_force(
        gradients, loss, weight, 6, eta
    )


def test_the_step_taken_changes_what_is_picked_next():
    """With no step it is a sort by the product with one gradient."""
    weight, gradients, loss = problem()
    modular = picks_of(weight, gradients, loss, 8, 1e-9, 8)
    leaf = weight.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf), leaf)
    assert modular == (gradients * slope).sum((1, 2)).topk(8).indices.tolist()
    assert picks_of(weight, gradients, loss, 8, 5.0, 8) != modular


def head_gradient(task, row):
    parameters = list(task.head.parameters())
    found = torch.autograd.grad(task.per_sample_loss(task(row), row).sum(), parameters)
    return torch.cat([g.reshape(len(found[0]), -1) for g in found], 1)


@pytest.mark.parametrize("target", ["holdout", "retain", "test"])
def test_the_selector_against_the_whole_network(fit, modality, target):
    """A sample at a time; the validation loss by setting the head and running the network."""
    run = fit(
        Glister(k=9, target=target, eta=0.5, rounds=3), copy.deepcopy(modality.task),
        modality.columns, batch_size=16,
    )  # fmt: skip
    task, data = copy.deepcopy(modality.task).eval(), run.data
    data.batch_size = 1
    gradients = [head_gradient(task, row) for row in data.sweep(data.forget_set)]
    data.batch_size = 200
    (whole,) = data.sweep(getattr(data, f"{target}_set"))
    head = task.head
    start = torch.cat([p.detach().reshape(len(head.weight), -1) for p in head.parameters()], 1)

    def slope(weight):
        with torch.no_grad():
            head.weight.copy_(weight[:, : head.in_features])
            if head.bias is not None:
                head.bias.copy_(weight[:, -1])
        parameters = list(head.parameters())
        found = torch.autograd.grad(task.per_sample_loss(task(whole), whole).mean(), parameters)
        return torch.cat([g.reshape(len(found[0]), -1) for g in found], 1)

    picks = []
    for _ in range(3):
        now = slope(after(start, gradients, picks, 0.5))
        gains = {i: float((g * now).sum()) for i, g in enumerate(gradients) if i not in picks}
        picks += sorted(gains, key=gains.get, reverse=True)[:3]
    assert sorted(run.picked.tolist()) == sorted(picks)


def test_a_budget_below_the_rounds(fit, modality):
    """The authors' code divides k by the rounds, gets 0 and never ends."""
    assert len(fit(Glister(k=2, rounds=15), modality.task, modality.columns).picked) == 2


@pytest.mark.parametrize("modality", ["images"], indirect=True)
def test_what_it_cannot_do_is_said(fit, modality):
    columns = {name: column.clone() for name, column in modality.columns.items()}
    columns["input"][17] = torch.nan
    with pytest.raises(ValueError, match="sample 17 of the training data"):
        fit(Glister(k=3), modality.task, columns)
    columns = {name: column.clone() for name, column in modality.columns.items()}
    columns["input"][70] = torch.nan
    with pytest.raises(ValueError, match="loss on the retain set is not finite"):
        fit(Glister(k=3, target="retain"), modality.task, columns)
    network = nn.Sequential(nn.Linear(12, 4), nn.Tanh()).double()
    with pytest.raises(TypeError, match="goes on after it; use GradMatch"):
        fit(Glister(k=3), ClassificationTask(network), modality.columns)


@pytest.mark.parametrize(
    ("name", "value"), [("target", "forget"), ("eta", 0.0), ("rounds", 0), ("samples", 0)]
)
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must .*got"):
        Glister(k=1, **{name: value})
