"""Accumulated losses against a sum by hand, a closed form, and flipped labels."""

import math

import pytest
import torch
from torch import nn

from erasus_pl.callbacks import SampleHistory
from erasus_pl.evaluation.gold import train_task
from erasus_pl.selectors import LossAccumulation
from erasus_pl.selectors.loss_accumulation import loss_accumulation
from erasus_pl.tasks import Task
from tests.selectors.conftest import FORGOTTEN, Data, N, classifier, images

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def test_means_are_over_visits():
    losses = torch.tensor([[1.0, 4.0, math.nan], [3.0, math.nan, math.nan]])
    found = loss_accumulation(losses)
    assert found[:2].tolist() == [2.0, 4.0]
    assert found[2].isnan()


def test_where_all_are_visited_samples_rank_by_their_sum():
    losses = torch.rand(7, 30)
    assert torch.equal(loss_accumulation(losses).argsort(), losses.double().sum(0).argsort())


def test_gradient_descent_on_a_quadratic_gives_its_geometric_series():
    """One parameter, loss (w - y)^2 of all samples at once: w_t - m = (1 - 2 lr)^t (w_0 - m)."""
    lr, epochs = 0.1, 5
    y = torch.linspace(-1, 1, N, dtype=torch.float64)
    columns = {"input": torch.zeros(N + 40, 1, dtype=torch.float64), "target": torch.zeros(N + 40)}
    columns["target"] = torch.cat([y, torch.zeros(40)])

    class Mean(nn.Linear):
        def reset_parameters(self):
            nn.init.zeros_(self.weight)
            nn.init.constant_(self.bias, 3.0)

    task = Task(
        Mean(1, 1).double(), loss=lambda out, target: (out[:, 0] - target).square(),
        optimizer=lambda p: torch.optim.SGD(p, lr=lr), epochs=epochs,
    )  # fmt: skip
    history = SampleHistory(None)
    train_task(task, Data(columns, batch_size=N), "train", 0, QUIET, [history])
    w = [y.mean() + (1 - 2 * lr) ** t * (3.0 - y.mean()) for t in range(epochs)]
    expected = torch.stack([(v - y).square() for v in w]).mean(0)
    torch.testing.assert_close(
        loss_accumulation(history.content["losses"]), expected, rtol=1e-5, atol=1e-5
    )


def test_mislabelled_samples_come_first(fit, tmp_path):
    columns, path = images(), str(tmp_path / "history.pt")
    flipped = torch.arange(0, FORGOTTEN, 10)
    columns["target"][flipped] = (columns["target"][flipped] + 1) % 4
    task = classifier()
    task.epochs = 20
    train_task(task, Data(columns, batch_size=16), "train", 0, QUIET, [SampleHistory(path)])
    picked = fit(LossAccumulation(k=len(flipped), record=path), task, columns).picked
    assert torch.equal(picked, flipped)


def test_a_loss_that_is_not_finite_is_refused_by_its_sample(fit, tmp_path):
    columns, path = images(), tmp_path / "history.pt"
    task, history = classifier(), SampleHistory(None)
    task.epochs = 1
    train_task(task, Data(columns), "train", 0, QUIET, [history])
    history.content["losses"][0, 11] = math.nan
    history.write(path)
    with pytest.raises(ValueError, match=r"LossAccumulation: .* sample 11 .* is not finite"):
        fit(LossAccumulation(k=3, record=str(path)), task, columns)
