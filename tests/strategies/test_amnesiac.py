"""Updates are taken back as they were made: by hand, to the start, and from the end."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datamodules import ArrayDataset, Pools, UnlearningDataModule
from erasus_pl.__main__ import main
from erasus_pl.callbacks import UpdateLog
from erasus_pl.evaluation.gold import train_task
from erasus_pl.requests import ForgetIndices
from erasus_pl.strategies import Amnesiac
from erasus_pl.strategies.amnesiac import hit, take_back
from erasus_pl.tasks import Task

N, BATCH = 40, 8
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


class Data(UnlearningDataModule):
    """A linear problem in float64."""

    def load(self):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(N, 3, generator=generator, dtype=torch.float64)
        target = inputs @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
        columns = {"input": inputs, "target": target}
        rows = {"row": torch.arange(N).numpy()}
        return Pools("linear", ArrayDataset(columns), ArrayDataset(columns), rows, content=rows)


def data(*forget):
    made = Data(ForgetIndices(list(forget)), batch_size=BATCH, seed=3)
    made.setup()
    return made


def linear(optimizer=torch.optim.SGD, epochs=2, **options):
    return Task(
        nn.Linear(3, 1).double(), loss=nn.MSELoss(),
        optimizer=lambda p: optimizer(p, **({"lr": 0.1} | options)), epochs=epochs,
    )  # fmt: skip


def original(task, path, **options):
    """A trained task, its record, and the batches that it was trained on."""
    log = UpdateLog(str(path), **options)
    train_task(task, data(0), "train", 3, QUIET, [log])
    return task.train(), log.content


def unlearn(task, path, forget, fit, epochs=0, **options):
    strategy = Amnesiac(copy.deepcopy(task), record=str(path), **options)
    return fit(strategy, data(*forget), max_epochs=epochs).task


def vector(task):
    return torch.cat([p.detach().reshape(-1) for p in task.parameters()])


def start(task):
    """The initialisation that `train_task` gives a copy under the same seed."""
    fresh = copy.deepcopy(task)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        fresh.reset()
    return fresh


def test_hits_are_those_batches_that_hold_a_forgotten_sample():
    batches = [torch.tensor(b) for b in ([0, 5], [1, 2, 3], [4, 5], [])]
    assert hit(batches, torch.tensor([5, 3])) == [True, True, True, False]
    assert hit(batches, torch.tensor([9])) == [False] * 4


def test_takes_back_the_sum():
    weights, updates = torch.tensor([1.0, 2.0]), [torch.tensor([0.5, 0.0]), torch.tensor([0.25, 1])]
    assert take_back(weights, updates).tolist() == [0.25, 1.0]
    assert torch.equal(take_back(weights, []), weights)
    # In single precision the small updates would be lost in the large one.
    many = [torch.tensor([1e8])] + [torch.tensor([1.0])] * 100 + [torch.tensor([-1e8])]
    assert take_back(torch.tensor([150.0]), many).item() == 50.0


@pytest.mark.parametrize("forget", [(7,), (7, 8, 30)])
def test_sgd_on_a_linear_model_by_hand(forget, tmp_path, fit):
    """Δ_b = −lr ∇ of the batch's mean squared error, written out and followed step by step."""
    task, record = original(linear(), tmp_path / "r.pt")
    inputs, target = data(0).train_set.columns["input"], data(0).train_set.columns["target"]
    weight, bias = (p.detach().clone() for p in start(task).parameters())
    expected_w, expected_b = weight.clone(), bias.clone()
    for batch in record["samples"]:
        x, y = inputs[batch], target[batch]
        error = x @ weight.T + bias - y
        dw, db = -0.1 * 2 * (error * x).mean(0, keepdim=True), -0.1 * 2 * error.mean(0)
        weight, bias = weight + dw, bias + db
        if not set(batch.tolist()) & set(forget):
            expected_w, expected_b = expected_w + dw, expected_b + db
    torch.testing.assert_close(vector(task), torch.cat([weight.flatten(), bias]))
    assert sorted(torch.cat(record["samples"]).tolist()) == sorted(2 * list(range(N)))
    found = unlearn(task, tmp_path / "r.pt", forget, fit)
    torch.testing.assert_close(vector(found), torch.cat([expected_w.flatten(), expected_b]))
    assert not torch.allclose(vector(found), vector(task))


def test_the_last_batch_leaves_the_weights_before_it(tmp_path, fit):
    """One epoch, so that the samples of the last batch were in no other; exact even with Adam."""
    for optimizer in (torch.optim.SGD, torch.optim.Adam):
        task, record = original(linear(optimizer, epochs=1), tmp_path / "r.pt")
        before = start(task)
        make = optimizer(before.parameters(), lr=0.1)
        columns = data(0).train_set.columns
        for batch in record["samples"][:-1]:
            make.zero_grad()
            F.mse_loss(before.network(columns["input"][batch]), columns["target"][batch]).backward()
            make.step()
        found = unlearn(task, tmp_path / "r.pt", record["samples"][-1][:1].tolist(), fit)
        torch.testing.assert_close(vector(found), vector(before), rtol=1e-12, atol=1e-12)


def test_all_batches_leave_the_initialisation(tmp_path, fit):
    task, record = original(linear(torch.optim.Adam), tmp_path / "r.pt")
    forget = [batch[0].item() for batch in record["samples"]]
    found = unlearn(task, tmp_path / "r.pt", sorted(set(forget)), fit)
    torch.testing.assert_close(vector(found), vector(start(task)), rtol=1e-12, atol=1e-12)


def test_what_adam_remembers_of_a_batch_is_not_undone(tmp_path, fit):
    """The first batch of an Adam training: what follows it still carries its moments."""
    task, record = original(linear(torch.optim.Adam, epochs=1), tmp_path / "r.pt")
    without = start(task)
    optimizer = torch.optim.Adam(without.parameters(), lr=0.1)
    columns = data(0).train_set.columns
    for batch in record["samples"][1:]:
        optimizer.zero_grad()
        F.mse_loss(without.network(columns["input"][batch]), columns["target"][batch]).backward()
        optimizer.step()
    found = unlearn(task, tmp_path / "r.pt", record["samples"][0][:1].tolist(), fit)
    assert not torch.allclose(vector(found), vector(without), rtol=1e-3)


def test_accumulated_batches_are_one_update(tmp_path):
    log = UpdateLog(None)
    task = linear(epochs=1)
    train_task(task, data(0), "train", 3, QUIET | {"accumulate_grad_batches": 2}, [log])
    assert [len(samples) for samples in log.content["samples"]] == [16, 16, 8]
    total = torch.stack(log.content["updates"]).sum(0)
    torch.testing.assert_close(vector(start(task)) + total, vector(task))


def test_a_subset_is_all_that_is_recorded(tmp_path, fit):
    path = tmp_path / "r.pt"
    whole, record = original(linear(), tmp_path / "whole.pt")
    task, part = original(linear(), path, indices=[9, 7, 7])
    assert torch.equal(vector(whole), vector(task))
    expected = [u for u, b in zip(record["updates"], record["samples"], strict=True)
                if set(b.tolist()) & {7, 9}]  # fmt: skip
    assert len(part["updates"]) == len(expected) <= 4
    assert all(torch.equal(a, b) for a, b in zip(part["updates"], expected, strict=True))
    found = unlearn(task, path, (7,), fit, indices=[7, 9])
    assert torch.equal(vector(found), vector(unlearn(whole, tmp_path / "whole.pt", (7,), fit)))
    with pytest.raises(ValueError, match=r"`indices`: 1 of .* 2 samples were not recorded.* at 8"):
        unlearn(task, path, (7, 8), fit, indices=[7, 9])
    with pytest.raises(ValueError, match=r"`record`: .* was written by UpdateLog.*needs UpdateLog"):
        unlearn(task, path, (7,), fit)


def test_the_repair_trains_on_the_retain_set_by_the_tasks_recipe(tmp_path, fit):
    task, _ = original(linear(), tmp_path / "r.pt")
    broken = unlearn(task, tmp_path / "r.pt", (7, 8), fit)
    repaired = unlearn(task, tmp_path / "r.pt", (7, 8), fit, epochs=3)
    retain = next(iter(data(7, 8).sweep(data(7, 8).retain_set)))
    assert repaired.loss(retain) < 0.5 * broken.loss(retain)


def test_a_record_that_would_outgrow_its_limit_is_refused_before_it_is_begun(tmp_path):
    task = linear(epochs=1000)
    log = UpdateLog(None, limit_gb=1e-6)
    with pytest.raises(
        ValueError,
        match=r"`limit_gb`: .*5,000 steps, 4 weights each, take 0.00016 GB, more than 1e-06; name",
    ):
        train_task(task, data(0), "train", 3, QUIET, [log])
    train_task(linear(), data(0), "train", 3, QUIET, [UpdateLog(None, [7], limit_gb=1e-7)])
    with pytest.raises(ValueError, match="`limit_gb` must be above 0, got 0"):
        Amnesiac(task, limit_gb=0)
    with pytest.raises(ValueError, match=r"`indices` must be in .0, 40., got -1 to 3"):
        train_task(linear(), data(0), "train", 3, QUIET, [UpdateLog(None, [3, -1])])


def test_a_record_of_another_network_is_refused(tmp_path, fit):
    original(linear(), tmp_path / "r.pt")
    other = Task(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double(), loss=nn.MSELoss())
    with (
        pytest.warns(UserWarning, match="ended with other weights"),
        pytest.raises(ValueError, match=r"`record`: .* is of another network"),
    ):
        unlearn(other, tmp_path / "r.pt", (7,), fit)


def test_the_command_line_records_unlearns_and_keeps_a_run_without_repair(tmp_path, capsys):
    arguments = [
        "fit", "--config", "conf/quickstart.yaml", "--model", "Amnesiac",
        "--request", "ForgetIndices", "--request.init_args.indices", "[14]",
        "--task.init_args.epochs=2", "--trainer.enable_progress_bar=false",
        "--evidence.retrained=1", f"--evidence.cache={tmp_path}/cache",
        f"--trainer.default_root_dir={tmp_path}/run",
    ]  # fmt: skip
    for epochs in (0, 2):
        assert main([*arguments, f"--trainer.max_epochs={epochs}"]) == 0, capsys.readouterr().err
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        assert report
        assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file(), epochs
    assert len(list((tmp_path / "cache").glob("original-*.updatelog.pt"))) == 1
