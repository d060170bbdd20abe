"""The reflection in closed form, a quadratic solved by hand, and fine-tuning done separately."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from torch import nn

from erasus_pl.strategies import TaskArithmetic
from erasus_pl.strategies.task_arithmetic import negate_task_vector
from erasus_pl.tasks import Task


@given(st.floats(0.05, 2), st.floats(-3, 3), st.floats(-3, 3))
def test_negation_and_its_inverse(lam, original, tuned):
    original, tuned = torch.tensor([original, tuned], dtype=torch.float64)
    there = negate_task_vector(original, tuned, lam)
    torch.testing.assert_close(there, (1 + lam) * original - lam * tuned)
    torch.testing.assert_close(negate_task_vector(original, there, 1 / lam), tuned)


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_on_least_squares_every_step_mirrors_gradient_descent(lam, tiny, fit):
    if tiny.name == "text":
        pytest.skip("a linear model")
    torch.manual_seed(0)
    layer = nn.Linear(6, 1, bias=False).double()
    data = tiny.data(batch_size=64)
    data.columns["input"] = data.columns["input"].double()
    data.columns["target"] = data.columns["input"].sum(1, keepdim=True)
    task = Task(layer, loss=nn.MSELoss())
    strategy = TaskArithmetic(
        copy.deepcopy(task), lam=lam, optimizer=lambda p: torch.optim.SGD(p, lr=0.01)
    )
    fit(strategy, data, max_epochs=3)
    x = data.columns["input"][:32:2]
    original, right = layer.weight.detach()[0], torch.ones(6, dtype=torch.float64)
    step = torch.eye(6, dtype=torch.float64) - 0.02 * x.T @ x / len(x)
    tuned = right + torch.linalg.matrix_power(step, 3) @ (original - right)
    torch.testing.assert_close(
        strategy.task.network.weight[0].detach(), original - lam * (tuned - original)
    )


def test_holds_the_unlearned_model_whenever_it_is_seen(tiny, fit):
    """The same steps, taken by a plain optimiser on a copy and then reflected."""

    class Watch(Callback):
        def __init__(self):
            self.seen, self.batches = [], []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.seen.append(copy.deepcopy(module.task.state_dict()))
            self.batches.append(batch["forget"])

    for module in tiny.task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    watch = Watch()
    strategy = TaskArithmetic(
        copy.deepcopy(tiny.task), lam=0.5, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3)
    )
    fit(strategy, tiny.data(), max_epochs=2, callbacks=[watch])
    task = copy.deepcopy(tiny.task).eval()
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-3)
    before = tiny.task.state_dict()
    for batch, seen in zip(watch.batches, watch.seen, strict=True):
        optimizer.zero_grad()
        task.loss(batch).backward()
        optimizer.step()
        for name, tuned in task.state_dict().items():
            if tuned.is_floating_point():
                right = before[name] - 0.5 * (tuned - before[name])
                torch.testing.assert_close(seen[name], right, rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(seen[name], before[name])


def test_refuses_a_scaling_that_does_nothing(tiny):
    with pytest.raises(ValueError, match="`lam` must be above 0, got 0"):
        TaskArithmetic(tiny.task, lam=0)


def test_forgets_a_class_and_keeps_most_of_the_rest(digits, fit):
    strategy = TaskArithmetic(
        copy.deepcopy(digits.original), optimizer=lambda p: torch.optim.Adam(p, lr=3e-3)
    )
    found = digits.measure(fit(strategy, digits.data(), max_epochs=20))
    assert found["forget"] <= 0.05, found
    assert found["retain"] >= digits.retrained["retain"] - 0.03, found
    assert found["test"] >= digits.retrained["test"] - 0.05, found
