"""The filtered teacher against a softmax that never had the class, and its loss in a loop."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from torch import nn

from erasus_pl.strategies import DELETE
from erasus_pl.strategies.delete import filtered_logits


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.integers(0, 1))
def test_softmax_is_that_of_the_other_classes(logits, masked):
    z = torch.tensor(logits, dtype=torch.float64)
    p = filtered_logits(z, torch.tensor(masked)).softmax(-1)
    rest = torch.cat([z[:masked], z[masked + 1 :]]).softmax(-1)
    assert p[masked] == 0
    torch.testing.assert_close(torch.cat([p[:masked], p[masked + 1 :]]), rest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_is_finite_in_every_precision(dtype):
    z = torch.tensor([[3.0, -2.0, 1.0]], dtype=dtype)
    logs = filtered_logits(z, torch.tensor([0])).log_softmax(-1)
    assert torch.isfinite(logs).all()
    assert logs.exp()[0, 0] == 0


@pytest.mark.parametrize("tiny", ["images"], indirect=True)
def test_a_sure_student_pays_and_gets_the_gradient_of_the_formula(tiny):
    """∂ KL(p̃ ‖ q) / ∂ logits of q = q − p̃, whatever is masked."""
    teacher = torch.tensor([[9.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    reference = filtered_logits(teacher, torch.tensor([0]))
    tiny.task.divergence(student, reference, {}).sum().backward()
    right = torch.cat([torch.zeros(1), teacher[0, 1:].softmax(-1)])
    torch.testing.assert_close(student.grad[0], teacher[0].softmax(-1) - right)


def test_loss_in_a_loop(tiny, fit):
    data = tiny.data()
    strategy = fit(DELETE(tiny.task), data, max_steps=0).eval()
    with torch.no_grad():
        for parameter in strategy.task.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = next(iter(data.sweep(data.forget_set)))
    (term,) = strategy.unlearning_losses(batch, None).values()
    teacher = strategy.original(batch).softmax(-1)
    student = strategy.task(batch).log_softmax(-1)

    def divergence(p, log_q, y):
        others = [c for c in range(len(p)) if c != y]
        total = sum(p[c] for c in others)
        return sum(p[c] / total * ((p[c] / total).log() - log_q[c]) for c in others)

    each = []
    for i in range(len(teacher)):
        if tiny.name == "images":
            each.append(divergence(teacher[i], student[i], batch["target"][i]))
            continue
        labels = batch["labels"][i]
        kept = [t for t in range(len(labels) - 1) if labels[t + 1] != -100]
        found = [divergence(teacher[i, t], student[i, t], labels[t + 1]) for t in kept]
        each.append(sum(found) / len(found))
    torch.testing.assert_close(term, sum(each) / len(each), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tiny", ["images"], indirect=True)
def test_a_student_that_is_the_filtered_teacher_has_nothing_to_learn(tiny, fit):
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    data = tiny.data()
    data.columns["target"] = torch.full_like(data.columns["target"], 2)
    strategy = fit(DELETE(type(tiny.task)(layer)), data, max_steps=0)
    with torch.no_grad():
        layer.bias[2] -= 1e4
    batch = next(iter(data.sweep(data.forget_set)))
    (term,) = strategy.unlearning_losses(batch, None).values()
    torch.testing.assert_close(term, torch.tensor(0.0), rtol=0, atol=1e-6)


def test_reads_no_retain_sample(tiny, fit):
    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            assert batch["retain"] is None

    fit(DELETE(tiny.task), tiny.data(), max_epochs=1, callbacks=[Watch()])


def test_forgets_a_class_and_keeps_most_of_the_rest(digits, fit):
    data = digits.data()
    data.seed = 0
    strategy = DELETE(copy.deepcopy(digits.original))
    found = digits.measure(fit(strategy, data, max_epochs=20))
    assert found["forget"] <= 0.05, found
    assert found["retain"] >= digits.retrained["retain"] - 0.03, found
    assert found["test"] >= digits.retrained["test"] - 0.03, found
