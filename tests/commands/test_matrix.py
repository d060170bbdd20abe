"""The matrix of strategies and tasks: what `catalogue --matrix` prints is what happens here.

`python tests/commands/test_matrix.py` writes it anew, by running every pair for two steps.
"""

import json
import sys
import tempfile
import warnings

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

import erasus_pl.commands.catalogue as verb
from datamodules import ArrayDataset, Pools, UnlearningDataModule
from erasus_pl import strategies as room
from erasus_pl.__main__ import main
from erasus_pl._console import quiet
from erasus_pl.evaluation.gold import train_task
from erasus_pl.networks import ShardedEnsemble, TinyLlama
from erasus_pl.requests import ForgetIndices
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import CausalLMTask, ClassificationTask, Task

N, HELD = 24, 12
# What a strategy needs beside its defaults: epochs, and options.
EPOCHS: dict[str, int] = {}
OPTIONS: dict[str, dict] = {"SSD": {"alpha": 1.0}, "LFSSD": {"alpha": 1.0}}


class Tiny(UnlearningDataModule):
    """Twenty-four samples, of which every third is forgotten."""

    def __init__(self, columns):
        super().__init__(ForgetIndices(list(range(0, N, 3))), batch_size=6)
        self.columns = columns

    def load(self):
        train = {name: column[:N] for name, column in self.columns.items()}
        held = {name: column[N:] for name, column in self.columns.items()}
        rows = {"row": torch.arange(N).numpy()}
        return Pools("tiny", ArrayDataset(train), ArrayDataset(held), rows, content=rows)


def _images():
    target = torch.arange(N + HELD) % 3
    inputs = torch.randn(N + HELD, 1, 4, 4) + target.view(-1, 1, 1, 1)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    return ClassificationTask(network), {"input": inputs, "target": target}


def _text():
    ids = torch.randint(1, 9, (N + HELD, 6))
    return CausalLMTask(TinyLlama(vocabulary=9, width=8, layers=1)), {
        "input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids),
    }  # fmt: skip


def _numbers():
    inputs = torch.randn(N + HELD, 5)
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    return Task(network, loss=nn.MSELoss()), {"input": inputs, "target": inputs.sum(1, True)}


TASKS = {"ClassificationTask": _images, "CausalLMTask": _text, "Task": _numbers}
STRATEGIES = {
    name: value
    for name in room.__all__
    if isinstance(value := getattr(room, name), type)
    and issubclass(value, Strategy)
    and value is not Strategy
}


def run(name: str, task_name: str, folder: str) -> str | None:
    """Two steps of a strategy on a task; why it cannot, or None."""
    seed_everything(0, verbose=False)
    task, columns = TASKS[task_name]()
    quick = {"accelerator": "cpu", "enable_progress_bar": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if "shards" in STRATEGIES[name].requires:
                task.network, task.epochs = ShardedEnsemble(task.network, shards=2, slices=2), 1
                train_task(task, Tiny(columns), "train", 0, quick, folder=f"{folder}/{task_name}")
            strategy = STRATEGIES[name](task, **OPTIONS.get(name, {}))
            recorder = strategy.recorder()
            if recorder is not None:
                task.epochs, strategy.record = 1, f"{folder}/{name}-{task_name}.pt"
                train_task(task, Tiny(columns), "train", 0, quick, [recorder])
                recorder.write(strategy.record)
            Trainer(
                default_root_dir=folder, accelerator="cpu",
                max_epochs=EPOCHS.get(name, -1 if hasattr(strategy, "stages") else 1),
                limit_train_batches=2, limit_val_batches=0, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            ).fit(strategy, Tiny(columns))  # fmt: skip
        except (TypeError, ValueError) as error:
            return str(error).partition(";")[0].splitlines()[0]
    assert all(p.isfinite().all() for p in strategy.task.parameters()), (name, task_name)
    return None


def matrix(folder: str) -> dict[str, dict[str, str | None]]:
    """Every pair: None where it runs, else the reason."""
    return {n: {t: run(n, t, folder) for t in TASKS} for n in sorted(STRATEGIES)}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_matrix_says_what_happens(name, tmp_path):
    kept = json.loads(verb.MATRIX.read_text("utf-8"))
    assert kept.keys() == STRATEGIES.keys(), "run: python tests/commands/test_matrix.py"
    found = {task: run(name, task, str(tmp_path)) for task in TASKS}
    assert kept[name] == found, "run: python tests/commands/test_matrix.py"


def test_a_pair_runs_exactly_where_the_task_has_what_is_required():
    """An empty cell has the reason that the catalogue gives, or one that names what is missing."""
    kept = json.loads(verb.MATRIX.read_text("utf-8"))
    fits = {entry["name"]: entry["tasks"] for entry in verb.catalogue()["strategies"]}
    for name, cells in kept.items():
        for task, why in cells.items():
            if why is None:
                assert task in fits[name]
            elif task not in fits[name]:
                assert "needs a task with" in why
            else:
                assert name in why or "`" in why, "a reason names the strategy or the field"


def test_catalogue_prints_the_matrix(capsys):
    assert main(["catalogue", "--matrix"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*STRATEGIES, *TASKS))
    kept = json.loads(verb.MATRIX.read_text("utf-8"))
    assert out.count("yes") >= sum(why is None for cells in kept.values() for why in cells.values())
    assert main(["catalogue", "--matrix", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == kept


if __name__ == "__main__":
    torch.set_num_threads(1)
    quiet()
    with tempfile.TemporaryDirectory() as _folder:
        _found = matrix(_folder)
    verb.MATRIX.write_text(json.dumps(_found, indent=1) + "\n", "utf-8")
    sys.exit(0)
