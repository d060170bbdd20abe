"""The lean loop makes the calls, the updates and the checkpoints of Lightning's own loop."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import nn

import erasus_pl.strategies.base
import erasus_pl.tasks.base
from datamodules import ArrayDataset, Pools, UnlearningDataModule
from erasus_pl._lean_loop import LeanEpochLoop
from erasus_pl.requests import ForgetIndices
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import Task

STEPS = 6


class Data(UnlearningDataModule):
    def load(self):
        generator = torch.Generator().manual_seed(1)
        columns = {
            "input": torch.randn(48, 5, generator=generator),
            "target": torch.randint(3, (48,), generator=generator),
        }
        parts = ArrayDataset(columns), ArrayDataset({k: v[:8] for k, v in columns.items()})
        return Pools("data", *parts, {"row": np.arange(48)}, {})


class Descent(Strategy):
    def unlearning_losses(self, forget, retain):
        return {"forget": -0.1 * self.task.loss(forget), "retain": self.task.loss(retain)}

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {
            "optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}
        }  # fmt: skip


class OneShot(Strategy):
    loader_mode = "single_pass"

    def accumulate(self, forget, retain):
        if forget is not None:
            self.add("sum", forget["input"].sum())

    def edit(self):
        for parameter in self.trainable.values():
            parameter += 1e-3 * self.totals["sum"]


class NoZeros(Descent):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        optimizer.zero_grad(set_to_none=False)


class Skips(Descent):
    """Skips a step, and gives a dict at another."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else {"loss": loss, "more": 1} if batch_idx == 2 else loss


class LBFGS(Descent):
    def default_optimizer(self, parameters):
        return torch.optim.LBFGS(parameters, lr=0.05, max_iter=3)


class Sees(Callback):
    """Notes every call it gets, and logs from one."""

    def __init__(self):
        self.calls = []


def _note(name):
    def hook(self, trainer, pl_module, *arguments):
        shown = [a if isinstance(a, int) else type(a).__name__ for a in arguments]
        if name == "on_train_batch_end":
            shown[0] = {k: float(v) for k, v in (arguments[0] or {}).items()}
            if trainer.global_step % 2:
                norm = sum(p.norm() for p in pl_module.parameters())
                pl_module.log("norm", norm, prog_bar=True, batch_size=1)
        state = (trainer.global_step, trainer.is_last_batch, trainer.current_epoch)
        self.calls.append((name, *shown, *state, pl_module._current_fx_name))

    return hook


for _name in dir(Callback):
    if _name.startswith("on_") and "checkpoint" not in _name:
        setattr(Sees, _name, _note(_name))


def _run(folder, strategy, lean, monkeypatch, ckpt_path=None, **settings):
    with monkeypatch.context() as patch:
        if not lean:
            patch.setattr(erasus_pl.strategies.base, "lean", lambda trainer: None)
            patch.setattr(erasus_pl.tasks.base, "lean", lambda trainer: None)
        seed_everything(0, verbose=False)
        network = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.2), nn.Linear(8, 3))
        module = strategy(Task.from_module(network)) if strategy else Task.from_module(network)
        data = Data(ForgetIndices(list(range(24))), batch_size=4)
        sees = Sees()
        defaults = {
            "max_epochs": 1 if strategy is OneShot else 2, "num_sanity_val_steps": 0,
            "log_every_n_steps": 2, "enable_progress_bar": False, "callbacks": [],
        }  # fmt: skip
        settings = {**defaults, **settings}
        settings["callbacks"] = [*settings["callbacks"], sees]
        trainer = Trainer(
            accelerator="cpu", default_root_dir=folder, enable_model_summary=False,
            logger=CSVLogger(folder, name="", version=""), enable_checkpointing=False, **settings,
        )  # fmt: skip
        trainer.fit(module, data, ckpt_path=ckpt_path)
    assert (type(trainer.fit_loop.epoch_loop) is LeanEpochLoop) == lean
    trainer.save_checkpoint(folder / "end.ckpt")
    return {
        "calls": sees.calls,
        "checkpoint": torch.load(folder / "end.ckpt", weights_only=True),
        "csv": (folder / "metrics.csv").read_text(),
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
        "bar": dict(trainer.progress_bar_metrics),
    }


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


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        (Descent, {}),
        (None, {}),
        (OneShot, {}),
        (Skips, {}),
        (LBFGS, {}),
        (NoZeros, {}),
        (Descent, {"gradient_clip_val": 0.1}),
        (Descent, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
        (Descent, {"accumulate_grad_batches": 3}),
        (Descent, {"precision": "bf16-mixed"}),
        (Descent, {"val_check_interval": 2}),
        (Descent, {"val_check_interval": 4, "check_val_every_n_epoch": None}),
        (Descent, {"max_steps": 8}),
        (Descent, {"limit_train_batches": 4}),
        (Descent, {"profiler": "simple"}),
    ],
    ids=str,
)
def test_same_as_stock(strategy, settings, tmp_path, monkeypatch):
    runs = []
    for lean in (False, True):
        folder = tmp_path / str(lean)
        folder.mkdir()
        runs.append(_run(folder, strategy, lean, monkeypatch, **settings))
    assert len(runs[0]["calls"]) > 5 * STEPS
    _same(*runs)


@pytest.mark.parametrize(
    ("strategy", "settings", "stock"),
    [
        (Descent, {}, 0),
        (OneShot, {}, 0),
        (None, {"gradient_clip_val": 1.0}, 0),
        (Descent, {"accumulate_grad_batches": 2}, 2 * STEPS),
        (Descent, {"precision": "bf16-mixed"}, 2 * STEPS),
        (Descent, {"profiler": "simple"}, 2 * STEPS),
        (NoZeros, {}, 2 * STEPS),
    ],
    ids=str,
)
def test_stock_steps_are_made_only_where_needed(strategy, settings, stock, tmp_path, monkeypatch):
    made = []
    advance = _TrainingEpochLoop.advance
    monkeypatch.setattr(
        _TrainingEpochLoop, "advance", lambda *args: (made.append(1), advance(*args))
    )
    _run(tmp_path, strategy, True, monkeypatch, **settings)
    assert len(made) == stock


class Stops(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == STEPS + 3:
            trainer.save_checkpoint(self.folder / "mid.ckpt")
            trainer.should_stop = True


def test_same_after_a_stop_and_a_resume(tmp_path, monkeypatch):
    runs = []
    for lean in (False, True):
        folder = tmp_path / str(lean)
        folder.mkdir()
        _run(folder, Descent, lean, monkeypatch, callbacks=[Stops(folder)], min_epochs=1)
        runs.append(_run(folder, Descent, lean, monkeypatch, ckpt_path=str(folder / "mid.ckpt")))
    _same(*runs)


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_a_bar_shows_the_last_step(bar, tmp_path, monkeypatch):
    shown = []

    class Watches(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            found = trainer.progress_bar_callback.train_progress_bar
            shown.append(found.n if bar is TQDMProgressBar else found.completed)

    _run(
        tmp_path, Descent, True, monkeypatch, callbacks=[bar(), Watches()],
        enable_progress_bar=True,
    )  # fmt: skip
    assert shown == [STEPS, STEPS]


def test_a_loop_of_ones_own_is_left_alone(tmp_path):
    class Own(_TrainingEpochLoop):
        pass

    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit_loop.epoch_loop = Own(trainer, max_steps=-1)
    module = Task.from_module(nn.Linear(5, 3))
    trainer.fit(module, Data(ForgetIndices([0, 1]), batch_size=4))
    assert type(trainer.fit_loop.epoch_loop) is Own
    assert isinstance(module, LightningModule)
