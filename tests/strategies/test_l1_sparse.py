"""The penalty pulls as written, falls as written, and without it this is fine-tuning."""

import copy

import pytest
import torch
from torch import nn

from erasus_pl.strategies import FineTune, L1Sparse
from erasus_pl.strategies.l1_sparse import l1_penalty, penalty_weight
from erasus_pl.tasks import ClassificationTask


def sgd(lr, **options):
    return lambda p: torch.optim.SGD(p, lr=lr, **options)


def test_weight_falls_linearly_and_reaches_nothing_after_the_last_epoch():
    assert [penalty_weight(0.2, t, 4) for t in range(5)] == pytest.approx([0.2, 0.15, 0.1, 0.05, 0])


def test_penalty_is_the_one_norm_of_all_parts_and_its_gradient_the_sign():
    parts = [torch.randn(3, 2, requires_grad=True), torch.randn(4, requires_grad=True)]
    whole = torch.cat([p.flatten() for p in parts])
    torch.testing.assert_close(l1_penalty(parts), torch.linalg.vector_norm(whole, 1))
    for part, found in zip(parts, torch.autograd.grad(l1_penalty(parts), parts), strict=True):
        assert torch.equal(found, part.sign())


def test_steps_are_those_of_the_written_formula(tiny, fit):
    """One full batch an epoch, so every step can be computed beside it."""
    for module in tiny.task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if tiny.name == "images":
        tiny.task.network[1] = nn.Identity()
    data = tiny.data(batch_size=100)
    strategy = L1Sparse(copy.deepcopy(tiny.task), sgd(0.1), gamma=0.03)
    fit(strategy, data, max_epochs=3)
    expected = copy.deepcopy(tiny.task)
    for t in range(3):
        (batch,) = data.sweep(data.retain_set)
        parameters = list(expected.parameters())
        gradient = torch.autograd.grad(expected.loss(batch), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradient, strict=True):
                p -= 0.1 * (g + 0.03 * (1 - t / 3) * p.sign())
    for name, p in expected.named_parameters():
        torch.testing.assert_close(strategy.task.get_parameter(name), p, rtol=1e-4, atol=1e-6)


def test_without_weight_it_is_fine_tuning(tiny, fit):
    runs = [
        fit(make(copy.deepcopy(tiny.task)), tiny.data()).state_dict()
        for make in (lambda t: L1Sparse(t, gamma=0.0), FineTune)
    ]
    for key, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][key])


def test_refuses_a_reward_for_large_weights_and_a_run_without_end(tiny, fit):
    with pytest.raises(ValueError, match="`gamma` must be at least 0, got -1"):
        L1Sparse(ClassificationTask(nn.Linear(2, 2)), gamma=-1)
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs to at least 1, got -1"):
        fit(L1Sparse(tiny.task), tiny.data(), max_epochs=-1, max_steps=1)


def test_on_digits_it_forgets_what_fine_tuning_does_not(digits, fit):
    runs = {
        cls.__name__: fit(cls(copy.deepcopy(digits.original), **options), digits.data(), 10)
        for cls, options in ((FineTune, {}), (L1Sparse, {"gamma": 0.02}))
    }
    found = {name: digits.measure(run) for name, run in runs.items()}
    assert found["FineTune"]["forget"] > 0.5, found
    assert found["L1Sparse"]["forget"] <= digits.retrained["forget"] + 0.05, found
    assert found["L1Sparse"]["retain"] >= digits.retrained["retain"] - 0.03, found
    assert found["L1Sparse"]["test"] >= digits.retrained["test"] - 0.04, found
    norms = {name: l1_penalty(list(run.task.parameters())).item() for name, run in runs.items()}
    assert norms["L1Sparse"] < 0.8 * norms["FineTune"], norms
