import pytest
import torch
import torch.nn.functional as F
from torch import nn

from erasus_pl.linalg import PerSampleGradients, datainf_solve, flatten, unflatten


def problem(network):
    torch.manual_seed(1)
    x, y = torch.randn(9, 4).double(), torch.randint(3, (9,))
    batches = [{"input": x[a:b], "target": y[a:b]} for a, b in ((0, 2), (2, 9))]
    losses = lambda b: F.cross_entropy(network(b["input"]), b["target"], reduction="none")  # noqa: E731
    return {"input": x, "target": y}, batches, losses


def solve(network, losses, batches, target, damping, method="auto"):
    gradients = PerSampleGradients(network, losses, method)
    parts = (part for batch in batches for part in gradients.parts(batch))
    return flatten(datainf_solve(parts, unflatten(target, gradients.parameters), damping))


@pytest.mark.parametrize("method", ["ghost", "vmap", "loop"])
def test_the_mean_of_inverted_matrices_layer_by_layer(method):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    whole, batches, losses = problem(network)
    target = torch.randn(43).double()
    rows = torch.stack([
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(
            one, list(network.parameters()), retain_graph=True)])
        for one in losses(whole)
    ])  # fmt: skip
    truth = []
    for layer in (slice(0, 25), slice(25, 43)):
        eye = 0.3 * torch.eye(layer.stop - layer.start).double()
        inverses = [torch.linalg.inv(torch.outer(g, g) + eye) for g in rows[:, layer]]
        truth.append(torch.stack(inverses).mean(0) @ target[layer])
    found = solve(network, losses, batches, target, 0.3, method)
    torch.testing.assert_close(found, torch.cat(truth))


def test_of_one_sample_it_is_the_exact_inverse():
    network = nn.Linear(4, 3).double()
    whole, _, losses = problem(network)
    one = {k: v[:1] for k, v in whole.items()}
    row = torch.cat([g.reshape(-1) for g in torch.autograd.grad(
        losses(one).sum(), list(network.parameters()))])  # fmt: skip
    target = torch.randn(15).double()
    matrix = torch.outer(row, row) + 0.01 * torch.eye(15).double()
    found = solve(network, losses, [one], target, 0.01)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target))


def test_what_it_cannot_do_is_said():
    network = nn.Linear(4, 3).double()
    whole, batches, losses = problem(network)
    with pytest.raises(ValueError, match=r"`damping` must be above 0 for DataInf, got 0"):
        solve(network, losses, batches, torch.ones(15).double(), 0.0)
    with pytest.raises(ValueError, match="`gradients` is empty"):
        solve(network, losses, [], torch.ones(15).double(), 0.1)
    whole["input"][5] = torch.nan
    with pytest.raises(FloatingPointError, match="check the losses for NaN"):
        solve(network, losses, [whole], torch.ones(15).double(), 0.1)
