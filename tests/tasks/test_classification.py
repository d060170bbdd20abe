"""Classification: every quantity against a second way to compute it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from erasus_pl.networks import MLP, ConvNet, ResNet18
from erasus_pl.tasks import ClassificationTask, Task
from erasus_pl.tasks.classification import logit_scaled

pytestmark = pytest.mark.smoke


def _batch(n=7):
    return {"input": torch.randn(n, 4), "target": torch.arange(n) % 3, "index": torch.arange(n)}


def _task():
    return ClassificationTask(MLP(4, (5,), 3))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=3, max_size=6), st.integers(0, 2))
def test_logit_scaled_is_the_log_odds_of_the_true_class(logits, target):
    z = torch.tensor([logits], dtype=torch.float64)
    p = z.softmax(-1)[0]
    others = sum(p[j].item() for j in range(len(p)) if j != target)
    expected = math.log(p[target].item() / others)
    assert logit_scaled(z, torch.tensor([target])).item() == pytest.approx(expected, abs=1e-6)


def test_logit_scaled_neither_saturates_nor_overflows():
    z = torch.tensor([[200.0, 0.0, 0.0], [-200.0, 0.0, 0.0]])
    phi = logit_scaled(z, torch.tensor([0, 0]))
    assert torch.allclose(phi, torch.tensor([200 - math.log(2), -200 - math.log(2)]))


def test_divergence_is_kl_of_reference_to_outputs_at_a_temperature():
    task, a, b = _task(), torch.randn(5, 3), torch.randn(5, 3)
    p, q = (b / 2).softmax(-1), (a / 2).softmax(-1)
    expected = (p * (p.log() - q.log())).sum(-1)
    assert torch.allclose(task.divergence(a, b, {}, temperature=2.0), expected, atol=1e-6)


def test_weighted_loss_is_the_weighted_mean():
    task, batch = _task(), _batch()
    weight = torch.rand(7) + 0.1
    losses = task.per_sample_loss(task(batch), batch)
    assert torch.allclose(
        task.loss({**batch, "weight": weight}), (losses * weight).sum() / weight.sum()
    )
    assert torch.allclose(task.loss(batch), losses.mean())


def test_random_targets_are_uniform_over_all_classes_and_leave_the_batch_alone():
    task = _task()
    batch = {"input": torch.zeros(30_000, 4), "target": torch.zeros(30_000, dtype=torch.long)}
    drawn = task.random_targets(batch)["target"]
    assert batch["target"].sum() == 0
    counts = drawn.bincount(minlength=3)
    assert (counts - 10_000).abs().max() < 5 * math.sqrt(30_000 * 2 / 9)


def test_features_are_the_input_of_the_head():
    task, batch = _task(), _batch()
    assert torch.allclose(task.head(task.features(batch)), task(batch))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (MLP(4, (5,), 3), (2, 4)),
        (ConvNet(1, 3, 4), (2, 1, 8, 8)),
        (ResNet18(3, 3, 4), (2, 3, 16, 16)),
    ],
)
def test_reset_draws_every_weight_anew(network, shape):
    task = ClassificationTask(network)
    task({"input": torch.randn(shape)})
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(7)
    torch.manual_seed(1)
    task.reset()
    assert not any((t == 7).any() for t in network.state_dict().values())
    again = {k: v.clone() for k, v in network.state_dict().items()}
    torch.manual_seed(1)
    task.reset()
    assert all(torch.equal(v, again[k]) for k, v in network.state_dict().items())


def test_reset_refuses_what_it_cannot_draw_anew():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x) * self.scale

    with pytest.raises(TypeError, match=r"Scaled holds \['scale'\].*reset_parameters"):
        Task.from_module(Scaled()).reset()


def test_from_module_chooses_by_the_loss():
    assert isinstance(Task.from_module(nn.Linear(4, 3)), ClassificationTask)
    smoothed = Task.from_module(nn.Linear(4, 3), loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    batch = _batch()
    expected = nn.CrossEntropyLoss(label_smoothing=0.1)(smoothed(batch), batch["target"])
    assert torch.allclose(smoothed.loss(batch), expected)
    regression = Task.from_module(nn.Linear(4, 2), loss=nn.MSELoss())
    batch = {"input": torch.randn(5, 4), "target": torch.randn(5, 2)}
    assert type(regression) is Task
    assert torch.allclose(regression.loss(batch), nn.MSELoss()(regression(batch), batch["target"]))


def test_a_loss_that_is_no_loss_per_sample_is_refused():
    task = Task.from_module(nn.Linear(4, 2), loss=lambda a, b: (a - b).square().mean())
    with pytest.raises(ValueError, match="one value per sample"):
        task.loss({"input": torch.randn(5, 4), "target": torch.randn(5, 2)})


def test_checkpoint_of_another_network_is_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save(MLP(4, (6,), 3).state_dict(), path)
    with pytest.raises(ValueError, match=r"another network.*shape \(6, 4\).*needs \(5, 4\)"):
        ClassificationTask(MLP(4, (5,), 3), checkpoint=str(path))
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ValueError, match="another network: it lacks"):
        ClassificationTask(MLP(4, (5,), 3), checkpoint=str(path))


def test_checkpoint_of_a_network_a_task_or_a_strategy_is_read(tmp_path):
    network = MLP(4, (5,), 3)
    for prefix in ("", "network.", "task.network."):
        path = tmp_path / "weights.ckpt"
        state = {prefix + k: v for k, v in network.state_dict().items()}
        torch.save({"state_dict": state} if prefix else state, path)
        read = ClassificationTask(MLP(4, (5,), 3), checkpoint=str(path)).network.state_dict()
        assert all(torch.equal(read[k], v) for k, v in network.state_dict().items())
