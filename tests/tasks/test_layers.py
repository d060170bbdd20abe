"""What counts as a layer, and that one which is held neither learns nor drifts."""

import copy

import torch
from torch import nn

from erasus_pl.networks import TinyLlama
from erasus_pl.tasks.layers import Hold, layers


def test_norms_belong_to_the_layer_before_them():
    net = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 5),
        nn.BatchNorm1d(5, affine=False), nn.Linear(5, 4),
    )  # fmt: skip
    assert layers(net) == [[net[0], net[1]], [net[3], net[4]], [net[5]]]
    headed = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4))
    assert layers(headed) == [[headed[0], headed[1]]]
    assert layers(nn.ReLU()) == []


def test_layers_own_every_parameter_once():
    network = TinyLlama(vocabulary=11, width=8, layers=2)
    own = [p for layer in layers(network) for m in layer for p in m.parameters(recurse=False)]
    assert {id(p) for p in own} == {id(p) for p in network.parameters()}
    assert len(own) == len(list(network.parameters()))
    assert layers(network)[-1] == [network.head]


def test_what_is_held_stays_and_is_let_go():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    net[0].bias.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    hold = Hold([net[0], net[1]])
    hold.buffers()
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["2.weight", "2.bias"]
    net(torch.randn(8, 3))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    hold.release()
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["0.bias"]
    assert all(m.training for m in net.modules())
    net(torch.randn(8, 3))
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])
