"""Checkpoints are whole or not there, and reading one never runs code."""

import errno
import pickle

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from datamodules import DigitsDataModule
from erasus_pl.callbacks import AtomicCheckpointIO, RunCheckpoint, save_atomically
from erasus_pl.requests import ForgetClass
from erasus_pl.strategies import GradientAscent
from erasus_pl.tasks import Task

RUN = {"state_dict": {"w": torch.ones(2)}, "loops": {}}


def _full_disk(monkeypatch):
    def save(content, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)


def test_full_disk_leaves_the_previous_checkpoint_intact(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(RUN, path)
    before = path.read_bytes()
    _full_disk(monkeypatch)
    with pytest.raises(OSError, match=r"No space left.*previous one is intact"):
        AtomicCheckpointIO().save_checkpoint(RUN, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_full_disk_in_a_run_stops_it_and_the_last_checkpoint_resumes(tmp_path, monkeypatch):
    def fit(epochs, ckpt_path=None):
        torch.manual_seed(0)
        strategy = GradientAscent(Task.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))))
        trainer = Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, plugins=[AtomicCheckpointIO()],
            callbacks=[RunCheckpoint(dirpath=str(tmp_path))], enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(strategy, DigitsDataModule(ForgetClass(3)), ckpt_path=ckpt_path)
        return strategy.state_dict()

    fit(1)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        _full_disk(patch)
        fit(2, str(tmp_path / "last.ckpt"))
    resumed = fit(2, str(tmp_path / "last.ckpt"))
    whole = fit(2)
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)


def test_hostile_pickle_is_refused_and_does_not_run(tmp_path):
    touched = tmp_path / "touched"

    class Hostile:
        def __reduce__(self):
            return (open, (str(touched), "w"))

    path = tmp_path / "last.ckpt"
    torch.save({**RUN, "extra": Hostile()}, path)
    with pytest.raises(ValueError, match="could run code"):
        AtomicCheckpointIO().load_checkpoint(path)
    with pytest.raises(ValueError, match="could run code"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated or no checkpoint"),
        (b"no checkpoint at all", "truncated or no checkpoint"),
        (pickle.dumps({"state_dict": {}}), "cannot be resumed|truncated|could run code"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        AtomicCheckpointIO().load_checkpoint(path)
    assert str(path) in str(error.value)


def test_truncated_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(RUN, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="truncated or no checkpoint"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_missing_checkpoint_and_plain_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    save_atomically({"w": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="is no checkpoint of a run"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "weights.pt")
