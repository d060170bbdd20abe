"""The splits, originals and retrained models that every side gets, trained once by our code."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import SPLITS, build

from datamodules import (
    ArrayDataModule,
    DigitsDataModule,
    TabularDataModule,
    UnlearningDataModule,
)
from erasus_pl.evaluation.gold import cache_key, train_task
from erasus_pl.requests import ForgetClass, ForgetRandom, ForgetRequest
from erasus_pl.tasks import ClassificationTask

__all__ = ["SETTINGS", "Setting", "make"]

_FORGOTTEN = 3


@dataclass(frozen=True)
class Setting:
    """One data set, network and kind of request.

    Args:
        title: for the page.
        data: `digits`, `mnist` or `location30`.
        kind: `class`, or `random` for 10 % of the training data.
        widths: of the network, from inputs to classes.
        epochs: of training, with Adam.
        lr: of that training.
        batch_size: of training and of unlearning.
        limit: train on the first so many samples only.
    """

    title: str
    data: str
    kind: str
    widths: tuple[int, ...]
    epochs: int
    lr: float
    batch_size: int
    limit: int | None = None

    @property
    def layers(self) -> list[list[Any]]:
        """The network as plain layers."""
        made: list[list[Any]] = [["flatten"]]
        for i, (inputs, outputs) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            made += [["relu"]] * (i > 0) + [["linear", inputs, outputs]]
        return made

    def request(self, seed: int) -> ForgetRequest:
        """What must go; a random draw has the seed of the run."""
        if self.kind == "class":
            return ForgetClass([_FORGOTTEN])
        return ForgetRandom(fraction=0.1, seed=seed)

    def available(self, folder: Path) -> bool:
        """Whether the data is there."""
        return self.data == "digits" or (folder / f"{self.data}.npz").is_file()


SETTINGS = {
    "digits-class": Setting("digits, a class", "digits", "class", (64, 64, 10), 30, 0.003, 64),
    "digits-random": Setting(
        "digits, random 10 %", "digits", "random", (64, 64, 10), 30, 0.003, 64
    ),
    "location30-random": Setting(
        "Location-30, random 10 %", "location30", "random", (446, 128, 30), 50, 0.001, 64
    ),
    "mnist-class": Setting(
        "MNIST, 5,000 images, a class", "mnist", "class", (784, 128, 10), 6, 0.001, 128, 5000
    ),
}


def _data(setting: Setting, seed: int, folder: Path) -> UnlearningDataModule:
    request = setting.request(seed)
    if setting.data == "digits":
        return DigitsDataModule(request, batch_size=setting.batch_size)
    path = str(folder / f"{setting.data}.npz")
    if setting.data == "location30":
        return TabularDataModule(
            path,
            "y",
            numeric=["x"],
            standardize=False,
            held_out=0.5,
            request=request,
            batch_size=setting.batch_size,
        )
    return ArrayDataModule(
        path,
        train=["x_train", "y_train"],
        held_out=["x_test", "y_test"],
        limit=setting.limit,
        mean=[0.1307],
        std=[0.3081],
        request=request,
        batch_size=setting.batch_size,
    )


def _adam(lr: float) -> Callable:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def make(name: str, seed: int, folder: Path, kept: Path) -> Path:
    """The folder of a problem, in `kept`: made, or found as it was made before.

    Args:
        name: of a setting.
        seed: of the original and of a random draw; the two retrained models have others.
        folder: where MNIST and Location-30 are.
        kept: where problems are kept.
    """
    setting = SETTINGS[name]
    key = cache_key(format=1, name=name, seed=seed, **asdict(setting))
    place = kept / f"{name}-{seed}-{key}"
    if (place / "problem.json").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    data = _data(setting, seed, folder)
    data.setup("validate")
    task = ClassificationTask(
        build(setting.layers), optimizer=_adam(setting.lr), epochs=setting.epochs
    )
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    for model, on, train_seed in (
        ("original", "train", seed),
        ("retrained", "retrain", 1000 + seed),
        ("retrained_2", "retrain", 2000 + seed),
    ):
        trained = copy.deepcopy(task)
        train_task(trained, data, on, train_seed, quiet)  # type: ignore[arg-type]
        torch.save(trained.network.state_dict(), place / f"{model}.pt")
    arrays = {}
    for split in SPLITS:
        view = getattr(data, f"{split}_set")
        batch = view.dataset.batch(view.positions)
        arrays |= {
            f"{split}_x": batch["input"].float().numpy(),
            f"{split}_y": batch["target"].numpy(),
        }
    np.savez(place / "data.npz", **arrays)
    about = {
        "setting": name,
        "seed": seed,
        "kind": setting.kind,
        "layers": setting.layers,
        "classes": setting.widths[-1],
        "forget_class": _FORGOTTEN if setting.kind == "class" else None,
        "batch_size": setting.batch_size,
    }
    partial = place / "problem.part"
    partial.write_text(json.dumps(about))
    partial.replace(place / "problem.json")
    return place
