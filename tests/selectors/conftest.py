"""Real fits of two unlike tasks, of which only the coreset is looked at."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from datamodules import UnlearningDataModule
from datamodules.datasets import ArrayDataset, Pools
from erasus_pl.callbacks.training_record import digest
from erasus_pl.evaluation.gold import train_task
from erasus_pl.networks import MLP, TinyLlama
from erasus_pl.requests import ForgetIndices
from erasus_pl.strategies import GradientAscent
from erasus_pl.tasks import CausalLMTask, ClassificationTask

N, FORGOTTEN = 120, 60


class Data(UnlearningDataModule):
    """The first samples are forgotten; ``order`` permutes them."""

    def __init__(self, columns, order=None, **options):
        super().__init__(ForgetIndices(list(range(FORGOTTEN))), **options)
        self.columns, self.order = columns, order

    def load(self):
        order = torch.arange(N) if self.order is None else self.order
        train = {name: column[:N][order] for name, column in self.columns.items()}
        held = {name: column[N:] for name, column in self.columns.items()}
        return Pools(
            "test", ArrayDataset(train), ArrayDataset(held), {}, {}, {"row": order.numpy()}
        )


def images():
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(4, (N + 40,), generator=generator)
    centers = 2 * torch.randn(4, 12, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(target), 12, generator=generator, dtype=torch.float64)
    return {"input": centers[target] + noise, "target": target}


def text():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 11, (N + 40, 9), generator=generator)
    lengths = torch.randint(4, 10, (len(ids), 1), generator=generator)
    mask = torch.arange(9) < lengths
    ids = ids * mask
    return {
        "input_ids": ids,
        "labels": torch.where(mask, ids, -100),
        "attention_mask": mask.long(),
    }


def classifier():
    network = nn.Sequential(
        MLP(inputs=12, hidden=[10], outputs=10),
        nn.Dropout(0.5),
        nn.BatchNorm1d(10),
        nn.Linear(10, 4),
    )
    return ClassificationTask(network.double())


def language_model():
    return CausalLMTask(TinyLlama(vocabulary=11, width=8, layers=1, dropout=0.3).double())


MODALITIES = {"images": (images, classifier), "text": (text, language_model)}


@pytest.fixture(params=MODALITIES)
def modality(request):
    columns, make = MODALITIES[request.param]
    torch.manual_seed(0)
    task = make()
    task.load_state_dict(_trained(task, columns()))
    return SimpleNamespace(name=request.param, columns=columns(), task=task)


def _trained(task, columns):
    """A few steps of training, so that samples differ in what the model makes of them."""
    task.train()
    optimizer = torch.optim.Adam(task.parameters(), lr=0.01)
    batch = {name: column[:N] for name, column in columns.items()} | {"index": torch.arange(N)}
    for _ in range(20):
        optimizer.zero_grad()
        task.loss(batch).backward()
        optimizer.step()
    optimizer.zero_grad()
    return task.state_dict()


@pytest.fixture(scope="session")
def record():
    """Writes what a selector's recorder sees in a real training, permuted as the data is.

    What is of each sample lies along the last dimension.
    """
    trained = {}

    def write(recorder, path, task, columns, order):
        key = (recorder.name, type(task).__name__)
        if key not in trained:
            other, trained[key] = copy.deepcopy(task), recorder
            other.epochs = 6
            quiet = {"accelerator": "cpu", "enable_progress_bar": False}
            train_task(other, Data(columns, batch_size=16), "train", 0, quiet, [recorder])
        data = Data(columns, order)
        data.setup("fit")
        found = copy.copy(trained[key])
        order = torch.arange(N) if order is None else order
        found.content = {
            k: v[..., order] if v.shape[-1] == N else v for k, v in found.content.items()
        }
        found.about = found.about | {
            "data": data.fingerprint, "weights": digest(task.network),
        }  # fmt: skip
        found.write(path)
        return str(path)

    return write


@pytest.fixture
def fit(tmp_path, record):
    """Fit for no step; gives back the strategy, the data and the coreset's training positions."""

    def run(selector, task, columns, order=None, **options):
        if selector.record is None and selector.recorder() is not None:
            path = tmp_path / "record.pt"
            selector.record = record(selector.recorder(), path, task, columns, order)
        strategy = GradientAscent(task)
        data = Data(columns, order, **options)
        trainer = Trainer(
            default_root_dir=tmp_path, accelerator="cpu", max_steps=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, callbacks=[selector],
        )  # fmt: skip
        trainer.fit(strategy, data)
        return SimpleNamespace(strategy=strategy, data=data, picked=data.coreset)

    return run
