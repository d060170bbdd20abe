"""Which weights are drawn anew against brute force, and how much slower the others learn."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import Subset

from erasus_pl.strategies import MSG
from erasus_pl.strategies.msg import annealing, gradient_scale, smallest
from erasus_pl.tasks import ClassificationTask, Task


def sgd(lr=0.1):
    return lambda p: torch.optim.SGD(p, lr=lr)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.floats(0, 1))
def test_takes_the_smallest(values, fraction):
    gradient = torch.tensor(values, dtype=torch.float64)
    mask = smallest(gradient, fraction)
    assert mask.sum() == round(fraction * len(values))
    if mask.any() and not mask.all():
        assert gradient[mask].abs().max() <= gradient[~mask].abs().min()


def test_of_equal_ones_the_first_and_the_shape_stays():
    assert smallest(torch.tensor([[1.0, -1.0], [1.0, 0.0]]), 0.5).tolist() == [[1, 0], [0, 1]]


def test_scale_by_hand():
    scale = gradient_scale(torch.tensor([True, False]), 0.1)
    torch.testing.assert_close(scale, torch.tensor([1.0, 0.1]))


@pytest.mark.parametrize(
    ("epochs", "rates"),
    [
        (1, [1]),
        (2, [1, 1 / 2]),
        (4, [1 / 2, 1, 2 / 3, 1 / 3]),
        (5, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
    ],
)
def test_annealing_by_hand(epochs, rates):
    assert [annealing(e, epochs) for e in range(epochs)] == pytest.approx(rates)


def brute_gradient(task, data):
    """∇(mean over the drawn retain samples − mean over forget samples), a sample at a time."""
    drawn = torch.randperm(len(data.retain_set), generator=torch.Generator().manual_seed(5))
    retain = Subset(data.retain_set, drawn[: len(data.forget_set)].tolist())
    total = 0
    for dataset, sign in ((retain, 1), (data.forget_set, -1)):
        for batch in data.sweep(dataset):
            for i in range(len(batch["index"])):
                row = {k: v[i : i + 1] for k, v in batch.items()}
                found = torch.autograd.grad(task.loss(row), list(task.parameters()))
                total = total + sign * torch.cat([g.flatten() for g in found]) / len(dataset)
    return total


@pytest.mark.parametrize("batch_size", [1, 15, 16])
def test_the_weights_are_those_of_brute_force_whatever_the_batches(batch_size, tiny, fit):
    """The published code sums means of batches: the last of 15 and 1 would weigh as a full one."""
    data, task = tiny.data(batch_size=batch_size), copy.deepcopy(tiny.task).double().eval()
    if tiny.name == "images":
        data.columns["input"] = data.columns["input"].double()
    strategy = fit(MSG(copy.deepcopy(task)), data, max_steps=0, max_epochs=1)
    gradient = brute_gradient(task, data)
    spans = torch.split(gradient, [p.numel() for p in task.parameters()])
    by_name = dict(zip(dict(task.named_parameters()), spans, strict=True))
    linear = {f"{n}.weight" for n, m in task.named_modules() if isinstance(m, nn.Linear)}
    assert strategy.redrawn.keys() == linear
    for name, mask in strategy.redrawn.items():
        assert torch.equal(mask.flatten(), smallest(by_name[name], 0.3)), name


def test_draws_those_and_no_others_from_the_stated_normal(pictures, fit):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 30, 3, padding=1), nn.Flatten(),
        nn.Linear(720, 4),
    )  # fmt: skip
    before = copy.deepcopy(network.state_dict())
    strategy = MSG(ClassificationTask(network), init_rate=0.5)
    fit(strategy, pictures.data(), max_steps=0, max_epochs=1)
    assert strategy.redrawn.keys() == {"network.0.weight", "network.2.weight"}
    for key, value in network.state_dict().items():
        mask = strategy.redrawn.get(f"network.{key}", torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[~mask], before[key][~mask]), key
        assert not (value[mask] == before[key][mask]).any()
    drawn = network[2].weight[strategy.redrawn["network.2.weight"]]
    assert drawn.std().item() == pytest.approx((2 / (30 * 9)) ** 0.5, rel=0.05)
    assert abs(drawn.mean().item()) < 0.01


def test_kept_weights_learn_at_a_tenth_and_the_rest_in_full(pictures, fit):
    pictures.task.network[3].p = 0.0
    data = pictures.data()
    start = fit(MSG(copy.deepcopy(pictures.task)), data, max_steps=0, max_epochs=1).task.train()

    class First(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.batch = batch["retain"]

    first = First()
    after = MSG(copy.deepcopy(pictures.task), sgd())
    fit(after, data, max_steps=1, max_epochs=1, callbacks=[first])
    start.loss(first.batch).backward()
    for name, parameter in start.named_parameters():
        scale = torch.ones_like(parameter)
        if name in after.redrawn:
            scale[~after.redrawn[name]] = 0.1
        moved = after.task.get_parameter(name) - parameter
        torch.testing.assert_close(moved, -0.1 * scale * parameter.grad, rtol=1e-3, atol=1e-6)


def test_without_a_scale_the_kept_weights_stay(tiny, fit):
    strategy = MSG(copy.deepcopy(tiny.task), sgd(), kept_scale=0.0)
    fit(strategy, tiny.data(), max_epochs=2)
    for name, mask in strategy.redrawn.items():
        after, before = strategy.task.get_parameter(name), tiny.task.get_parameter(name)
        assert torch.equal(after[~mask], before[~mask])
        assert (after[mask] != before[mask]).any()


@pytest.mark.parametrize("tiny", ["images"], indirect=True)
def test_refuses_what_has_no_such_weight(fit, tiny):
    task = ClassificationTask(nn.BatchNorm1d(6))
    with pytest.raises(TypeError, match="BatchNorm1d has none that are not frozen; take FineTune"):
        fit(MSG(task), tiny.data())


def test_refuses_to_anneal_without_an_end(tiny, fit):
    with pytest.raises(ValueError, match="max_epochs to at least 1, got -1"):
        fit(MSG(tiny.task), tiny.data(), max_epochs=-1, max_steps=3)


@pytest.mark.parametrize(
    ("name", "value", "range_"), [("init_rate", 0, r"\(0, 1\]"), ("kept_scale", 2, r"\[0, 1\]")]
)
def test_refuses_values_out_of_range(name, value, range_):
    task = Task(nn.Linear(2, 1), nn.MSELoss())
    with pytest.raises(ValueError, match=f"`{name}` must be in {range_}, got {value}"):
        MSG(task, **{name: value})


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_forgets_most_of_a_class_and_keeps_most_of_the_rest(seed, convolved_digits, fit):
    """Which retain samples are drawn, and in which order, matters: the worst of eight are here."""
    strategy = MSG(copy.deepcopy(convolved_digits.original))
    data = convolved_digits.data()
    data.seed = seed
    found = convolved_digits.measure(fit(strategy, data, max_epochs=5))
    assert found["forget"] <= 0.15, found
    assert found["retain"] >= convolved_digits.retrained["retain"] - 0.05, found
    assert found["test"] >= convolved_digits.retrained["test"] - 0.05, found
