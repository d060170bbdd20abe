"""Only the last k layers move, and they move as fine-tuning a model with fixed features would."""

import copy

import pytest
import torch
from torch import nn

from erasus_pl.networks import MLP
from erasus_pl.strategies import CFk, FineTune
from erasus_pl.tasks import ClassificationTask
from erasus_pl.tasks.layers import layers

STACK = (nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 5), nn.BatchNorm1d(5))


def network():
    torch.manual_seed(3)
    parts = [copy.deepcopy(m) for m in STACK]
    return nn.Sequential(*parts, nn.ReLU(), nn.Linear(5, 4))


def plain(lr=0.05):
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=0.1)


def test_what_the_user_froze_among_the_last_layers_stays(tiny, fit):
    tiny.task.network = network() if tiny.name == "images" else tiny.task.network
    last = layers(tiny.task.network)[-1][0]
    last.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in tiny.task.named_parameters()}
    strategy = fit(CFk(copy.deepcopy(tiny.task), plain(), k=2), tiny.data())
    assert {n: p.requires_grad for n, p in strategy.task.named_parameters()} == flags
    assert torch.equal(layers(strategy.task.network)[-1][0].weight, last.weight)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        fit(CFk(copy.deepcopy(tiny.task), plain(), k=1), tiny.data())


@pytest.mark.parametrize("k", [1, 2])
def test_fixed_layers_keep_every_bit_and_the_others_move(k, tiny, fit):
    if tiny.name == "images":
        tiny.task.network = network()
    found = layers(tiny.task.network)
    strategy = fit(CFk(copy.deepcopy(tiny.task), plain(), k=k), tiny.data())
    now = layers(strategy.task.network)
    for i, (before, after) in enumerate(zip(found, now, strict=True)):
        for a, b in zip(before, after, strict=True):
            own = dict(a.named_parameters(recurse=False)) | dict(a.named_buffers(recurse=False))
            then = dict(b.named_parameters(recurse=False)) | dict(b.named_buffers(recurse=False))
            moved = [n for n, v in own.items() if not torch.equal(v, then[n])]
            assert bool(moved) == (i >= len(found) - k), (i, moved)
    assert all(m.training for m in strategy.task.network.modules())


def test_equals_gradient_descent_on_the_head_over_fixed_features(tiny, fit):
    if tiny.name == "text":
        pytest.skip("the closed form is of a linear head on class labels")
    tiny.task.network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    data = tiny.data(batch_size=100)
    strategy = CFk(copy.deepcopy(tiny.task), lambda p: torch.optim.SGD(p, lr=0.3))
    fit(strategy, data, max_epochs=5)
    (batch,) = data.sweep(data.retain_set)
    with torch.no_grad():
        x = tiny.task.network[:2](batch["input"])
        weight, bias = (p.clone() for p in tiny.task.network[2].parameters())
        hot = torch.eye(4)[batch["target"]]
        for _ in range(5):
            error = ((x @ weight.T + bias).softmax(-1) - hot) / len(x)
            weight -= 0.3 * error.T @ x
            bias -= 0.3 * error.sum(0)
    torch.testing.assert_close(strategy.task.network[2].weight.data, weight)
    torch.testing.assert_close(strategy.task.network[2].bias.data, bias)


def test_with_every_layer_it_is_fine_tuning(tiny, fit):
    all_layers = len(layers(tiny.task.network))
    runs = [
        fit(make(copy.deepcopy(tiny.task)), tiny.data()).state_dict()
        for make in (lambda t: CFk(t, plain(), k=all_layers), lambda t: FineTune(t, plain()))
    ]
    for key, value in runs[0].items():
        assert torch.equal(value, runs[1][key]), key


@pytest.mark.parametrize("k", [0, 3])
def test_refuses_layers_that_are_not_there(k):
    with pytest.raises(ValueError, match=rf"`k` must be in \[1, 2\].*got {k}"):
        CFk(ClassificationTask(MLP(4, [3], 2)), k=k)


def test_on_digits_the_head_alone_forgets_less_than_all_layers_do(digits, fit):
    found = {
        k: digits.measure(fit(CFk(copy.deepcopy(digits.original), k=k), digits.data(), 10))
        for k in (1, 2)
    }
    assert found[2]["forget"] < found[1]["forget"] < digits.before["forget"], found
    assert found[1]["retain"] >= digits.before["retain"] - 0.01, found
