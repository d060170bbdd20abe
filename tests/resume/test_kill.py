"""A run that is killed and resumed is, bit for bit, the run that was never interrupted."""

import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn

from datamodules import Pools, UnlearningDataModule
from erasus_pl.callbacks import AtomicCheckpointIO, Recorder, RunCheckpoint
from erasus_pl.requests import ForgetIndices
from erasus_pl.selectors import Selector
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import Task

EPOCHS, STEPS = 3, 4


class Noisy(torch.utils.data.Dataset):
    """Draws from every random generator that a user's augmentation may use."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        noise = torch.rand(6) + random.random() + float(np.random.rand())
        return torch.arange(6.0) * (i % 5) + noise, i % 3


class NoisyData(UnlearningDataModule):
    def load(self):
        return Pools("noisy", Noisy(), Noisy(), {"target": np.arange(40) % 3}, {})


class DropsLabels(Strategy):
    """Uses dropout, random targets and the original: all that a resume can lose."""

    needs_original = True

    def unlearning_losses(self, forget, retain):
        relabelled = self.task.random_targets(forget)
        outputs = self.task(retain)
        with torch.no_grad():
            reference = self.original(retain)
        return {
            "relabel": self.task.loss(relabelled),
            "kl": self.task.divergence(outputs, reference, retain).mean(),
        }

    def default_optimizer(self, parameters):
        return torch.optim.AdamW(parameters, lr=0.01)


class Drawn(Selector):
    """Picks at random, each time another set, unless the pick is kept."""

    def scores(self, strategy, dataset):
        return torch.from_numpy(np.random.default_rng().random(len(dataset)))


class KilledAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _run(folder, workers, kill_at=None, resume=False, select=False):
    torch.set_num_threads(1)
    seed_everything(3, verbose=False)
    network = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3))
    strategy = DropsLabels(Task.from_module(network))
    data = NoisyData(
        ForgetIndices(list(range(0, 32, 2))), batch_size=4, num_workers=workers, collate=None
    )
    callbacks = [Recorder(), RunCheckpoint(every_n_train_steps=1, dirpath=str(folder))]
    if select:
        callbacks.append(Drawn(k=12))
    if kill_at is not None:
        callbacks.append(KilledAt(kill_at))
    trainer = Trainer(
        accelerator="cpu", max_epochs=EPOCHS, logger=False, callbacks=callbacks,
        plugins=[AtomicCheckpointIO()], enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(strategy, data, ckpt_path=str(folder / "last.ckpt") if resume else None)
    curves = callbacks[0].curves
    torch.save(
        {
            "weights": strategy.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "rng": torch.get_rng_state(),
            "numpy": torch.tensor(np.random.get_state()[1].astype(np.int64)),
            "python": list(random.getstate()[1]),
            "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
            "curves": curves,
            "step": trainer.global_step,
        },
        folder / "end.pt",
    )


def _child(*args, **kwargs):
    process = multiprocessing.get_context("fork").Process(target=_run, args=args, kwargs=kwargs)
    process.start()
    process.join(120)
    return process.exitcode


def _same(a, b, where=""):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _same(x, y, f"{where}/{i}")
    else:
        assert a == b or (a != a and b != b), f"{where}: {a} {b}"


@pytest.fixture(scope="module", params=[0, 2], ids=["workers0", "workers2"])
def uninterrupted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"whole{request.param}")
    assert _child(folder, request.param) == 0
    return request.param, torch.load(folder / "end.pt", weights_only=True)


@pytest.mark.parametrize("kill_at", [1, 4, 6, 11])
def test_resumed_equals_uninterrupted(uninterrupted, kill_at, tmp_path):
    workers, whole = uninterrupted
    assert whole["step"] == EPOCHS * STEPS
    assert _child(tmp_path, workers, kill_at=kill_at) == -signal.SIGKILL
    assert not (tmp_path / "end.pt").exists()
    assert _child(tmp_path, workers, resume=True) == 0
    _same(whole, torch.load(tmp_path / "end.pt", weights_only=True))


def test_workers_do_not_change_the_run(tmp_path):
    ends = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        assert _child(folder, workers) == 0
        ends.append(torch.load(folder / "end.pt", weights_only=True))
    _same(*ends)


def test_killed_twice_with_a_coreset_that_is_not_picked_again(tmp_path):
    assert _child(tmp_path, 0, kill_at=2, select=True) == -signal.SIGKILL
    first = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["Drawn"]
    assert _child(tmp_path, 0, kill_at=5, resume=True, select=True) == -signal.SIGKILL
    assert _child(tmp_path, 0, resume=True, select=True) == 0
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["Drawn"]
    assert torch.equal(first["indices"], last["indices"])
    assert torch.load(tmp_path / "end.pt", weights_only=True)["step"] == EPOCHS * 3
