"""What CSV files and recorded curves hold at a step is what the step gave, not an older value."""

import csv

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from datamodules import ArrayDataset, Pools, UnlearningDataModule
from erasus_pl.callbacks import Recorder
from erasus_pl.requests import ForgetIndices
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import Task


class Data(UnlearningDataModule):
    def load(self):
        columns = {"input": torch.ones(32, 2), "target": torch.zeros(32, dtype=torch.long)}
        return Pools("data", ArrayDataset(columns), ArrayDataset(columns), {"i": np.arange(32)}, {})


class Counts(Strategy):
    loader_mode = "forget"

    def unlearning_losses(self, forget, retain):
        zero = 0 * self.task.loss(forget)
        return {"count": zero + self.trainer.global_step + 1}


def _fit(tmp_path, every):
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, limit_val_batches=0, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=every,
        logger=CSVLogger(tmp_path, name="", version=""), callbacks=[recorder],
    )  # fmt: skip
    data = Data(ForgetIndices(list(range(20))), batch_size=4)
    trainer.fit(Counts(Task.from_module(nn.Linear(2, 2))), data)
    return recorder.curves


def test_points_are_of_their_step(tmp_path):
    curves = _fit(tmp_path, every=3)
    assert curves == {"count": [(1, 1.0), (3, 3.0), (6, 6.0), (9, 9.0)]}
    with (tmp_path / "metrics.csv").open() as file:
        rows = [(int(r["step"]), float(r["count"])) for r in csv.DictReader(file)]
    assert rows == [(2, 3.0), (5, 6.0), (8, 9.0)]


def test_logging_switched_off(tmp_path):
    assert _fit(tmp_path, every=0) == {}
