"""Consensus entry by entry, members in closed form on least squares, the limit of one member."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from torch import nn

from erasus_pl.strategies import NegMerge, TaskArithmetic
from erasus_pl.strategies.negmerge import sign_consensus
from erasus_pl.tasks import Task

VECTORS = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.integers(-3, 3), min_size=n, max_size=n), min_size=1, max_size=4)
)


@given(VECTORS)
def test_consensus_entry_by_entry(rows):
    found = sign_consensus(torch.tensor(rows, dtype=torch.float64))
    for i, value in enumerate(found.tolist()):
        column = [row[i] for row in rows]
        agreed = all(v > 0 for v in column) or all(v < 0 for v in column)
        assert value == pytest.approx(sum(column) / len(column) if agreed else 0.0)


@given(VECTORS)
def test_consensus_is_odd_and_does_not_know_the_order(rows):
    vectors = torch.tensor(rows, dtype=torch.float64)
    found = sign_consensus(vectors)
    torch.testing.assert_close(sign_consensus(-vectors), -found)
    torch.testing.assert_close(sign_consensus(vectors.flip(0)), found)


@pytest.fixture
def least_squares(tiny):
    if tiny.name == "text":
        pytest.skip("a linear model")
    torch.manual_seed(0)
    layer = nn.Linear(6, 1, bias=False).double()
    data = tiny.data(batch_size=64)
    data.columns["input"] = data.columns["input"].double()
    data.columns["target"] = data.columns["input"].sum(1, keepdim=True)
    return Task(layer, loss=nn.MSELoss()), data


def test_every_step_takes_back_what_the_members_agree_on(least_squares, fit):
    """Member k after t steps is 1 + (I − 2 lr_k XᵀX / n)ᵗ (θ_o − 1)."""
    task, data = least_squares
    scales, lr, lam, seen = (0.5, 1.0, 12.0), 0.02, 0.7, []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append(module.task.network.weight[0].detach().clone())

    strategy = NegMerge(
        copy.deepcopy(task), lambda p: torch.optim.SGD(p, lr=lr), lr_scales=scales, lam=lam
    )
    fit(strategy, data, max_epochs=4, callbacks=[Watch()])
    x = data.columns["input"][:32:2]
    original, right = task.network.weight.detach()[0], torch.ones(6, dtype=torch.float64)
    disagreed = 0
    for t, found in enumerate(seen, 1):
        vectors = []
        for scale in scales:
            step = torch.eye(6, dtype=torch.float64) - 2 * lr * scale * x.T @ x / len(x)
            tuned = right + torch.linalg.matrix_power(step, t) @ (original - right)
            vectors.append((tuned - original).tolist())
        merged = [
            sum(v) / 3 if min(v) > 0 or max(v) < 0 else 0.0 for v in zip(*vectors, strict=True)
        ]
        torch.testing.assert_close(found, original - lam * torch.tensor(merged).double())
        disagreed += 0.0 in merged
    assert disagreed  # the fast member has gone too far somewhere


@pytest.mark.parametrize("lam", [0.5, 1.0])
def test_a_single_member_is_task_arithmetic(lam, tiny, fit):
    def adam(p):
        return torch.optim.Adam(p, lr=1e-3)

    one = NegMerge(copy.deepcopy(tiny.task), adam, lr_scales=(1,), lam=lam)
    other = TaskArithmetic(copy.deepcopy(tiny.task), adam, lam=lam)
    found, right = (fit(s, tiny.data(), max_epochs=2).task.state_dict() for s in (one, other))
    for key, value in right.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)


def test_members_stay_out_of_the_model_and_learn_at_their_own_rate(tiny, fit):
    strategy = NegMerge(tiny.task, lambda p: torch.optim.SGD(p, lr=0.1), lr_scales=(0.5, 3))
    fit(strategy, tiny.data(), max_epochs=1)
    (optimizer,) = strategy.trainer.optimizers
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05, 0.3])
    assert all(p.grad is None for p in strategy.task.parameters())
    names = {k for k, _ in strategy.task.named_parameters()}
    assert all(member.keys() == names for member in strategy.members)


@pytest.mark.parametrize("scales", [(), (1.0, 0.0)])
def test_refuses_members_that_do_not_learn(scales, tiny):
    with pytest.raises(ValueError, match="`lr_scales` must be one or more numbers above 0, got"):
        NegMerge(tiny.task, lr_scales=scales)


def test_refuses_a_scaling_that_does_nothing(tiny):
    with pytest.raises(ValueError, match="`lam` must be above 0, got 0"):
        NegMerge(tiny.task, lam=0)


def test_forgets_a_class_and_keeps_most_of_the_rest(digits, fit):
    data = digits.data()
    data.seed = 0
    strategy = NegMerge(
        copy.deepcopy(digits.original), optimizer=lambda p: torch.optim.Adam(p, lr=3e-3)
    )
    found = digits.measure(fit(strategy, data, max_epochs=20))
    assert found["forget"] <= 0.05, found
    assert found["retain"] >= digits.retrained["retain"] - 0.04, found
    assert found["test"] >= digits.retrained["test"] - 0.05, found
