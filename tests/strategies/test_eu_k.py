"""The last k layers start as if the original had never been; all others keep every bit."""

import copy

import pytest
import torch
from torch import nn

from erasus_pl.networks import MLP
from erasus_pl.strategies import EUk, Retrain
from erasus_pl.strategies.eu_k import redraw
from erasus_pl.tasks import ClassificationTask
from erasus_pl.tasks.layers import layers


def still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def own(layer):
    return {
        (i, n): v.detach().clone()
        for i, m in enumerate(layer)
        for n, v in (*m.named_parameters(recurse=False), *m.named_buffers(recurse=False))
    }


@pytest.mark.parametrize("k", [1, 2])
def test_fixed_layers_keep_every_bit_and_the_others_start_afresh(k, tiny, fit):
    before = [own(layer) for layer in layers(tiny.task.network)]
    strategy = fit(EUk(copy.deepcopy(tiny.task), k=k), tiny.data())
    after = [own(layer) for layer in layers(strategy.task.network)]
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        same = all(torch.equal(v, b[n]) for n, v in a.items())
        assert same == (i < len(before) - k), i


def test_where_it_starts_has_nothing_of_the_original(tiny, fit):
    """Two originals that differ in the last layer alone become the same model."""
    other = copy.deepcopy(tiny.task)
    with torch.no_grad():
        other.head.weight.add_(1.0)
    runs = [
        fit(EUk(copy.deepcopy(t), seed=4), tiny.data()).state_dict() for t in (tiny.task, other)
    ]
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_with_every_layer_it_is_retraining(tiny, fit):
    found = len(layers(tiny.task.network))
    runs = [
        fit(s, tiny.data()).state_dict()
        for s in (
            EUk(copy.deepcopy(tiny.task), k=found, seed=4),
            Retrain(copy.deepcopy(tiny.task), seed=4),
        )
    ]
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_the_draw_follows_the_seed_and_leaves_the_generator_alone(tiny, fit):
    state = torch.get_rng_state()
    heads = []
    for seed in (1, 1, 2):
        network = copy.deepcopy(tiny.task.network)
        redraw(layers(network)[-1], seed)
        heads.append(layers(network)[-1][0].weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert torch.equal(torch.get_rng_state(), state)
    run = fit(EUk(copy.deepcopy(tiny.task), still, seed=2), tiny.data())
    assert torch.equal(run.task.head.weight, heads[2])


def test_what_the_user_froze_is_not_drawn_anew():
    layer, norm = nn.Linear(3, 2), nn.BatchNorm1d(2).requires_grad_(False)
    layer.bias.requires_grad_(False)
    norm.running_mean.fill_(5.0)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    redraw([layer, norm], 7)
    assert torch.equal(layer.bias, bias)
    assert not torch.equal(layer.weight, weight)
    assert norm.running_mean.tolist() == [5.0, 5.0]


def test_refuses_layers_that_are_not_there():
    with pytest.raises(ValueError, match=r"`k` must be in \[1, 2\].*got 3"):
        EUk(ClassificationTask(MLP(4, [3], 2)), k=3)


def test_on_digits_one_layer_over_the_originals_features_forgets_the_class(digits, fit):
    """Exact in its one layer: no head that never saw a three predicts one."""
    found = digits.measure(fit(EUk(copy.deepcopy(digits.original)), digits.data(), 30))
    assert found["forget"] == digits.retrained["forget"] == 0.0, found
    assert found["retain"] >= digits.retrained["retain"] - 0.03, found
    assert found["test"] >= digits.retrained["test"] - 0.04, found
