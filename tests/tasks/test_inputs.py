"""A network run from its continuous input gives what it gives from its batch."""

import pytest
import torch
from torch import nn

from erasus_pl.networks import TinyLlama
from erasus_pl.tasks import CausalLMTask, ClassificationTask
from erasus_pl.tasks.inputs import continuous_input, forward_from, with_targets


@pytest.fixture(params=["images", "text"])
def case(request):
    torch.manual_seed(0)
    if request.param == "images":
        batch = {"input": torch.randn(5, 6), "target": torch.arange(5) % 4}
        return ClassificationTask(nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 4))), batch
    ids = torch.randint(1, 11, (5, 7))
    mask = torch.arange(7) < torch.tensor([[3], [7], [5], [4], [7]])
    batch = {
        "input_ids": ids * mask,
        "labels": torch.where(mask, ids, -100),
        "attention_mask": mask.long(),
    }
    return CausalLMTask(TinyLlama(vocabulary=11, width=8, layers=1)), batch


def test_from_the_continuous_input_the_outputs_are_the_same(case):
    task, batch = case
    x = continuous_input(task, batch)
    assert x.is_floating_point()
    assert len(x) == 5
    assert torch.equal(forward_from(task, batch, x), task(batch))
    assert not torch.allclose(forward_from(task, batch, x + 1), task(batch))
    assert torch.equal(forward_from(task, batch, x), task(batch))


def test_its_gradient_is_the_finite_difference(case):
    task, batch = case
    task.double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    x = continuous_input(task, batch).requires_grad_()

    def loss(x):
        return task.per_sample_loss(forward_from(task, batch, x), batch).sum()

    (gradient,) = torch.autograd.grad(loss(x), x)
    step = torch.randn_like(x)
    with torch.no_grad():
        slope = (loss(x + 1e-5 * step) - loss(x - 1e-5 * step)) / 2e-5
    torch.testing.assert_close((gradient * step).sum(), slope, rtol=1e-6, atol=1e-8)


def test_targets_are_replaced_in_the_order_of_predictions(case):
    task, batch = case
    outputs = task(batch)
    _, targets = task.predictions(outputs, batch)
    classes = (targets + 1) % 4
    changed = with_targets(batch, classes)
    assert torch.equal(task.predictions(outputs, changed)[1], classes)
    assert torch.equal(task.predictions(outputs, batch)[1], targets)
    if "labels" in batch:
        assert torch.equal(changed["labels"] == -100, batch["labels"] == -100)


def test_refuses_what_has_no_continuous_input():
    task = ClassificationTask(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"Linear takes no floating `input`.*nn\.Embedding"):
        continuous_input(task, {"input": torch.zeros(3, 2, dtype=torch.long)})
