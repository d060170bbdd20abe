"""Where the boundary is known in closed form, the class beyond it is what is taught."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from erasus_pl.strategies import BoundaryShrink
from erasus_pl.strategies.boundary_shrink import nearest_incorrect, uphill
from erasus_pl.tasks import ClassificationTask


def sgd(lr):
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9)


def test_nearest_is_the_best_but_the_own_class():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 5.0]])
    assert nearest_incorrect(logits, torch.tensor([0, 1, 2])).tolist() == [1, 0, 0]


def test_uphill_is_the_corner_of_the_box_that_raises_a_linear_loss_most():
    torch.manual_seed(0)
    x, slope = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    corners = x + 0.3 * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6)
    best = corners[(corners @ slope).argmax()]
    torch.testing.assert_close(uphill(x, slope, 0.3), best)


def nearest(task, batch, bound):
    strategy = BoundaryShrink(task, bound=bound)
    strategy.__dict__["_original"] = copy.deepcopy(task).requires_grad_(False).eval()
    return strategy._nearest(batch)


def test_a_point_between_three_centres_is_taught_the_class_it_was_moved_to():
    """Logits are minus half the squared distance to (0, 0), (4, 0), (0, 4)."""
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    layer = nn.Linear(2, 3)
    layer.weight.data = centres.clone()
    layer.bias.data = -0.5 * (centres**2).sum(-1)
    batch = {
        "input": torch.tensor([[1.5, 0.5], [0.5, 1.5], [3.0, 0.0]]),
        "target": torch.tensor([0, 0, 1]),
    }
    task = ClassificationTask(layer)
    assert nearest(task, batch, 0.1).tolist() == [1, 2, 0]  # none crosses a boundary
    assert nearest(task, batch, 1.0).tolist() == [1, 2, 0]


def test_text_is_taught_the_wrong_tokens_that_the_original_finds_likeliest(tiny, fit):
    strategy = fit(BoundaryShrink(tiny.task, bound=1e-6), tiny.data(), max_steps=0)
    data = tiny.data(batch_size=100)
    data.setup("validate")
    (batch,) = data.sweep(data.forget_set)
    logits, target = strategy.original.predictions(strategy.original(batch), batch)
    order = logits.argsort(-1, descending=True)
    expected = torch.where(order[:, 0] == target, order[:, 1], order[:, 0])
    found = strategy._nearest(batch)
    assert (found != target).all()
    assert (found == expected).float().mean() > 0.95


def test_learns_from_forget_samples_what_the_original_not_the_student_says(tiny, fit):
    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert batch["retain"] is None
            self.batch = batch["forget"]
            self.taught = pl_module._nearest(self.batch)

    watch = Watch()
    strategy = fit(BoundaryShrink(tiny.task, sgd(0.3)), tiny.data(), callbacks=[watch])
    assert torch.equal(strategy._nearest(watch.batch), watch.taught)
    for name, parameter in strategy.original.named_parameters():
        assert parameter.grad is None, name


def test_refuses_a_step_of_nothing():
    with pytest.raises(ValueError, match="`bound` must be above 0, got 0"):
        BoundaryShrink(ClassificationTask(nn.Linear(2, 2)), bound=0)


def test_on_digits_it_forgets_the_class_and_keeps_the_rest(digits, fit):
    strategy = BoundaryShrink(copy.deepcopy(digits.original), sgd(0.003))
    found = digits.measure(fit(strategy, digits.data(), max_epochs=10))
    assert abs(found["forget"] - digits.retrained["forget"]) <= 0.05, found
    assert found["retain"] >= digits.retrained["retain"] - 0.03, found
    assert found["test"] >= digits.retrained["test"] - 0.04, found
