"""Records of a training: no trace in it, exact through a kill, refused where they do not fit."""

import copy
import os

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from datamodules import ArrayDataset, Pools, UnlearningDataModule
from erasus_pl.__main__ import main
from erasus_pl.callbacks import (
    AtomicCheckpointIO,
    RunCheckpoint,
    SampleHistory,
    TrainingRecord,
    WeightHistory,
)
from erasus_pl.evaluation.gold import Kept, train_task
from erasus_pl.requests import ForgetIndices
from erasus_pl.selectors import Forgetting
from erasus_pl.strategies import FineTune
from erasus_pl.tasks import ClassificationTask, Task

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
N = 44


class Data(UnlearningDataModule):
    def __init__(self, shift=0.0, **options):
        super().__init__(ForgetIndices(range(10)), **{"batch_size": 8, "seed": 3} | options)
        self.shift = shift

    def load(self):
        generator = torch.Generator().manual_seed(1)
        target = torch.randint(3, (N + 20,), generator=generator)
        inputs = torch.randn(N + 20, 5, generator=generator) + target[:, None] + self.shift
        train, held = (
            {"input": inputs[s], "target": target[s]} for s in (slice(N), slice(N, None))
        )
        content = {"input": train["input"].numpy()}
        return Pools("record", ArrayDataset(train), ArrayDataset(held), content, {})


def _task(epochs=3):
    network = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    return ClassificationTask(network, epochs=epochs)


def _state(task):
    return {k: v.clone() for k, v in task.network.state_dict().items()}


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def _equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(v.nan_to_num(-1.0), b[k].nan_to_num(-1.0)) for k, v in a.items()
    )


@pytest.mark.parametrize("kind", [SampleHistory, WeightHistory])
def test_recording_leaves_training_as_it_is_to_the_bit(kind):
    plain, recorded = _task(), _task()
    train_task(plain, Data(), "train", 7, QUIET)
    draws = torch.rand(3)
    train_task(recorded, Data(), "train", 7, QUIET, [kind(None)])
    assert _same(_state(plain), _state(recorded))
    assert torch.equal(draws, torch.rand(3))
    assert not recorded._forward_hooks


def test_what_is_not_trained_on_is_not_visited():
    history = SampleHistory(None)
    train_task(_task(2), Data(), "retrain", 0, QUIET, [history])
    visited = history.content["visited"]
    assert visited.shape == (2, N)
    assert not visited[:, :10].any()
    assert visited[:, 10:].all()
    assert torch.equal(history.content["losses"].isnan(), ~visited)


def test_a_recorder_that_is_used_again_begins_anew():
    history = SampleHistory(None)
    train_task(_task(2), Data(), "train", 0, QUIET, [history])
    first = history.content
    train_task(_task(2), Data(), "train", 0, QUIET, [history])
    assert _equal(first, history.content)


class KilledError(Exception):
    pass


def _fit(
    folder, path, stop=None, resume=False, recorded=True, world=1, task=_task, kind=SampleHistory
):  # fmt: skip
    seed_everything(3, verbose=False)
    task = task()
    recorder = kind(str(path))

    class Stop(RunCheckpoint):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == stop:
                raise KilledError

    spread = {"strategy": "ddp_fork", "devices": world} if world > 1 else {}
    trainer = Trainer(
        **QUIET, **spread, default_root_dir=folder, max_epochs=3, logger=False, limit_val_batches=0,
        enable_model_summary=False, plugins=[AtomicCheckpointIO()] if world == 1 else None,
        callbacks=[*([recorder] if recorded else []), Stop(1, str(folder))],
    )  # fmt: skip
    data = Data(batch_size=8 // world)
    trainer.fit(task, data, ckpt_path=folder / "last.ckpt" if resume else None)


@pytest.mark.parametrize("kind", [SampleHistory, WeightHistory])
@pytest.mark.parametrize("stop", [4, 6, 8])
def test_a_resumed_training_records_what_one_without_a_break_does(tmp_path, stop, kind):
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    _fit(tmp_path / "a", whole, kind=kind)
    with pytest.raises(KilledError):
        _fit(tmp_path / "b", parts, stop, kind=kind)
    assert not parts.exists()
    _fit(tmp_path / "b", parts, resume=True, kind=kind)
    a, b = (torch.load(path, weights_only=True) for path in (whole, parts))
    assert a["about"] == b["about"]
    assert _equal(a["content"], b["content"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "parts.pt", "whole.pt"]


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_record_what_one_does(tmp_path):
    """Also where they are stopped within an epoch, when each knows its own part of it."""
    plain = {"task": lambda: ClassificationTask(nn.Linear(5, 3))}
    paths = [tmp_path / f"{name}.pt" for name in ("one", "two", "stopped")]
    _fit(tmp_path / "a", paths[0], **plain)
    _fit(tmp_path / "b", paths[1], **plain, world=2)
    with pytest.raises(Exception, match="KilledError"):
        _fit(tmp_path / "c", paths[2], 8, **plain, world=2)
    _fit(tmp_path / "c", paths[2], resume=True, **plain, world=2)
    one, *others = (torch.load(path, weights_only=True)["content"] for path in paths)
    for two in others:
        assert torch.equal(one["visited"], two["visited"])
        for name in ("losses", "correct"):
            torch.testing.assert_close(one[name], two[name])


def test_a_training_that_began_without_it_is_refused(tmp_path):
    with pytest.raises(KilledError):
        _fit(tmp_path, tmp_path / "r.pt", 4, recorded=False)
    with pytest.raises(ValueError, match="must see a training from its first step"):
        _fit(tmp_path, tmp_path / "r.pt", resume=True)


def test_a_task_that_never_calls_itself_is_refused():
    class Own(ClassificationTask):
        def training_step(self, batch, batch_idx):
            return self.per_sample_loss(self.network(batch["input"]), batch).mean()

    with pytest.raises(TypeError, match=r"Own\.training_step must call self"):
        train_task(Own(_task().network), Data(), "train", 0, QUIET, [SampleHistory(None)])


def test_a_strategy_is_not_recorded(tmp_path):
    trainer = Trainer(**QUIET, logger=False, callbacks=[SampleHistory(str(tmp_path / "r.pt"))])
    with pytest.raises(TypeError, match="records the training of a Task"):
        trainer.fit(FineTune(_task()), Data())


def test_any_task_is_recorded(tmp_path):
    class Regression(Task):
        def per_sample_loss(self, outputs, batch):
            return (outputs[:, 0] - batch["target"]).square()

    history = SampleHistory(None)
    train_task(Regression(nn.Linear(5, 1), epochs=1), Data(), "train", 0, QUIET, [history])
    assert history.content["losses"].isfinite().all()
    assert history.content["correct"].isnan().all()


def test_kept_models_keep_their_records_and_train_again_where_one_is_missing(tmp_path):
    kept, task, history = Kept(tmp_path, QUIET), _task(), SampleHistory(None)
    first, _, found = kept.get("original", "k", task, Data(), "train", 5, [history])
    path = kept.record("original", "k", history)
    before = torch.load(path, weights_only=True)
    assert not found
    path.unlink()
    again, _, found = kept.get("original", "k", task, Data(), "train", 5, [SampleHistory(None)])
    assert found
    assert _same(_state(first), _state(again))
    after = torch.load(path, weights_only=True)
    assert before["about"] == after["about"]
    assert _equal(before["content"], after["content"])


def test_a_training_that_does_not_repeat_is_not_recorded(tmp_path):
    kept, task = Kept(tmp_path, QUIET), _task()
    kept.get("original", "k", task, Data(), "train", 5)
    with pytest.raises(RuntimeError, match="delete it to train and record that model anew"):
        kept.get("original", "k", task, Data(), "train", 6, [SampleHistory(None)])
    assert [p.name for p in tmp_path.iterdir()] == ["original-k.ckpt"]


def test_names_tell_recorders_apart_by_their_options():
    class Every(TrainingRecord):
        def __init__(self, n):
            super().__init__(None)
            self.n = n

        @property
        def options(self):
            return {"n": self.n}

    assert Every(1).name == Every(1).name != Every(2).name
    assert Every(1).state_key != Every(2).state_key
    assert SampleHistory(None).name == "samplehistory"


def _unlearn(task, data, selector):
    trainer = Trainer(
        **QUIET, logger=False, max_epochs=1, limit_val_batches=0, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[selector],
    )  # fmt: skip
    trainer.fit(FineTune(task), data)
    return data.coreset


@pytest.fixture
def trained(tmp_path):
    task, path = _task(), tmp_path / "history.pt"
    train_task(task, Data(), "train", 5, QUIET, [SampleHistory(str(path))])
    return task, path


def test_a_record_of_ones_own_training_is_used(trained, recwarn):
    task, path = trained
    assert len(_unlearn(copy.deepcopy(task), Data(), Forgetting(k=3, record=str(path)))) == 3
    assert not [w for w in recwarn if "other weights" in str(w.message)]


def test_a_record_of_other_weights_is_used_with_a_warning(trained):
    task, path = trained
    with torch.no_grad():
        task.head.bias.add_(1)
    with pytest.warns(UserWarning, match="ended with other weights than the original has"):
        _unlearn(task, Data(), Forgetting(k=3, record=str(path)))


def test_records_that_do_not_fit_are_refused_in_one_line(trained, tmp_path):
    task, path = trained
    with pytest.raises(ValueError, match="needs a record of the training that made the original"):
        _unlearn(task, Data(), Forgetting(k=3))
    with pytest.raises(ValueError, match="is of a training on other data"):
        _unlearn(task, Data(shift=1.0), Forgetting(k=3, record=str(path)))
    with pytest.raises(FileNotFoundError, match="`record`: there is no file"):
        _unlearn(task, Data(), Forgetting(k=3, record=str(tmp_path / "none.pt")))
    for content, message in (
        ({"state_dict": {}}, "is no record of a training"),
        (torch.load(path, weights_only=True) | {"about": _other(path)}, "was written by Updates"),
    ):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=message):
            _unlearn(task, Data(), Forgetting(k=3, record=str(tmp_path / "other.pt")))
    os.truncate(path, 200)
    with pytest.raises(ValueError, match="truncated or no checkpoint; record that training again"):
        _unlearn(task, Data(), Forgetting(k=3, record=str(path)))


def _other(path):
    return torch.load(path, weights_only=True)["about"] | {"recorder": "Updates"}


def _run(folder, *arguments):
    return main([
        "fit", "--config", "conf/quickstart.yaml", f"--trainer.default_root_dir={folder}",
        f"--evidence.cache={folder}/cache", "--trainer.enable_progress_bar=false",
        "--trainer.max_epochs=1", "--task.init_args.epochs=2", "--evidence.enabled=false",
        "--selector=conf/selector/forgetting.yaml", *arguments,
    ])  # fmt: skip


def test_the_command_line_records_the_original_that_it_trains_or_finds(tmp_path, capsys):
    assert _run(tmp_path) == 0, capsys.readouterr().err
    (record,) = tmp_path.glob("cache/original-*.samplehistory.pt")
    (model,) = tmp_path.glob("cache/original-*.ckpt")
    first = torch.load(record, weights_only=True)
    record.unlink()
    assert _run(tmp_path) == 0
    assert "reused" in capsys.readouterr().out
    second = torch.load(record, weights_only=True)
    assert first["about"] == second["about"]
    assert _equal(first["content"], second["content"])
    assert _run(tmp_path, f"--task.init_args.checkpoint={model}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "`record`: Forgetting needs a record" in error
    given = f"--selector.init_args.record={record}"
    assert _run(tmp_path, f"--task.init_args.checkpoint={model}", given) == 0


def test_a_users_own_training_writes_it(tmp_path, capsys):
    path = tmp_path / "history.pt"
    arguments = [
        "fit", "--config", "conf/train/digits.yaml", f"--trainer.default_root_dir={tmp_path}",
        "--trainer.enable_progress_bar=false", "--trainer.max_epochs=2",
        "--trainer.callbacks+=erasus_pl.callbacks.SampleHistory",
        f"--trainer.callbacks.path={path}",
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    assert torch.load(path, weights_only=True)["content"]["losses"].shape[0] == 2
    checkpoint = f"--task.init_args.checkpoint={tmp_path}/checkpoints/last.ckpt"
    given = f"--selector.init_args.record={path}"
    assert _run(tmp_path / "run", checkpoint, given) == 0, capsys.readouterr().err
