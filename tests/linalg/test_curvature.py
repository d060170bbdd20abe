import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian

from erasus_pl.linalg import (
    diagonal_fisher,
    flatten,
    gauss_newton_vector_product,
    hessian_vector_product,
    mean_gradient,
    trainable_parameters,
    unflatten,
)


def problem():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(11, 4, dtype=torch.float64)
    y = torch.randint(3, (11,))
    batches = [{"input": x[a:b], "target": y[a:b]} for a, b in ((0, 2), (2, 9), (9, 11))]
    return network, {"input": x, "target": y}, batches


def losses(outputs, batch):
    return F.cross_entropy(outputs, batch["target"], reduction="none")


def of(network):
    return lambda batch: losses(network(batch["input"]), batch)


def mean_of_flat(network, batch):
    parameters = trainable_parameters(network)

    def mean(vector):
        outputs = functional_call(network, unflatten(vector, parameters), (batch["input"],))
        return losses(outputs, batch).mean()

    return mean, flatten(parameters).detach()


def test_flat_vectors_come_back():
    network, _, _ = problem()
    parameters = trainable_parameters(network)
    back = unflatten(flatten(parameters), parameters)
    assert all(torch.equal(back[name], parameters[name]) for name in parameters)
    with pytest.raises(ValueError, match=r"must have shape \(43,\), got \(3,\)"):
        unflatten(torch.zeros(3), parameters)


def test_mean_gradient_weighs_samples_alike():
    network, whole, batches = problem()
    mean, flat = mean_of_flat(network, whole)
    truth = torch.func.grad(mean)(flat)
    torch.testing.assert_close(mean_gradient(network, of(network), batches), truth)


def test_hessian_product_against_the_whole_hessian():
    network, whole, batches = problem()
    mean, flat = mean_of_flat(network, whole)
    matrix = hessian(mean)(flat)
    for vector in torch.randn(3, len(flat), dtype=torch.float64):
        product = hessian_vector_product(network, of(network), batches, vector)
        torch.testing.assert_close(product, matrix @ vector)
        assert not product.requires_grad


def test_gauss_newton_product_against_jacobians():
    network, whole, batches = problem()
    parameters = trainable_parameters(network)
    flat = flatten(parameters).detach()
    outputs = network(whole["input"]).detach()
    jacobian = torch.func.jacrev(
        lambda v: functional_call(network, unflatten(v, parameters), (whole["input"],))
    )(flat)
    p = outputs.softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    matrix = torch.einsum("ncp,ncd,ndq->pq", jacobian, inner, jacobian) / len(p)
    vector = torch.randn_like(flat)
    product = gauss_newton_vector_product(
        network, lambda b: network(b["input"]), losses, batches, vector
    )
    torch.testing.assert_close(product, matrix @ vector)


def test_gauss_newton_is_the_hessian_of_a_linear_model():
    _, _, batches = problem()
    linear = nn.Linear(4, 3).double()
    vector = torch.randn(15, dtype=torch.float64)
    torch.testing.assert_close(
        gauss_newton_vector_product(linear, lambda b: linear(b["input"]), losses, batches, vector),
        hessian_vector_product(linear, of(linear), batches, vector),
    )


def test_curvature_of_a_loss_without_any_is_zero():
    linear = nn.Linear(4, 1).double()
    batches = [{"input": torch.randn(3, 4, dtype=torch.float64)}]
    vector = torch.randn(5, dtype=torch.float64)
    zero = torch.zeros_like(vector)
    loss = lambda outputs, batch: outputs.squeeze(1)  # noqa: E731
    forward = lambda batch: linear(batch["input"])  # noqa: E731
    product = hessian_vector_product(linear, lambda b: loss(forward(b), b), batches, vector)
    assert torch.equal(product, zero)
    assert torch.equal(gauss_newton_vector_product(linear, forward, loss, batches, vector), zero)


def test_attention_can_be_differentiated_twice():
    torch.manual_seed(0)
    network = nn.Linear(4, 12).double()

    def attend(batch):
        q, k, v = network(batch["input"]).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).square().sum((1, 2))

    batch = {"input": torch.randn(2, 3, 4, dtype=torch.float64)}
    vector = torch.randn(60, dtype=torch.float64)
    before, after = (
        _moved(network, vector, step, lambda: mean_gradient(network, attend, [batch]))
        for step in (-1e-5, 1e-5)
    )
    product = hessian_vector_product(network, attend, [batch], vector)
    torch.testing.assert_close(product, (after - before) / 2e-5, rtol=1e-6, atol=1e-6)


def _moved(network, vector, step, measure):
    parameters = trainable_parameters(network)
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for name, part in unflatten(vector, parameters).items():
            parameters[name].add_(step * part)
    found = measure()
    with torch.no_grad():
        for name, value in kept.items():
            parameters[name].copy_(value)
    return found


def test_only_trainable_parameters_have_curvature():
    network, whole, batches = problem()
    network[0].requires_grad_(False)
    vector = torch.randn(18, dtype=torch.float64)
    mean, flat = mean_of_flat(network, whole)
    torch.testing.assert_close(
        hessian_vector_product(network, of(network), batches, vector), hessian(mean)(flat) @ vector
    )
    with pytest.raises(ValueError, match=r"must have shape \(18,\)"):
        hessian_vector_product(network, of(network), batches, torch.randn(43))


@pytest.mark.parametrize("method", ["ghost", "vmap", "loop"])
def test_fisher_is_the_mean_of_squares(method):
    network, whole, batches = problem()
    squares, mean = [], []
    for i in range(11):
        item = {key: value[i : i + 1] for key, value in whole.items()}
        gradient = mean_gradient(network, of(network), [item])
        squares.append(gradient.square())
        mean.append(gradient)
    truth = torch.stack(squares).mean(0)
    found = flatten(diagonal_fisher(network, of(network), batches, method))
    torch.testing.assert_close(found, truth)
    rebatched = flatten(diagonal_fisher(network, of(network), [whole], method))
    torch.testing.assert_close(rebatched, truth)
    squared_mean = torch.stack(mean).mean(0).square()
    assert (found > 2 * squared_mean).float().mean() > 0.8  # squaring the mean is another matrix


def test_fisher_of_logistic_regression_in_closed_form():
    torch.manual_seed(0)
    linear = nn.Linear(3, 2, bias=False).double()
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.randint(2, (9,))
    error = linear(x).detach().softmax(1) - F.one_hot(y, 2)
    closed = torch.einsum("nc,nd->cd", error.square(), x.square()) / 9
    found = diagonal_fisher(linear, of(linear), [{"input": x, "target": y}])
    torch.testing.assert_close(found["weight"], closed)


@pytest.mark.parametrize("run", [mean_gradient, diagonal_fisher])
def test_no_batches_is_an_error(run):
    network, _, _ = problem()
    with pytest.raises(ValueError, match="`batches` is empty"):
        run(network, of(network), [])
