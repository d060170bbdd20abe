import pytest
import torch
import torch.nn.functional as F
from torch import nn

from erasus_pl.linalg import (
    PerSampleGradients,
    ekfac_blocks,
    ekfac_solve,
    flatten,
    trainable_parameters,
    unflatten,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(network, losses, batches, target, damping):
    gradients = PerSampleGradients(network, losses)
    blocks = ekfac_blocks(network, lambda: (p for batch in batches for p in gradients.parts(batch)))
    return blocks, flatten(ekfac_solve(blocks, unflatten(target, gradients.parameters), damping))


def each(network, losses, batch):
    """Every sample's gradient by autograd alone, ``(n, P)``."""
    parameters = list(trainable_parameters(network).values())
    rows = [torch.autograd.grad(one, parameters, retain_graph=True) for one in losses(batch)]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def empirical(rows, target, damping):
    matrix = rows.T @ rows / len(rows) + damping * torch.eye(rows.shape[1]).double()
    return torch.linalg.solve(matrix, target)


@pytest.mark.parametrize("bias", [False, True])
def test_exact_where_the_fisher_is_kronecker(bias):
    """Every input meets every output gradient, so the two are independent in the sample."""
    inputs, slopes = draw(6, 4), draw(5, 3, seed=1)
    grid = torch.cartesian_prod(torch.arange(6), torch.arange(5))
    batch = {"input": inputs[grid[:, 0]], "slope": slopes[grid[:, 1]]}
    layer = nn.Linear(4, 3, bias=bias).double()

    def losses(batch):
        return (layer(batch["input"]) * batch["slope"]).sum(1)

    rows = each(layer, losses, batch)
    target = draw(rows.shape[1], seed=2)
    parts = [{k: v[a:b] for k, v in batch.items()} for a, b in ((0, 7), (7, 30))]
    _, found = solve(layer, losses, parts, target, 0.1)
    torch.testing.assert_close(found, empirical(rows, target, 0.1))


def classify(network):
    return lambda b: F.cross_entropy(network(b["input"]), b["target"], reduction="none")


def test_the_diagonal_is_that_of_the_fisher_in_the_basis_of_the_factors():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=False).double()
    batch = {"input": draw(40, 4), "target": torch.randint(3, (40,))}
    losses = classify(layer)
    rows = each(layer, losses, batch)
    fisher = rows.T @ rows / 40
    blocks, _ = solve(layer, losses, [batch], rows[0], 0.1)
    (block,) = blocks.values()
    p = layer(batch["input"]).softmax(1) - F.one_hot(batch["target"], 3)
    a, g = (torch.linalg.eigh(m.T @ m)[1] for m in (batch["input"], p.detach()))
    torch.testing.assert_close(block.inputs[0].abs(), a.abs())
    basis = torch.kron(block.outputs[0], block.inputs[0])
    torch.testing.assert_close(block.values.reshape(-1), (basis.T @ fisher @ basis).diagonal())
    kfac = torch.kron(p.T @ p / 40, batch["input"].T @ batch["input"] / 40)
    corrected = basis * block.values.reshape(-1) @ basis.T
    assert (corrected - fisher).norm() < (kfac - fisher).norm()
    assert g.shape == (3, 3)


def test_convolutions_norms_and_frozen_weights():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.GroupNorm(2, 6), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)
    ).double()
    network[4].weight.requires_grad_(False)
    batch = {"input": draw(20, 4, 4, 4), "target": torch.randint(3, (20,))}
    losses = classify(network)
    rows = each(network, losses, batch)
    target = draw(rows.shape[1], seed=3)
    blocks, found = solve(network, losses, [batch], target, 0.1)
    assert list(blocks) == ["0.weight"]
    parameters = trainable_parameters(network)
    shaped = unflatten(found, parameters)
    assert not any(shaped[name].any() for name in parameters if not name.startswith("0."))
    block = blocks["0.weight"]
    # The block as a matrix: with the true curvature in its place, this is the true solution.
    mine = torch.cat(
        [rows[:, :108].reshape(20, 2, 3, 18), rows[:, 108:114].reshape(20, 2, 3, 1)], -1
    )
    wanted = torch.cat([target[:108].reshape(2, 3, 18), target[108:114].reshape(2, 3, 1)], -1)
    for k in range(2):
        basis = torch.kron(block.outputs[k], block.inputs[k])
        turned = mine[:, k].reshape(20, -1) @ basis
        truth = basis @ ((basis.T @ wanted[k].reshape(-1)) / (turned.square().mean(0) + 0.1))
        got = torch.cat([shaped["0.weight"].reshape(2, 3, 18), shaped["0.bias"].view(2, 3, 1)], -1)
        torch.testing.assert_close(got[k].reshape(-1), truth)


def test_strong_damping_leaves_the_gradient():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    batch = {"input": draw(20, 4), "target": torch.randint(3, (20,))}
    target = draw(51, seed=3)
    _, found = solve(network, classify(network), [batch], target, 1e9)
    torch.testing.assert_close(found * 1e9, target)


def test_what_it_cannot_do_is_said():
    norm = nn.LayerNorm(4).double()
    batch = {"input": draw(20, 4), "target": torch.randint(3, (20,))}
    with pytest.raises(ValueError, match=r"no linear or convolutional layer .* `solver: cg`"):
        solve(norm, classify(norm), [batch], draw(8), 0.1)
    layer = nn.Linear(4, 3).double()
    with pytest.raises(ValueError, match=r"`damping` must be above 0 for EK-FAC, got 0"):
        solve(layer, classify(layer), [batch], draw(15), 0.0)
    batch["input"][3] = torch.nan
    with pytest.raises(FloatingPointError, match="check the losses for NaN"):
        solve(layer, classify(layer), [batch], draw(15), 0.1)
