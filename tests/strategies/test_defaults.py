"""What each strategy achieves at its default settings, on real digits: no setting is chosen here.

A class is forgotten, or random samples whose labels are wrong: the original has memorised some of
those, and the retrained model has not seen them. Iterative strategies pass ten times over the
retain set. A strategy ends nearer to the retrained model than the original is, by the mean
distance in accuracy over forget, retain and test set, or its `limits` say that it does not, and
why; either way the catalogue tells the truth.
"""

import copy
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from datamodules import DigitsDataModule
from erasus_pl import strategies as room
from erasus_pl.evaluation.gold import train_task
from erasus_pl.networks import MLP, ShardedEnsemble
from erasus_pl.requests import ForgetClass, ForgetIndices
from erasus_pl.strategies import Strategy
from erasus_pl.strategies._stages import Staged
from erasus_pl.tasks import ClassificationTask

NEARER = 0.006
WRONG = np.sort(np.random.default_rng(0).permutation(1078)[:54])
HEAD_ALONE = {"NTKForgetting"}  # all weights take minutes, and more memory than it grants itself
STRATEGIES = {
    n: c for n, c in vars(room).items()
    if isinstance(c, type) and issubclass(c, Strategy) and c is not Strategy
}  # fmt: skip


class Mislabelled(DigitsDataModule):
    """The digits, with wrong labels on 54 random samples."""

    def load(self):
        pools = super().load()
        target = pools.train.columns["target"]
        off = np.random.default_rng(1).integers(1, 10, len(WRONG))
        target[WRONG] = (target[WRONG] + torch.from_numpy(off)) % 10
        return pools


CASES = {
    "class": (lambda: DigitsDataModule(ForgetClass([3]), epoch="retain"), 64, 30),
    "random": (lambda: Mislabelled(ForgetIndices(WRONG.tolist()), epoch="retain"), 256, 60),
}


class Grid(nn.Sequential):
    """A network with convolutions, for strategies that need them."""

    def __init__(self, width):
        super().__init__(
            nn.Conv2d(1, width // 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9 * width // 2, 10)
        )


def accuracies(task, data):
    task.eval()
    found = []
    with torch.no_grad():
        for split in (data.forget_set, data.retain_set, data.test_set):
            found += [
                torch.cat([task.correct(task(b), b) for b in data.sweep(split)]).mean().item()
            ]
    return np.array(found)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """An original, and how far a model is from the retrained one, for a kind of network."""
    make, width, epochs = CASES[request.param]

    @cache
    def trained(convolutions, sharded=False):
        network = Grid(width) if convolutions else MLP(64, [width], 10)
        folder = tmp_path_factory.mktemp("original") if sharded else None
        if sharded:
            network = ShardedEnsemble(network)
        task = ClassificationTask(
            network, optimizer=lambda p: torch.optim.Adam(p, lr=0.003), epochs=epochs
        )
        data = make()
        data.setup("validate")
        quiet = {"accelerator": "cpu", "enable_progress_bar": False}
        original, retrained = copy.deepcopy(task), copy.deepcopy(task)
        train_task(original, data, "train", 0, quiet, folder=folder)
        train_task(retrained, data, "retrain", 1, quiet)
        gold = accuracies(retrained, data)
        return original, lambda task: float(np.abs(accuracies(task, data) - gold).mean())

    return SimpleNamespace(name=request.param, make=make, trained=trained)


@pytest.mark.parametrize("convolutions", [False, True])
def test_there_is_something_to_forget(convolutions, case):
    original, distance = case.trained(convolutions)
    assert distance(original) > 0.1


@pytest.mark.parametrize("name", STRATEGIES)
def test_nearer_to_the_retrained_model_or_said_not_to_be(name, case, fit, tmp_path):
    needs = STRATEGIES[name].requires
    original, distance = case.trained("convolutions" in needs, "shards" in needs)
    task = copy.deepcopy(original).train()
    if name in HEAD_ALONE:
        task.requires_grad_(False)
        task.head.requires_grad_(True)
    strategy = STRATEGIES[name](task)
    epochs = 1 if strategy.one_shot else 10
    if isinstance(strategy, Staged):
        epochs = -1
    if strategy.optimizer is None and name in {"EUk", "Retrain"}:
        epochs = strategy.task.epochs
    recorder = strategy.recorder()
    if recorder is not None:  # which leaves that training as it was, to the bit
        quiet = {"accelerator": "cpu", "enable_progress_bar": False}
        train_task(copy.deepcopy(original), case.make(), "train", 0, quiet, [recorder])
        strategy.record = str(tmp_path / "record.pt")
        recorder.write(strategy.record)
    before = distance(original)
    after = distance(fit(strategy, case.make(), max_epochs=epochs).task)
    said = strategy.limits.get(case.name)
    assert (after > before - NEARER) == (said is not None), f"{before:.4f} to {after:.4f}; {said}"


@pytest.mark.parametrize("name", STRATEGIES)
def test_limits_name_known_cases_and_reasons(name):
    assert STRATEGIES[name].limits.keys() <= CASES.keys()
    assert all(len(why) > 20 for why in STRATEGIES[name].limits.values())
