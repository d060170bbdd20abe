"""The choice by hand, activations by brute force, and a network planted with a specialist."""

import copy

import pytest
import torch
from torch import nn

from erasus_pl.selectors import Selector
from erasus_pl.selectors.base import Coreset
from erasus_pl.strategies import NeuronPruning
from erasus_pl.strategies.neuron_pruning import pruned_neurons
from erasus_pl.tasks import ClassificationTask


def test_choice_by_hand():
    forget, retain = torch.tensor([1.0, 4.0, 0.0, 3.0]), torch.tensor([2.0, 1.0, 0.0, 0.0])
    # scores 1/3, 2, 0 and 3 with ε = 1
    assert pruned_neurons(forget, retain, 0.25, 1.0).tolist() == [False, False, False, True]
    assert pruned_neurons(forget, retain, 0.5, 1.0).tolist() == [False, True, False, True]
    assert not pruned_neurons(forget, retain, 0.0).any()
    assert pruned_neurons(forget, forget, 0.25).tolist()[2] is False


def test_removes_what_fires_for_the_forget_set_alone(tiny, fit):
    """Neuron 5 is the indicator of D_f, which is marked in the first feature."""
    if tiny.name == "text":
        pytest.skip("planted in an MLP")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        network[0].weight[5] = torch.tensor([1.0, 0, 0, 0, 0, 0])
        network[0].bias[5] = 0.0
    data = tiny.data()
    data.columns["input"][:, 0] = -1.0
    data.columns["input"][0:32:2, 0] = 1.0
    before = copy.deepcopy(network)
    strategy = fit(NeuronPruning(ClassificationTask(network), fraction=1 / 8), data)
    after, whole = strategy.task.network, data.columns["input"]
    assert torch.equal(after[2].weight[:, 5], torch.zeros(4))
    assert torch.equal(after[0].weight, before[0].weight)
    retained = torch.tensor([i for i in range(40) if i % 2 or i >= 32])
    torch.testing.assert_close(after(whole[retained]), before(whole[retained]))
    assert not torch.allclose(after(whole[0:32:2]), before(whole[0:32:2]))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_equals_brute_force_whatever_the_batch_size(batch_size, tiny, fit):
    """Mean |activation| at real positions, a sample at a time and weighted by the coreset."""
    picked, importance = torch.tensor([1, 4, 7]), torch.tensor([1.0, 2.0, 0.5])

    class Three(Selector):
        def select(self, strategy, dataset, k):
            return Coreset(picked, importance)

    reader = "4" if tiny.name == "images" else "blocks.0.down"
    data = tiny.data(batch_size=batch_size)
    strategy = NeuronPruning(copy.deepcopy(tiny.task), fraction=0.25)
    fit(strategy, data, callbacks=[Three(k=3)])
    task, seen = copy.deepcopy(tiny.task).eval(), []
    layer = task.network.get_submodule(reader)
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    data.batch_size = 1

    def mean(split, rows=None, weights=None):
        batches = list(data.sweep(getattr(data, f"{split}_set")))
        batches = batches if rows is None else [batches[i] for i in rows]
        weights = torch.ones(len(batches)) if weights is None else weights
        total, count = 0, 0
        for batch, weight in zip(batches, weights, strict=True):
            with torch.no_grad():
                task(batch)
            z = seen.pop()[0].reshape(-1, layer.in_features)
            if "attention_mask" in batch:
                z = z[batch["attention_mask"][0].bool()]
            total, count = total + weight * z.abs().sum(0), count + weight * len(z)
        return total / count

    scores = mean("forget", picked, importance) / (mean("retain") + 1e-5)
    top = scores.topk(round(0.25 * len(scores))).indices
    right = copy.deepcopy(layer.weight.detach())
    right[:, top] = 0
    assert torch.equal(strategy.task.network.get_submodule(reader).weight, right)


def test_layers_are_those_named(tiny, fit):
    name = "0" if tiny.name == "images" else "blocks.0.out"
    strategy = fit(
        NeuronPruning(copy.deepcopy(tiny.task), layers=(name,), fraction=0.5), tiny.data()
    )
    changed = {
        key
        for key, weight in strategy.task.network.named_parameters()
        if not torch.equal(weight, tiny.task.network.get_parameter(key))
    }
    assert changed == {f"{name}.weight"}


@pytest.mark.parametrize(
    ("network", "layers", "message"),
    [
        (nn.Linear(6, 4), (), "Linear has no linear layer that reads neurons"),
        (nn.Sequential(nn.Linear(6, 4)), ("1",), r"got \['1'\]; there are \['0'\]"),
    ],
)
def test_says_where_there_are_no_neurons(network, layers, message, tiny, fit):
    with pytest.raises(ValueError, match=message):
        fit(NeuronPruning(ClassificationTask(network), layers=layers), tiny.data())


@pytest.mark.parametrize(("name", "value"), [("fraction", 0.0), ("fraction", 1.5), ("epsilon", 0)])
def test_refuses_what_prunes_nothing(name, value, tiny):
    with pytest.raises(ValueError, match=f"`{name}` must be .* got {value}"):
        NeuronPruning(tiny.task, **{name: value})


def test_forgets_a_class_at_a_price(digits, fit):
    """Few of 64 hidden neurons serve one class alone."""
    strategy = NeuronPruning(copy.deepcopy(digits.original), fraction=0.15)
    found = digits.measure(fit(strategy, digits.data()))
    assert found["forget"] < 0.1, found
    assert 0.85 < found["retain"] < digits.retrained["retain"], found
