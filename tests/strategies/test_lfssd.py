"""Importance from the size of the output: a closed form, brute force, and no label read."""

import copy

import pytest
import torch

from erasus_pl.linalg import PerSampleGradients
from erasus_pl.selectors import Selector
from erasus_pl.selectors.base import Coreset
from erasus_pl.strategies import LFSSD, NoEffectWarning
from erasus_pl.strategies.lfssd import squared_output_norm


def test_magnitudes_on_a_linear_model_in_closed_form():
    """d‖Wx + b‖²/dW = 2 (Wx + b) xᵀ."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    gradients = PerSampleGradients(layer, lambda b: squared_output_norm(layer(b["x"])))
    found = gradients.magnitudes({"x": x})
    outputs = (x @ layer.weight.T + layer.bias).detach()
    by_hand = (2 * outputs[:, :, None] * x[:, None, :]).abs().sum(0)
    torch.testing.assert_close(found["weight"], by_hand)
    torch.testing.assert_close(found["bias"], (2 * outputs).abs().sum(0))


def test_padding_does_not_count():
    outputs = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1], [1, 0]])
    assert squared_output_norm(outputs, mask).tolist() == [30.0, 2.0]
    assert squared_output_norm(outputs[:, 0]).tolist() == [5.0, 2.0]


def rows(data, split):
    data.batch_size = 1
    return list(data.sweep(getattr(data, f"{split}_set")))


def importance(task, batches, weights=None):
    """E|∂‖f(x)‖²/∂θ|, a sample and its own outputs at a time."""
    task = copy.deepcopy(task).eval()
    total = [torch.zeros_like(p) for p in task.parameters()]
    weights = torch.ones(len(batches)) if weights is None else weights
    for batch, weight in zip(batches, weights, strict=True):
        outputs = task(batch)[0]
        if "attention_mask" in batch:
            outputs = outputs[batch["attention_mask"][0].bool()]
        size = torch.linalg.vector_norm(outputs) ** 2
        for t, g in zip(total, torch.autograd.grad(size, list(task.parameters())), strict=True):
            t += weight * g.abs()
    return [t / weights.sum() for t in total]


def expected(task, data, alpha, lam, forget=None):
    forget_rows, retain_rows = rows(data, "forget"), rows(data, "retain")
    whole = importance(task, forget_rows + retain_rows)
    if forget is None:
        forget = importance(task, forget_rows)
    else:
        retain = importance(task, retain_rows)
        whole = [(16 * f + 24 * r) / 40 for f, r in zip(forget, retain, strict=True)]
    return [
        torch.where(f > alpha * w, p * (lam * w / f).clamp(max=1), p)
        for p, w, f in zip(task.parameters(), whole, forget, strict=True)
    ]


def double(tiny):
    data = tiny.data()
    if tiny.name == "images":
        data.columns["input"] = data.columns["input"].double()
    return copy.deepcopy(tiny.task).double(), data


@pytest.mark.parametrize("batch_size", [1, 7])
def test_equals_brute_force_whatever_the_batch_size(batch_size, tiny, fit):
    task, data = double(tiny)
    data.batch_size = data.forget_batch_size = batch_size
    strategy = fit(LFSSD(copy.deepcopy(task), alpha=1.05, lam=0.7), data)
    by_hand = expected(task, data, 1.05, 0.7)
    assert any(not torch.equal(p, e) for p, e in zip(task.parameters(), by_hand, strict=True))
    for found, right in zip(strategy.task.parameters(), by_hand, strict=True):
        torch.testing.assert_close(found, right)


def test_a_weighted_coreset_estimates_the_forget_importance(tiny, fit):
    picked = torch.tensor([1, 4, 7, 8, 11])
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0], dtype=torch.float64)

    class Five(Selector):
        def select(self, strategy, dataset, k):
            return Coreset(picked, weights)

    task, data = double(tiny)
    strategy = fit(LFSSD(copy.deepcopy(task), alpha=1.05), data, callbacks=[Five(k=5)])
    chosen = [rows(data, "forget")[i] for i in picked.tolist()]
    by_hand = expected(task, data, 1.05, 1.0, importance(task, chosen, weights))
    for found, right in zip(strategy.task.parameters(), by_hand, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-9)


def test_reads_no_label(tiny, fit):
    weights = []
    for shift in (0, 1):
        data = tiny.data()
        if tiny.name == "images":
            data.columns["target"] = (data.columns["target"] + shift) % 4
        else:
            data.columns["labels"] = data.columns["labels"].roll(shift, 0)
        weights.append(fit(LFSSD(copy.deepcopy(tiny.task), alpha=1.0), data).task.state_dict())
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_says_where_no_weight_can_be_selected(tiny, fit):
    with pytest.warns(NoEffectWarning, match=r"below \|D\| / \|D_f\| = 2.5 .* got 10.0"):
        fit(LFSSD(tiny.task), tiny.data())


@pytest.mark.parametrize("name", ["alpha", "lam"])
def test_refuses_negative_constants(name, tiny):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
        LFSSD(tiny.task, **{name: -1})


def test_forgets_most_of_a_class_and_keeps_the_rest(digits, fit):
    """Less cleanly than SSD at its best: output size tells classes apart less than the loss."""
    strategy = LFSSD(copy.deepcopy(digits.original), alpha=2.5)
    found = digits.measure(fit(strategy, digits.data()))
    assert found["forget"] < 0.5, found
    assert found["retain"] > 0.94, found
