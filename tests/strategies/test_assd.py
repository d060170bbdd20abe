"""The percentile, α against NumPy's percentile, and the whole edit against brute force."""

import copy
import math

import numpy as np
import pytest
import torch

from erasus_pl.strategies import ASSD
from erasus_pl.strategies.assd import adaptive_alpha, forget_percentile


def test_percentile_by_hand():
    assert forget_percentile(0, 10) == 100
    assert forget_percentile(1, 100) == pytest.approx(100 - math.log(2))
    assert forget_percentile(10, 10) == pytest.approx(95.3849, abs=1e-4)


@pytest.mark.parametrize("percentile", [0.0, 50.0, 97.6, 100.0])
def test_alpha_is_numpys_percentile_of_the_relative_importances(percentile):
    rng = np.random.default_rng(0)
    whole, forget = rng.random((2, 63)), rng.random((2, 63))
    whole[0, :5] = forget[0, :5] = 0  # 0 / 0: matters to neither
    with np.errstate(invalid="ignore"):
        right = np.nanpercentile(forget / whole, percentile)
    split = [torch.from_numpy(a).split([20, 43], 1) for a in (whole, forget)]
    assert adaptive_alpha(*split, percentile) == pytest.approx(right, rel=1e-12)


def test_without_any_importance_nothing_is_selected():
    assert adaptive_alpha([torch.zeros(3)], [torch.zeros(3)], 97.0) == math.inf


def importance(task, batches):
    """E[(∂ℓ/∂θ)²], a sample at a time, as one vector."""
    found = []
    for batch in batches:
        grads = torch.autograd.grad(task.loss(batch), list(task.parameters()))
        found.append(torch.cat([g.flatten() for g in grads]).square())
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_equals_brute_force_whatever_the_batch_size(batch_size, tiny, fit):
    data, task = tiny.data(), copy.deepcopy(tiny.task).double()
    if tiny.name == "images":
        data.columns["input"] = data.columns["input"].double()
    data.batch_size = data.forget_batch_size = batch_size
    strategy = fit(ASSD(copy.deepcopy(task)), data)
    data.batch_size = 1
    task.eval()
    forget_rows, retain_rows = list(data.sweep(data.forget_set)), list(data.sweep(data.retain_set))
    forget, whole = importance(task, forget_rows), importance(task, forget_rows + retain_rows)
    with np.errstate(invalid="ignore"):
        ratios = forget.numpy() / whole.numpy()
    alpha = np.nanpercentile(ratios, 100 - math.log(1 + 100 * 16 / 40))
    weights = torch.nn.utils.parameters_to_vector(task.parameters()).detach()
    selected = forget > alpha * whole
    right = torch.where(selected, weights * (whole / forget).clamp(max=1), weights)
    found = torch.nn.utils.parameters_to_vector(strategy.task.parameters()).detach()
    torch.testing.assert_close(found, right)
    assert 0 < selected.sum() <= math.ceil(math.log(41) / 100 * len(weights))


def test_forgets_most_of_a_class_and_keeps_the_rest_untuned(digits, fit):
    found = digits.measure(fit(ASSD(copy.deepcopy(digits.original)), digits.data()))
    assert found["forget"] < 0.5, found
    assert found["retain"] >= digits.retrained["retain"] - 0.01, found
    assert found["test"] >= digits.retrained["test"] - 0.01, found
