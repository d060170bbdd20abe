"""Where data is that does not come with the project, and a small dataset that draws at random."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch.utils.data import Dataset

from datamodules import UnlearningDataModule
from erasus_pl.requests import ForgetRequest
from erasus_pl.tasks import Task

_ROOT = Path(__file__).parents[2]
_BESIDE = _ROOT.parent / "shared" / "data"


@pytest.fixture
def shared():
    """Path of a shared file by its name; skips where it is absent."""

    def find(name):
        path = Path(os.environ.get("ERASUS_PL_DATA", _BESIDE)) / name
        if not path.is_file():
            pytest.skip(f"{name} is absent; set ERASUS_PL_DATA to the folder that holds it")
        return str(path)

    return find


class Drawing(Dataset):
    """Items that draw from all three random generators, as augmentations of users do."""

    def __init__(self, n=40):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(i)
        drawn = [torch.rand(()).item(), float(np.random.rand()), random.random()]
        return torch.tensor([float(i), *drawn]), i % 4


@pytest.fixture
def drawing():
    return Drawing()


@pytest.fixture
def parsed():
    """Make what a part under conf/ describes, with some arguments changed."""

    def make(part, **arguments):
        kind = {"data": UnlearningDataModule, "task": Task, "request": ForgetRequest}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(kind[part.split("/")[0]], "part")
        given = [f"--part.init_args.{name}={value}" for name, value in arguments.items()]
        found = parser.parse_args([f"--part={_ROOT / 'conf' / part}", *given])
        return parser.instantiate(found).part

    return make
