"""The salient weights alone move, and which they are does not depend on batches."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback

from erasus_pl.selectors import Selector
from erasus_pl.selectors.base import Coreset
from erasus_pl.strategies import SalUn
from erasus_pl.strategies.salun import salient_mask


def sgd(lr=0.05, weight_decay=0.1):
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=weight_decay)


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=40),
    st.floats(0, 1, allow_nan=False),
)
def test_mask_takes_the_largest(values, fraction):
    gradient = torch.tensor(values, dtype=torch.float64)
    mask = salient_mask(gradient, fraction)
    assert mask.sum() == round(fraction * len(values))
    if mask.any() and not mask.all():
        assert gradient[mask].abs().min() >= gradient[~mask].abs().max()


def test_mask_of_equal_entries_is_the_first():
    assert salient_mask(torch.tensor([0.0, 2.0, -2.0, 2.0]), 0.5).tolist() == [0, 1, 1, 0]


def per_sample_mean(task, batches):
    """∇ of the mean loss, a sample at a time."""
    total, n = None, 0
    for batch in batches:
        for i in range(len(batch["index"])):
            row = {k: v[i : i + 1] for k, v in batch.items()}
            found = torch.autograd.grad(task.loss(row), list(task.parameters()))
            flat = torch.cat([g.flatten() for g in found])
            total = flat if total is None else total + flat
            n += 1
    return total / n


def sum_of_batch_means(task, batches):
    """What the published code ranks by: a short last batch weighs as much as a full one."""
    total = 0
    for batch in batches:
        found = torch.autograd.grad(task.loss(batch), list(task.parameters()))
        total = total + torch.cat([g.flatten() for g in found])
    return total


def flat(mask):
    return torch.cat([m.flatten() for m in mask.values()])


def test_the_mean_is_over_samples_not_batches(tiny, fit):
    task = copy.deepcopy(tiny.task).eval()
    masks, published = [], []
    for size in (1, 5, 15, 16):  # sixteen samples: 15 leaves a batch of one
        data = tiny.data(batch_size=size)
        strategy = fit(SalUn(copy.deepcopy(tiny.task)), data, max_steps=0)
        masks.append(flat(strategy.mask))
        batches = list(data.sweep(data.forget_set))
        published.append(salient_mask(sum_of_batch_means(task, batches), 0.5))
        brute = per_sample_mean(task, batches)
    expected = salient_mask(brute, 0.5)
    threshold = brute.abs().median()
    clear = (brute.abs() - threshold).abs() > 1e-6
    for mask in masks:
        assert torch.equal(mask[clear], expected[clear])
    assert not torch.equal(published[2][clear], expected[clear])


def test_the_gradient_is_of_the_coreset(tiny, fit):
    class Four(Selector):
        def select(self, strategy, dataset, k):
            return Coreset(torch.arange(k))

    data = tiny.data()
    strategy = fit(SalUn(copy.deepcopy(tiny.task)), data, max_steps=0, callbacks=[Four(k=4)])
    batch = next(iter(data.sweep(data.forget_set)))
    four = {k: v[:4] for k, v in batch.items()}
    brute = per_sample_mean(copy.deepcopy(tiny.task).eval(), [four])
    clear = (brute.abs() - brute.abs().median()).abs() > 1e-6
    assert torch.equal(flat(strategy.mask)[clear], salient_mask(brute, 0.5)[clear])


@pytest.mark.parametrize(
    "optimizer",
    [sgd(), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)],
    ids=["momentum", "adamw"],
)
def test_other_weights_keep_every_bit(optimizer, tiny, fit):
    strategy = fit(SalUn(copy.deepcopy(tiny.task), optimizer, salient=0.3), tiny.data())
    moved = total = 0
    for name, parameter in strategy.task.named_parameters():
        mask, before = strategy.mask[name], tiny.task.get_parameter(name)
        assert torch.equal(parameter[~mask], before[~mask]), name
        moved += (parameter != before).sum()
        total += mask.sum()
    assert total == round(0.3 * sum(p.numel() for p in tiny.task.parameters()))
    assert moved == total


def test_other_weights_do_not_count_in_the_clipped_norm(tiny, fit):
    class Norm(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for name, parameter in pl_module.trainable.items():
                assert not parameter.grad[~pl_module.mask[name]].any()

    fit(SalUn(tiny.task), tiny.data(), max_epochs=1, callbacks=[Norm()], gradient_clip_val=0.1)


def test_the_original_is_left_frozen(tiny, fit):
    strategy = fit(SalUn(tiny.task), tiny.data())
    assert not any(p.requires_grad or p.grad is not None for p in strategy.original.parameters())


def test_relabels_the_forget_set_alone(tiny, fit):
    data = tiny.data()
    strategy = fit(SalUn(tiny.task), data, max_steps=0).eval()
    forget, retain = (next(iter(data.sweep(s))) for s in (data.forget_set, data.retain_set))
    drawn = {strategy.unlearning_losses(forget, None)["forget_random"].item() for _ in range(5)}
    assert len(drawn) == 5
    (term,) = strategy.unlearning_losses(None, retain).values()
    torch.testing.assert_close(term, strategy.task.loss(retain))


def test_refuses_an_empty_mask(tiny):
    with pytest.raises(ValueError, match=r"`salient` must be in \(0, 1\], got 0"):
        SalUn(tiny.task, salient=0)
