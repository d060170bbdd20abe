"""The direction where influence is exact, and the whole edit against dense linear algebra."""

import copy

import pytest
import torch

from erasus_pl.selectors import Selector
from erasus_pl.selectors.base import Coreset
from erasus_pl.strategies import WoodFisher
from erasus_pl.strategies.woodfisher import reweighting_gradient


def test_is_the_way_to_the_retrained_mean():
    """For ℓ_i = ½ ‖θ − x_i‖² the Hessian is the identity and the step is exact."""
    torch.manual_seed(0)
    x = torch.randn(20, 3, dtype=torch.float64)
    original, retrained = x.mean(0), x[6:].mean(0)
    gradients = original - x
    step = reweighting_gradient(gradients[:6].mean(0), gradients[6:].mean(0), 6, 14)
    torch.testing.assert_close(original + step, retrained)
    weights = torch.tensor([1 / 20] * 6 + [1 / 20 - 1 / 14] * 14, dtype=torch.float64)
    torch.testing.assert_close(step, weights @ gradients)


def gradients(task, data, split):
    """A sample at a time, `(n, P)`."""
    data.batch_size = 1
    return torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(task.loss(b), list(task.parameters()))]
            )
            for b in data.sweep(getattr(data, f"{split}_set"))
        ]
    )


def double(tiny):
    data = tiny.data()
    if tiny.name == "images":
        data.columns["input"] = data.columns["input"].double()
    return copy.deepcopy(tiny.task).double(), data


def weights(task):
    return torch.nn.utils.parameters_to_vector(task.parameters()).detach()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_equals_dense_linear_algebra_whatever_the_batch_size(batch_size, tiny, fit):
    task, data = double(tiny)
    data.batch_size = data.forget_batch_size = batch_size
    strategy = fit(WoodFisher(copy.deepcopy(task), alpha=2.0, damping=0.1), data)
    task.eval()
    forget, retain = gradients(task, data, "forget"), gradients(task, data, "retain")
    fisher = retain.T @ retain / 24 + 0.1 * torch.eye(retain.shape[1], dtype=torch.float64)
    v = forget.sum(0) / 40 - 16 / 24 * retain.sum(0) / 40
    right = weights(task) + 2.0 * torch.linalg.solve(fisher, v)
    torch.testing.assert_close(weights(strategy.task), right)


def test_a_weighted_coreset_estimates_the_forget_gradient(tiny, fit):
    picked = torch.tensor([1, 4, 7])
    importance = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

    class Three(Selector):
        def select(self, strategy, dataset, k):
            return Coreset(picked, importance)

    task, data = double(tiny)
    strategy = fit(WoodFisher(copy.deepcopy(task), damping=1e6), data, callbacks=[Three(k=3)])
    task.eval()
    forget, retain = gradients(task, data, "forget")[picked], gradients(task, data, "retain")
    v = 16 / 40 * (importance @ forget / 3.5 - retain.mean(0))
    torch.testing.assert_close(
        (weights(strategy.task) - weights(task)) * 1e6, v, rtol=1e-4, atol=1e-6
    )


def test_draws_the_samples_of_the_fisher_under_the_seed(tiny, fit):
    once, twice, other = (
        fit(WoodFisher(copy.deepcopy(tiny.task), samples=5, damping=0.1), tiny.data(seed=s))
        for s in (5, 5, 6)
    )
    assert torch.equal(weights(once.task), weights(twice.task))
    assert not torch.allclose(weights(once.task), weights(other.task))


@pytest.mark.parametrize(
    ("name", "value", "range_"), [("samples", 0, "at least 1"), ("damping", 0, "above 0")]
)
def test_refuses_what_has_no_inverse(name, value, range_, tiny):
    with pytest.raises(ValueError, match=f"`{name}` must be {range_}, got {value}"):
        WoodFisher(tiny.task, **{name: value})


def test_forgets_a_class_in_one_step(digits, fit):
    strategy = WoodFisher(copy.deepcopy(digits.original), damping=0.01)
    found = digits.measure(fit(strategy, digits.data()))
    assert found["forget"] <= 0.05, found
    assert found["retain"] >= digits.retrained["retain"] - 0.03, found
    assert found["test"] >= digits.retrained["test"] - 0.04, found
