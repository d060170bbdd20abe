"""Weights, mask, schedule and slow step, each as written."""

import copy
import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from erasus_pl.strategies import SFRon
from erasus_pl.strategies.sfron import adaptive_weights, saliency, strength
from erasus_pl.tasks import ClassificationTask

pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`",
    "ignore:You're resuming from a checkpoint that ended before",
)


def plain(lr=0.05):
    return lambda p: torch.optim.SGD(p, lr=lr)


def test_sample_weights_are_the_written_powers_and_carry_no_gradient():
    losses = torch.tensor([0.25, 1.0, 4.0], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        adaptive_weights(losses, 0.5), torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    )
    assert adaptive_weights(losses, 0.0).tolist() == pytest.approx([1, 1, 1])
    assert not adaptive_weights(losses, 0.5).requires_grad
    assert torch.isfinite(adaptive_weights(torch.zeros(2, dtype=torch.float64), 1.0)).all()


def test_mask_compares_the_ratio_even_where_nothing_has_a_gradient():
    forget, retain = torch.tensor([2.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 0.0, 1.0])
    assert saliency(forget, retain, 1.0).tolist() == [True, False, True, False]
    assert saliency(forget, retain, 0.0).all()


def test_strength_is_a_cosine_from_alpha_to_nothing():
    found = [strength(2.0, t, 4) for t in range(5)]
    assert found == pytest.approx([2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5), 0])


def squares(task, data, split):
    total, n = None, 0
    for batch in data.sweep(getattr(data, f"{split}_set")):
        for i in range(len(batch["index"])):
            row = {k: v[i : i + 1] for k, v in batch.items()}
            found = torch.autograd.grad(task.loss(row), list(task.parameters()))
            parts = [g**2 for g in found]
            total = parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]
            n += 1
    return [t / n for t in total]


def test_mask_is_of_per_sample_squares_on_either_set(tiny, fit):
    data = tiny.data()
    strategy = fit(SFRon(copy.deepcopy(tiny.task), gamma=1.5), data, max_steps=0)
    task = copy.deepcopy(tiny.task).eval()
    pairs = zip(squares(task, data, "forget"), squares(task, data, "retain"), strict=True)
    for (name, mask), (f, r) in zip(strategy.mask.items(), pairs, strict=True):
        ratio = (f + 1e-15) / (r + 1e-15)
        clear = (ratio - 1.5).abs() > 1e-3
        assert torch.equal(mask[clear], ratio[clear] >= 1.5), name


def test_forget_term_is_the_weighted_mean_ascent(tiny, fit):
    data = tiny.data()
    strategy = fit(SFRon(tiny.task, alpha=3.0, lambd=0.7), data, max_steps=0).eval()
    batch = next(iter(data.sweep(data.forget_set)))
    losses = strategy.task.per_sample_loss(strategy.task(batch), batch)
    expected = -3 * sum(v ** (1 - 0.7) for v in losses) / sum(v**-0.7 for v in losses)
    (term,) = strategy.unlearning_losses(batch, None).values()
    torch.testing.assert_close(term, expected)
    (retain,) = strategy.unlearning_losses(None, batch).values()
    torch.testing.assert_close(retain, losses.mean())


def test_forget_steps_are_masked_and_clipped_and_repair_steps_are_neither(tiny, fit):
    class Watch(Callback):
        repaired = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            grads = {k: p.grad for k, p in pl_module.trainable.items()}
            outside = [grads[k][~m] for k, m in pl_module.mask.items()]
            norm = torch.cat([g.flatten() for g in grads.values()]).norm()
            if batch["forget"] is None:
                self.repaired += any(g.any() for g in outside)
                return
            assert not any(g.any() for g in outside)
            assert norm <= 0.01 * (1 + 1e-4)

    watch = Watch()
    fit(SFRon(tiny.task, plain(), max_norm=0.01), tiny.data(), callbacks=[watch])
    assert watch.repaired > 0


def test_slow_step_goes_part_of_the_way_of_a_round(tiny, fit):
    fast, slow = (
        fit(SFRon(copy.deepcopy(tiny.task), plain(), beta=b), tiny.data(), max_epochs=1)
        for b in (1.0, 0.25)
    )
    before = dict(tiny.task.named_parameters())
    for name, parameter in slow.task.named_parameters():
        expected = before[name] + 0.25 * (fast.task.get_parameter(name) - before[name])
        torch.testing.assert_close(parameter, expected)


def test_slow_weights_outlast_an_interruption_inside_a_round(tiny, fit, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    data = tiny.data()
    whole = fit(
        SFRon(copy.deepcopy(tiny.task), beta=0.5), data, max_epochs=2, callbacks=[saver],
        enable_checkpointing=True,
    )  # fmt: skip
    steps = sorted(tmp_path.glob("*.ckpt"), key=lambda p: int(p.stem[5:]))
    at = steps[len(steps) // 2 + 1]
    resumed = fit(SFRon(copy.deepcopy(tiny.task), beta=0.5), tiny.data(), 2, resume=at)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "value"),
    [("alpha", -1), ("lambd", -1), ("gamma", -1), ("beta", 0), ("beta", 1.5), ("max_norm", 0)],
)
def test_refuses_values_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*got {value}"):
        SFRon(ClassificationTask(nn.Linear(2, 2)), **{name: value})


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_on_digits_it_forgets_the_class_and_keeps_the_rest_at_the_papers_settings(
    beta, digits, fit
):
    strategy = SFRon(copy.deepcopy(digits.original), beta=beta)
    found = digits.measure(fit(strategy, digits.data(epoch="retain"), max_epochs=10))
    assert abs(found["forget"] - digits.retrained["forget"]) <= 0.05, found
    assert found["retain"] >= digits.retrained["retain"] - 0.03, found
    assert found["test"] >= digits.retrained["test"] - 0.04, found
