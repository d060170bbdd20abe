"""Both sides of the system against each other, and a linear model against retraining."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from erasus_pl.selectors import Selector
from erasus_pl.selectors.base import Coreset
from erasus_pl.strategies import NTKForgetting
from erasus_pl.strategies.ntk import kernel_weights, primal_weights
from erasus_pl.tasks import Task

DECAY = 0.03


@given(st.integers(1, 12), st.integers(1, 12), st.floats(1e-3, 10), st.integers(0, 99))
def test_both_sides_minimise_the_linearised_loss(rows, weights, decay, seed):
    """½ ‖r + Gᵀ w‖² + ½ decay ‖w‖² has no gradient there."""
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(rows, weights, generator=generator, dtype=torch.float64)
    residual = torch.randn(rows, generator=generator, dtype=torch.float64)
    w = kernel_weights(jacobian, residual, decay)
    other = primal_weights(jacobian.T @ jacobian, jacobian.T @ residual, decay)
    torch.testing.assert_close(w, other, rtol=1e-7, atol=1e-9)
    gradient = jacobian.T @ (residual + jacobian @ w) + decay * w
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-8)


@pytest.fixture
def images(tiny):
    if tiny.name == "text":
        pytest.skip("one output vector for each sample")
    return tiny


def ridge(x, y):
    """argmin ½ Σ ‖W x + b − y‖² + ½ n λ (‖W‖² + ‖b‖²)."""
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(x.T @ x + len(x) * DECAY * eye, x.T @ y).T


def linear(images, outputs, expand=0):
    """A linear model trained by least squares, its data, and the weights of retraining."""
    generator = torch.Generator().manual_seed(0)
    data = images.data()
    x = data.columns["input"].double()
    if expand:
        x = x @ torch.randn(6, expand, generator=generator, dtype=torch.float64)
    y = torch.randn(len(x), outputs, generator=generator, dtype=torch.float64) + x[:, :outputs]
    data.columns |= {"input": x, "target": y}
    data.setup("validate")
    layer = nn.Linear(x.shape[1], outputs).double()
    trained = ridge(x[:40], y[:40])
    with torch.no_grad():
        layer.weight.copy_(trained[:, :-1])
        layer.bias.copy_(trained[:, -1])
    kept = data.retain_set.positions
    return Task(layer, loss=nn.MSELoss()), data, ridge(x[kept], y[kept])


@pytest.mark.parametrize(("outputs", "expand", "side"), [(3, 0, "primal"), (2, 200, "kernel")])
def test_on_least_squares_it_is_retraining(outputs, expand, side, images, fit):
    task, data, retrained = linear(images, outputs, expand)
    before = copy.deepcopy(task.network.weight)
    strategy = fit(NTKForgetting(task, weight_decay=DECAY), data)
    assert strategy.side == side
    found = torch.cat([task.network.weight, task.network.bias[:, None]], 1).detach()
    torch.testing.assert_close(found, retrained, rtol=1e-8, atol=1e-9)
    assert (before - retrained[:, :-1]).abs().max() > 1e-3


def test_the_published_centre_of_decay_misses_retraining(images):
    """With f(θ_o) − y for f_0 − y, weights decay to θ_o and not to 0."""
    task, data, retrained = linear(images, 1)
    x, y = data.columns["input"], data.columns["target"]
    theta = torch.cat([task.network.weight[0], task.network.bias]).detach()
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    kept = data.retain_set.positions
    ends = []
    for offset in (0, 1):  # the published residual, then that of w = 0
        residual = (rows @ theta)[:, None] - y - offset * (rows @ theta)[:, None]
        step = [
            kernel_weights(rows[i], residual[i, 0], len(i) * DECAY)
            for i in (kept, torch.arange(40))
        ]
        ends.append(theta + step[0] - step[1])
    torch.testing.assert_close(ends[1], retrained[0], rtol=1e-8, atol=1e-9)
    assert (ends[0] - retrained[0]).norm() > 1e-3


def brute(task, data, decay):
    """w_Dr − w_D with a Jacobian from torch.func and a general solver."""
    parameters = {k: p.detach() for k, p in task.network.named_parameters()}
    theta = torch.cat([p.flatten() for p in parameters.values()])

    def end(positions):
        x, y = (data.columns[k][positions] for k in ("input", "target"))

        def outputs(p):
            return torch.func.functional_call(task.network, p, (x,))

        jacobian = torch.func.jacrev(outputs)(parameters)
        rows = torch.cat([j.flatten(2) for j in jacobian.values()], 2).flatten(0, 1)
        p = outputs(parameters).softmax(-1)
        p[torch.arange(len(x)), y] -= 1
        residual = p.flatten() - rows @ theta
        eye = torch.eye(len(theta), dtype=rows.dtype)
        return -torch.linalg.solve(rows.T @ rows + len(x) * decay * eye, rows.T @ residual)

    return end(data.retain_set.positions) - end(torch.arange(40))


@pytest.mark.parametrize("width", [4, 40])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_on_a_network_it_is_the_written_formula(width, batch_size, images, fit):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4)).double()
    task = type(images.task)(network)
    data = images.data(batch_size=batch_size)
    data.columns["input"] = data.columns["input"].double()
    data.setup("validate")
    right = brute(copy.deepcopy(task), data, 0.01)
    before = torch.cat([p.detach().flatten() for p in task.parameters()])
    strategy = fit(NTKForgetting(task, weight_decay=0.01, scale=0.5), data)
    assert strategy.side == ("primal" if width == 4 else "kernel")
    after = torch.cat([p.detach().flatten() for p in task.parameters()])
    torch.testing.assert_close(after - before, 0.5 * right, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("expand", [0, 200])
def test_a_coreset_stands_for_the_forget_set(expand, images, fit):
    """The whole set, halved and weighted by any constant, gives what the whole set gives."""

    class Half(Selector):
        def select(self, strategy, dataset, k):
            return Coreset(torch.arange(8), torch.full((8,), 3.0))

    task, data, _ = linear(images, 1, expand)
    names = ("input", "target")
    forget = data.forget_set.positions
    for name in names:  # the second half of the forget set repeats the first
        data.columns[name][forget[8:]] = data.columns[name][forget[:8]]
    data = type(data)(data.columns, batch_size=6, seed=5)
    other = copy.deepcopy(task)
    whole = fit(NTKForgetting(task, weight_decay=DECAY), data).task.network.weight
    half = fit(NTKForgetting(other, weight_decay=DECAY), data, callbacks=[Half(k=8)])
    torch.testing.assert_close(half.task.network.weight, whole, rtol=1e-7, atol=1e-9)


def test_refuses_what_does_not_fit_and_says_what_would(images, fit):
    with pytest.raises(ValueError, match=r"needs 0\.0 GiB for .* at most 5 weights are trainable"):
        fit(NTKForgetting(images.task, memory=1e-6), images.data())
    for parameter in images.task.parameters():
        parameter.requires_grad_(False)
    images.task.head.bias.requires_grad_(True)
    fit(NTKForgetting(images.task, memory=1e-6), images.data())


@pytest.mark.parametrize("name", ["weight_decay", "scale", "memory"])
def test_refuses_values_out_of_range(name, images):
    with pytest.raises(ValueError, match=f"`{name}` must be above 0, got 0"):
        NTKForgetting(images.task, **{name: 0})


def test_leaves_a_class_of_digits_in_place(digits, fit):
    """A report must not hide that. The head alone is linear, and no better."""
    original = copy.deepcopy(digits.original)
    for parameter in original.parameters():
        parameter.requires_grad_(False)
    original.head.requires_grad_(True)
    found = digits.measure(fit(NTKForgetting(original), digits.data()))
    assert found["forget"] > 0.9, found
    assert found["retain"] > 0.98, found
