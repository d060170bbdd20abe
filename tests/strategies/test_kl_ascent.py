"""Ascent held by the divergence from the original on the retain set."""

import copy

import pytest
import torch

from erasus_pl.strategies import KLAscent


def moved(task):
    """The task a little away from where it was, so that divergences are not zero."""
    other = copy.deepcopy(task)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return other


def by_hand(teacher, student, batch, text):
    """Σ_c p_c log(p_c / q_c) in a loop, averaged over the labelled tokens of a sequence."""
    p, q = torch.softmax(teacher(batch), -1), torch.softmax(student(batch), -1)
    each = []
    for i in range(len(p)):
        if text:
            kept = [t for t in range(p.shape[1] - 1) if batch["labels"][i, t + 1] != -100]
            each.append(sum((p[i, t] * (p[i, t] / q[i, t]).log()).sum() for t in kept) / len(kept))
        else:
            each.append((p[i] * (p[i] / q[i]).log()).sum())
    return torch.stack(each)


@pytest.mark.parametrize("alpha", [1.0, 5.0])
def test_terms(alpha, tiny, fit):
    data = tiny.data()
    strategy = fit(KLAscent(tiny.task, alpha=alpha), data, max_steps=0).eval()
    original = copy.deepcopy(strategy.task)
    strategy.task = moved(strategy.task)
    forget, retain = (next(iter(data.sweep(s))) for s in (data.forget_set, data.retain_set))
    terms = strategy.unlearning_losses(forget, retain)
    expected = alpha * by_hand(original, strategy.task, retain, tiny.name == "text").mean()
    torch.testing.assert_close(terms["retain_divergence"], expected, rtol=1e-4, atol=1e-6)
    reverse = alpha * by_hand(strategy.task, original, retain, tiny.name == "text").mean()
    assert not torch.isclose(terms["retain_divergence"], reverse, rtol=1e-3)
    torch.testing.assert_close(terms["forget_ascent"], -strategy.task.loss(forget))


def test_does_not_need_the_retain_labels(tiny, fit):
    data = tiny.data()
    strategy = fit(KLAscent(tiny.task), data, max_steps=0).eval()
    strategy.task = moved(strategy.task)
    forget, retain = (next(iter(data.sweep(s))) for s in (data.forget_set, data.retain_set))
    key = "labels" if tiny.name == "text" else "target"
    other = retain | {key: torch.where(retain[key] > 0, 0 * retain[key] + 1, retain[key])}
    assert not torch.equal(other[key], retain[key])
    one, two = (strategy.unlearning_losses(forget, r)["retain_divergence"] for r in (retain, other))
    torch.testing.assert_close(one, two)


def test_the_original_does_not_move(tiny, fit):
    before = copy.deepcopy(tiny.task.state_dict())
    optimizer = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
    strategy = fit(KLAscent(tiny.task, optimizer=optimizer), tiny.data())
    assert all(torch.equal(v, before[k]) for k, v in strategy.original.state_dict().items())
    assert not strategy.original.training
    assert not any(p.requires_grad for p in strategy.original.parameters())
