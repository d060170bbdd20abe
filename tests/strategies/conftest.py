"""Two unlike tiny tasks for contracts, and really trained digits for what the strategies do."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from datamodules import ArrayDataset, DigitsDataModule, Pools, UnlearningDataModule
from erasus_pl import strategies as room
from erasus_pl.callbacks.training_record import digest
from erasus_pl.evaluation.gold import train_task
from erasus_pl.networks import MLP, ConvNet, ShardedEnsemble, TinyLlama
from erasus_pl.requests import ForgetClass, ForgetIndices
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import CausalLMTask, ClassificationTask

N, FORGOTTEN = 40, 16


class TinyData(UnlearningDataModule):
    """Forty samples, of which every other one of the first thirty-two is forgotten."""

    def __init__(self, columns, **options):
        super().__init__(ForgetIndices(list(range(0, 2 * FORGOTTEN, 2))), **options)
        self.columns = columns

    def load(self):
        train = {name: column[:N] for name, column in self.columns.items()}
        held = {name: column[N:] for name, column in self.columns.items()}
        rows = {"row": torch.arange(N).numpy()}
        return Pools("tiny", ArrayDataset(train), ArrayDataset(held), rows, content=rows)


def _images():
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(4, (N + 20,), generator=generator)
    centres = torch.randn(4, 6, generator=generator)
    return {
        "input": centres[target] + torch.randn(N + 20, 6, generator=generator),
        "target": target,
    }


def _pictures():
    columns = _images()
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(N + 20, 1, 4, 6, generator=generator)
    return columns | {"input": columns["input"][:, None, None] + noise / 2}


def _text():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 11, (N + 20, 7), generator=generator)
    mask = torch.arange(7) < torch.randint(3, 8, (N + 20, 1), generator=generator)
    return {
        "input_ids": ids * mask,
        "labels": torch.where(mask, ids, -100),
        "attention_mask": mask.long(),
    }


def _classifier():
    network = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4)
    )
    return ClassificationTask(network)


def _convolutional():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3),
        nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    return ClassificationTask(network)


def _language_model():
    return CausalLMTask(TinyLlama(vocabulary=11, width=8, layers=1, dropout=0.3))


TINY = {
    "images": (_images, _classifier),
    "pictures": (_pictures, _convolutional),
    "text": (_text, _language_model),
}


def _tiny(name):
    """A tiny task and what makes fresh data for it."""
    columns, task = TINY[name]
    torch.manual_seed(0)
    return SimpleNamespace(
        name=name,
        task=task(),
        data=lambda **options: TinyData(columns(), **{"batch_size": 6, "seed": 5} | options),
    )


@pytest.fixture(params=["images", "text"])
def tiny(request, tmp_path):
    """A tiny task of each kind: a classifier and a language model.

    Where the strategy under test needs a task that was trained shard by shard, or a record of its
    training, that is done.
    """
    made = _tiny(request.param)
    strategy = getattr(room, request.node.callspec.params.get("name", ""), None)
    if strategy is None or "test_refuses" in request.node.name:
        return made
    if strategy.recorder is not Strategy.recorder:
        user = strategy(made.task)
        if user.recorder() is not None:
            record(user, made.data(), tmp_path / "record.pt")
    if "shards" in strategy.requires:
        made.task.network, made.task.epochs = ShardedEnsemble(made.task.network, 2, 2), 2
        quiet = {"accelerator": "cpu", "enable_progress_bar": False}
        train_task(made.task, made.data(), "train", 5, quiet, folder=tmp_path / "original")
        made.task.train()
    return made


@pytest.fixture
def pictures():
    """A tiny convolutional classifier, for what needs convolutions."""
    return _tiny("pictures")


@pytest.fixture(scope="session")
def fit(tmp_path_factory):
    """Fit a strategy as a user would; `resume` takes a checkpoint, others go to the Trainer."""

    def run(model, data, max_epochs=None, resume=None, **options):
        if model.record is None and model.recorder() is not None:
            record(model, data, tmp_path_factory.mktemp("record") / "record.pt")
        seed_everything(0, verbose=False)
        if max_epochs is None:
            max_epochs = 1 if model.one_shot else sum(getattr(model, "epochs", [3]))
        trainer = Trainer(
            **{
                "default_root_dir": tmp_path_factory.mktemp("fit"),
                "accelerator": "cpu",
                "max_epochs": max_epochs,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "limit_val_batches": 0,
            }
            | options
        )
        trainer.fit(model, data, ckpt_path=resume)
        return model

    return run


@pytest.fixture
def recorded(tmp_path):
    """Train the original of a strategy that needs a record, and give the option that names it."""

    def run(strategy, data):
        if strategy.recorder() is None:
            return {}
        record(strategy, data, tmp_path / "record.pt")
        return {"record": strategy.record}

    return run


RECORDS = {}


def record(strategy, data, path):
    """Train the original under a strategy's recorder, unless it was, and give it both."""
    original, recorder = copy.deepcopy(strategy.task), strategy.recorder()
    known = RECORDS.get((recorder.name, digest(original.network)))
    if known is not None:
        strategy.record = known
        return
    original.epochs = 3
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    train_task(original, data, "train", 0, quiet, [recorder])
    recorder.write(path)
    strategy.record = RECORDS[recorder.name, digest(original.network)] = str(path)
    strategy.task.network.load_state_dict(original.network.state_dict())


def _accuracies(task, data):
    task.eval()
    found = {}
    with torch.no_grad():
        for name in ("forget", "retain", "test"):
            batches = list(data.sweep(getattr(data, f"{name}_set")))
            found[name] = torch.cat([task.correct(task(b), b) for b in batches]).mean().item()
    return found


def _trained(network, recipe, epochs):
    """A model trained on the digits, one retrained without the threes, and how to measure."""
    data = DigitsDataModule(ForgetClass([3]))
    data.setup("validate")
    task = ClassificationTask(network, optimizer=recipe, epochs=epochs)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    original, retrained = copy.deepcopy(task), copy.deepcopy(task)
    train_task(original, data, "train", 0, quiet)
    train_task(retrained, data, "retrain", 1, quiet)
    before = _accuracies(original, data)
    return SimpleNamespace(
        original=original.train(),
        retrained=_accuracies(retrained, data),
        before=before,
        measure=lambda strategy: _accuracies(strategy.task, data),
        data=lambda **options: DigitsDataModule(ForgetClass([3]), **options),
    )


@pytest.fixture(scope="session")
def digits():
    """Digits by a multilayer perceptron, the threes to be forgotten."""
    return _trained(MLP(64, [64], 10), lambda p: torch.optim.Adam(p, lr=0.003), 30)


@pytest.fixture(scope="session")
def convolved_digits():
    """Digits by convolutions, the threes to be forgotten."""
    torch.manual_seed(0)
    return _trained(ConvNet(), lambda p: torch.optim.Adam(p, lr=0.003), 30)
