"""Importance per sample over all of D, and dampening by hand."""

import copy

import pytest
import torch

from erasus_pl.linalg import dampen, pooled_importance
from erasus_pl.selectors import Selector
from erasus_pl.selectors.base import Coreset
from erasus_pl.strategies import SSD, NoEffectWarning


def test_dampen_by_hand():
    theta = torch.tensor([1.0, -2.0, 3.0, 4.0, 5.0])
    whole = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    forget = torch.tensor([1.5, 4.0, 8.0, 1.0, 0.0])
    # α = 3 selects the second, third and fourth; λ = 2 leaves 2/4, 2/8 and 0 of them
    assert dampen(theta, whole, forget, 3.0, 2.0).tolist() == [1.0, -1.0, 0.75, 0.0, 5.0]
    # α = 1 selects the first too, where λ = 2 would enlarge it: bounded by 1
    assert dampen(theta, whole, forget, 1.0, 2.0).tolist() == [1.0, -1.0, 0.75, 0.0, 5.0]


def test_pooled_importance_is_the_mean_over_both_parts():
    squares = torch.rand(50, 3, dtype=torch.float64)
    pooled = pooled_importance(squares[:20].mean(0), squares[20:].mean(0), 20, 30)
    torch.testing.assert_close(pooled, squares.mean(0))


def rows(data, split):
    data.batch_size = 1
    return list(data.sweep(getattr(data, f"{split}_set")))


def importance(task, batches, weights=None):
    """E[(∂ℓ/∂θ)²], a sample at a time."""
    task = copy.deepcopy(task).eval()
    total = [torch.zeros_like(p) for p in task.parameters()]
    weights = torch.ones(len(batches)) if weights is None else weights
    for batch, weight in zip(batches, weights, strict=True):
        for t, g in zip(
            total, torch.autograd.grad(task.loss(batch), list(task.parameters())), strict=True
        ):
            t += weight * g.square()
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


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_equals_brute_force_whatever_the_batch_size(batch_size, tiny, fit):
    task, data = double(tiny)
    data.batch_size = data.forget_batch_size = batch_size
    strategy = fit(SSD(copy.deepcopy(task), alpha=1.1, lam=0.7), data)
    by_hand = expected(task, data, 1.1, 0.7)
    assert any(not torch.equal(p, e) for p, e in zip(task.parameters(), by_hand, strict=True))
    for found, right in zip(strategy.task.parameters(), by_hand, strict=True):
        torch.testing.assert_close(found, right)


def test_the_square_of_a_batch_mean_would_depend_on_the_batch_size(tiny):
    """The published code's importance, to show that the test above can tell it apart."""
    data = tiny.data()
    data.setup("validate")
    task = copy.deepcopy(tiny.task).eval()
    found = []
    for size in (1, 24):
        data.batch_size = size
        total, n = 0, 0
        for batch in data.sweep(data.retain_set):
            g = torch.autograd.grad(task.loss(batch), list(task.parameters()))
            total = total + torch.cat([x.flatten() for x in g]).square()
            n += 1
        found.append(total / n)
    per_sample = torch.cat([t.flatten() for t in importance(task, rows(data, "retain"))])
    torch.testing.assert_close(found[0], per_sample, rtol=1e-3, atol=1e-7)
    assert found[1].sum() < 0.5 * per_sample.sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_coreset_estimates_the_forget_importance(weighted, tiny, fit):
    picked = torch.tensor([1, 4, 7, 8, 11])
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0], dtype=torch.float64) if weighted else None

    class Five(Selector):
        def select(self, strategy, dataset, k):
            return Coreset(picked, weights)

    task, data = double(tiny)
    strategy = fit(SSD(copy.deepcopy(task), alpha=1.1), data, callbacks=[Five(k=5)])
    chosen = [rows(data, "forget")[i] for i in picked.tolist()]
    by_hand = expected(task, data, 1.1, 1.0, importance(task, chosen, weights))
    for found, right in zip(strategy.task.parameters(), by_hand, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-9)


def test_measures_the_model_as_it_is_used(tiny, fit):
    """No dropout in the gradients (the tests above) and no new batch-norm statistics."""
    strategy = fit(SSD(copy.deepcopy(tiny.task), alpha=1.0), tiny.data())
    for name, buffer in tiny.task.named_buffers():
        assert torch.equal(strategy.task.get_buffer(name), buffer), name


def test_says_where_no_weight_can_be_selected(tiny, fit):
    with pytest.warns(NoEffectWarning, match=r"below \|D\| / \|D_f\| = 2.5 .* got 10.0"):
        fit(SSD(tiny.task), tiny.data())


def test_needs_one_epoch(tiny, fit):
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs: 1"):
        fit(SSD(tiny.task), tiny.data(), max_epochs=2)


@pytest.mark.parametrize("name", ["alpha", "lam"])
def test_refuses_negative_constants(name, tiny):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
        SSD(tiny.task, **{name: -1})
