"""A deletion is, to the bit, the training that never had the samples, and costs what it must."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn

from datamodules import ArrayDataset, DigitsDataModule, Pools, UnlearningDataModule
from erasus_pl.callbacks import SampleHistory
from erasus_pl.evaluation.gold import Kept, train_task
from erasus_pl.linalg.sharding import cells, first_hit, slice_epochs
from erasus_pl.networks import MLP, ShardedEnsemble
from erasus_pl.requests import ForgetClass, ForgetIndices
from erasus_pl.strategies import SISA, FineTune
from erasus_pl.tasks import ClassificationTask
from erasus_pl.tasks.shards import ShardTraining

N, SHARDS, SLICES, SEED = 47, 3, 3, 4
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}


class Data(UnlearningDataModule):
    """Forty-seven samples, no multiple of shards times slices."""

    def load(self):
        generator = torch.Generator().manual_seed(0)
        columns = {
            "input": torch.randn(N, 5, generator=generator),
            "target": torch.randint(3, (N,), generator=generator),
        }
        rows = {"row": torch.arange(N).numpy()}
        return Pools("small", ArrayDataset(columns), ArrayDataset(columns), rows, content=rows)


def data(*forget, **options):
    made = Data(ForgetIndices(list(forget)), batch_size=4, **options)
    made.setup()
    return made


def task(shards=SHARDS, slices=SLICES, epochs=4, network=None):
    torch.manual_seed(0)
    network = network or nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)
    )
    return ClassificationTask(
        ShardedEnsemble(network, shards, slices),
        optimizer=lambda p: torch.optim.SGD(p, **MOMENTUM),
        epochs=epochs,
    )


def trained(folder, on="train", forget=(0,), seed=SEED, **options):
    made = task(**options)
    train_task(made, data(*forget), on, seed, QUIET, folder=folder)
    return made


@pytest.fixture
def original(tmp_path):
    return trained(tmp_path / "original")


def weights(model):
    return {k: v for k, v in model.state_dict().items() if k.startswith("network.")}


def same(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


def files(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.ckpt")}


def cell_of(position):
    return tuple(cells(N, SHARDS, SLICES, SEED)[position].tolist())


def position_in(shard, part):
    return next(i for i in range(N) if cell_of(i) == (shard, part))


REQUESTS = {
    "one": (7,),
    "several": (7, 8, 21, 40),
    "a late slice": (position_in(1, SLICES - 1),),
    "a whole cell": tuple(i for i in range(N) if cell_of(i) == (0, 0)),
}


@pytest.mark.parametrize("forget", REQUESTS.values(), ids=REQUESTS)
def test_a_deletion_is_the_training_that_never_had_the_samples(forget, original, tmp_path, fit):
    before = copy.deepcopy(original)
    strategy = fit(SISA(original), data(*forget))
    never = trained(tmp_path / "never", "retrain", forget)
    assert same(strategy.task, never)
    assert not same(strategy.task, before)


def test_original_and_deletion_equal_a_loop_written_out(original, fit):
    """Plain torch: each shard from its own start, each slice with a fresh optimiser."""
    forget = (7, 8, 21)
    strategy = fit(SISA(copy.deepcopy(original)), data(*forget))
    for model, removed in ((original, ()), (strategy.task, forget)):
        loaders = data(*forget)
        plan = ShardTraining(task(), loaders, torch.arange(N), SEED, original_folder(original))
        for k, member in enumerate(model.network.members):
            plan._initialise(k)
            network = plan.task.network.train()
            for r, epochs in enumerate(slice_epochs(4, SLICES)):
                optimizer = torch.optim.SGD(network.parameters(), **MOMENTUM)
                seen = [
                    i for i in range(N)
                    if cell_of(i)[0] == k and cell_of(i)[1] <= r and i not in removed
                ]  # fmt: skip
                batches = loaders.training_batches(torch.tensor(seen), plan.stages[k][r].seed)
                for _ in range(epochs):
                    visited = []
                    for batch in batches:
                        visited += batch["index"].tolist()
                        optimizer.zero_grad()
                        F.cross_entropy(network(batch["input"]), batch["target"]).backward()
                        optimizer.step()
                    assert sorted(visited) == seen
            for name, value in network.state_dict().items():
                torch.testing.assert_close(member.state_dict()[name], value)


def original_folder(model):
    from pathlib import Path

    return Path(model.shards_folder)


@pytest.mark.parametrize("forget", REQUESTS.values(), ids=REQUESTS)
def test_only_what_was_touched_is_trained_and_no_slice_too_early(forget, original, fit):
    folder = original_folder(original)
    before = files(folder)
    assert len(before) == SHARDS * SLICES
    fit(SISA(original), data(*forget))
    after = files(folder)
    assert {k: v for k, v in after.items() if k in before} == before
    hits = {}
    for i in forget:
        k, r = cell_of(i)
        hits[k] = min(r, hits.get(k, SLICES))
    expected = {f"shard-{k}-slice-{r}" for k, hit in hits.items() for r in range(hit, SLICES)}
    assert {name.rsplit("-", 1)[0] for name in after.keys() - before.keys()} == expected


def test_says_what_it_costs(original, fit):
    forget = (7, 8, 21)
    made = data(*forget)
    strategy = fit(SISA(original), made)
    logged = strategy.trainer.logged_metrics
    grid = cells(N, SHARDS, SLICES, SEED)
    start = first_hit(grid, torch.tensor(forget), SHARDS, SLICES)
    assert logged["shards"] == (start < SLICES).sum()
    assert logged["slices"] == (SLICES - start).sum()
    steps = 0
    for k, at in enumerate(start.tolist()):
        for r in range(at, SLICES):
            kept = [
                i for i in range(N)
                if grid[i, 0] == k and grid[i, 1] <= r and i not in forget
            ]  # fmt: skip
            full, rest = divmod(len(kept), 4)
            steps += slice_epochs(4, SLICES)[r] * (full + (rest > 1))
    assert logged["steps"] == steps


def test_deletions_one_after_the_other_are_the_deletion_at_once(original, tmp_path, fit):
    folder = original_folder(original)
    first, second = position_in(0, 1), position_in(2, 0)
    model = fit(SISA(original), data(first)).task
    before = files(folder)
    model = fit(SISA(model), data(first, second)).task
    added = {name[:7] for name in files(folder).keys() - before.keys()}
    assert added == {"shard-2"}
    assert same(model, trained(tmp_path / "never", "retrain", (first, second)))


def test_the_same_deletion_again_trains_nothing_and_says_so(original, fit):
    fit(SISA(copy.deepcopy(original)), data(7))
    before = files(original_folder(original))
    again = fit(SISA(copy.deepcopy(original)), data(7))
    assert files(original_folder(original)) == before
    assert again.seconds_found > 0
    assert again.trainer.logged_metrics["slices"] > 0


class KilledError(Exception):
    pass


def test_a_killed_training_goes_on_where_it_was(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole")
    train, left = ShardTraining._train, [5]

    def until(self, stage, trainer):
        if not left[0]:
            raise KilledError
        left[0] -= 1
        train(self, stage, trainer)

    monkeypatch.setattr(ShardTraining, "_train", until)
    with pytest.raises(KilledError):
        trained(tmp_path / "killed")
    before = files(tmp_path / "killed")
    assert len(before) == 5
    left[0] = SHARDS * SLICES - 5  # more than that would raise
    assert same(trained(tmp_path / "killed"), whole)
    after = files(tmp_path / "killed")
    assert {k: after[k] for k in before} == before
    assert after.keys() == files(tmp_path / "whole").keys()


def test_a_checkpoint_of_another_recipe_does_not_fit(tmp_path):
    folder = tmp_path / "original"
    trained(folder)
    before = files(folder)
    other = task()
    other.optimizer = lambda p: torch.optim.SGD(p, lr=0.01)
    train_task(other, data(0), "train", SEED, QUIET, folder=folder)
    assert len(files(folder)) == 2 * len(before)


def test_one_shard_of_one_slice_is_ordinary_training_of_one_network(tmp_path, fit):
    model = trained(tmp_path / "original", shards=1, slices=1)
    strategy = fit(SISA(model), data(7))
    assert strategy.trainer.logged_metrics["slices"] == 1
    assert same(strategy.task, trained(None, "retrain", (7,), shards=1, slices=1))


def test_the_gold_keeps_no_slices_and_the_original_does(tmp_path):
    kept, made = Kept(tmp_path, QUIET), data(7)
    original, _, _ = kept.get("original", "a", task(), made, "train", SEED)
    again, seconds, found = kept.get("original", "a", task(), made, "train", SEED)
    assert found
    assert seconds > 0
    assert same(original, again)
    assert original.shards_folder == again.shards_folder == str(tmp_path / "original-a")
    kept.get("retrained", "b", task(), made, "retrain", SEED)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "original-a", "original-a.ckpt", "retrained-b.ckpt",
    ]  # fmt: skip


def test_refuses_what_it_cannot_delete_from(original, tmp_path, fit):
    plain = ClassificationTask(MLP(5, [], 3))
    with pytest.raises(TypeError, match=r"SISA needs a task with .'shards'.*ShardedEnsemble"):
        fit(SISA(plain), data(7))
    with pytest.raises(ValueError, match="`folder`: SISA needs the checkpoints"):
        fit(SISA(task()), data(7))
    with pytest.raises(FileNotFoundError, match=r"`folder`: there is no shards.json"):
        fit(SISA(original, folder=str(tmp_path)), data(7))
    with pytest.raises(ValueError, match="holds 3 shards of 3 slices, and the network has 2 of 3"):
        fit(SISA(task(shards=2), folder=original.shards_folder), data(7))
    with pytest.raises(ValueError, match=r"`folder`: .* holds a training of another seed"):
        trained(original.shards_folder, seed=SEED + 1)
    shard = [i for i in range(N) if cell_of(i)[0] == 1]
    with pytest.raises(ValueError, match="`shards`: no sample is left in shard 2 of 3"):
        fit(SISA(original), data(*shard))


def test_a_damaged_slice_is_named(original, fit):
    folder = original_folder(original)
    path = sorted(folder.glob("shard-0-slice-0-*"))[0]
    for other in folder.glob("shard-0-slice-[12]-*"):
        other.unlink()
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"`folder`: .*shard-0-slice-0.*delete it to train"):
        fit(SISA(original), data(position_in(0, 2)))
    path.unlink()
    fit(SISA(original), data(position_in(0, 2)))


def test_an_ensemble_is_trained_shard_by_shard_or_not_at_all(original, fit):
    with pytest.raises(TypeError, match="`network`: a ShardedEnsemble is trained shard by shard"):
        Trainer(logger=False, barebones=True, accelerator="cpu").fit(task(), data(7))
    with pytest.raises(TypeError, match="`network`: SampleHistory cannot record a Sharded"):
        train_task(task(), data(7), "train", SEED, QUIET, [SampleHistory(None)])
    assert "linear_head" not in original.capabilities
    assert "shards" in original.capabilities
    fit(FineTune(original), data(7), max_epochs=1)


@pytest.mark.slow
@pytest.mark.ddp
def test_processes_share_out_the_shards(original, tmp_path, fit):
    forget = REQUESTS["several"]
    copied = shutil.copytree(original.shards_folder, tmp_path / "copy")
    alone = fit(SISA(copy.deepcopy(original)), data(*forget))
    two = fit(SISA(original, folder=str(copied)), data(*forget), strategy="ddp_fork", devices=2)
    assert same(alone.task, two.task)
    assert files(copied).keys() == files(original_folder(original)).keys()


def test_on_digits_it_is_as_far_from_the_original_as_retraining(tmp_path, fit):
    """Threes: forgotten as by retraining; one sample: about a shard's share of the steps."""
    sharded = ClassificationTask(
        ShardedEnsemble(MLP(64, [64], 10), shards=5, slices=3),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.003), epochs=20,
    )  # fmt: skip
    threes = DigitsDataModule(ForgetClass([3]), batch_size=16)
    threes.setup()
    gold = copy.deepcopy(sharded)
    train_task(sharded, threes, "train", 0, QUIET, folder=tmp_path)
    train_task(gold, threes, "retrain", 1, QUIET)

    def accuracy(model, dataset):
        batches = list(threes.sweep(dataset))
        with torch.no_grad():
            return torch.cat([model.eval().correct(model(b), b) for b in batches]).mean().item()

    assert accuracy(sharded, threes.forget_set) > 0.9
    found = fit(SISA(copy.deepcopy(sharded)), threes)
    assert found.trainer.logged_metrics["shards"] == 5
    for split in ("forget_set", "retain_set", "test_set"):
        sets = getattr(threes, split)
        assert abs(accuracy(found.task, sets) - accuracy(gold, sets)) < 0.02, split
    assert accuracy(found.task, threes.forget_set) == 0.0

    few = DigitsDataModule(ForgetIndices([14]), batch_size=16)
    one = fit(SISA(sharded), few)
    assert one.trainer.logged_metrics["steps"] < found.trainer.logged_metrics["steps"] / 4
