"""Generated data with planted facts, so that forgetting can be tested against a known truth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from datamodules.base import UnlearningDataModule
from datamodules.datasets import ArrayDataset, Pools
from datamodules.files import split
from erasus_pl.requests import ForgetRequest

__all__ = ["SyntheticForgetDataModule"]

Array = npt.NDArray[Any]
Rows = dict[str, Array]

_FIRST_DAY = np.datetime64("2024-01-01", "D")
_DAYS = 366


class SyntheticForgetDataModule(UnlearningDataModule):
    """A Gaussian mixture whose every planted fact is a column that requests can name.

    Class c lies around separation/√2 · e_c with unit variance, so that two classes are
    `separation` apart and the Bayes error is known. Each sample belongs to a `group` (a user), has
    an `attribute` and a day (`timestamp`, in 2024), all drawn uniformly. Held-out data is drawn
    and planted alike, so a request finds non-members there that are distributed like what it
    names; only repeats and duplicates are of the training data alone.

    Columns: `target` (the label trained on), `clean_target` (the class drawn from), `group`,
    `attribute`, `timestamp`, `noisy`, `is_backdoor`, `is_canary`, `canary` (its number, −1 for
    none; canaries held out have other numbers), `repeats` (how often the training data holds the
    canary, 0 for none), `duplicate_of` (training position of the sample that this one copies
    exactly, also where this one is held out; −1 for none), `id`.

    Args:
        samples: drawn from the mixture, before canaries and copies are added.
        features: size of an input; the last one is kept for the trigger.
        classes: how many.
        groups: how many.
        attributes: the values there are.
        separation: distance between the means of two classes, in standard deviations.
        shift: how far an attribute and a group each move the mean of their samples.
        label_noise: part of the samples whose label is another class than its own, at random.
        backdoor: part of the samples that carry the trigger and `backdoor_target` as label.
        backdoor_target: the class that the trigger asks for.
        trigger: what the last feature is set to by the trigger.
        duplicates: training samples copied exactly into another group and another attribute, so
            that forgetting the one leaves the other.
        leaks: training samples copied exactly into the held-out data, which a sound audit finds.
        canaries: records with a random wrong label that are trained on; as many are held out.
        repeats: how often the training data holds each canary, from the first on and over again.
        held_out: part of the samples that the original is never trained on.
        data_seed: of the data; `seed` is that of the order of batches.
        request: what must go; none only to train an original.
        **options: of every datamodule, such as `batch_size`; see `UnlearningDataModule`.
    """

    def __init__(
        self,
        samples: int = 2000,
        features: int = 20,
        classes: int = 4,
        groups: int = 20,
        attributes: Sequence[str] = ("red", "green", "blue"),
        separation: float = 3.0,
        shift: float = 0.5,
        label_noise: float = 0.0,
        backdoor: float = 0.0,
        backdoor_target: int = 0,
        trigger: float = 6.0,
        duplicates: int = 0,
        leaks: int = 0,
        canaries: int = 0,
        repeats: Sequence[int] = (1,),
        held_out: float = 0.5,
        data_seed: int = 0,
        request: ForgetRequest | None = None,
        **options: Any,
    ) -> None:
        super().__init__(request, **options)
        least = classes + len(attributes) + 1
        for name, value, low, high in (
            ("classes", classes, 2, None),
            ("groups", groups, 2, None),
            ("attributes", len(attributes), 2, None),
            ("features", features, least, None),
            ("label_noise", label_noise, 0, 0.5),
            ("backdoor", backdoor, 0, 0.5),
            ("backdoor_target", backdoor_target, 0, classes - 1),
            ("duplicates", duplicates, 0, None),
            ("leaks", leaks, 0, None),
            ("canaries", canaries, 0, None),
            ("repeats", min(repeats, default=0), 1, None),
        ):
            if value < low or (high is not None and value > high):
                limits = f"from {low} to {high}" if high is not None else f"at least {low}"
                msg = f"`{name}` must be {limits}, got {value}"
                raise ValueError(msg)
        train = len(split(samples, held_out)[0])
        for name, value in (("duplicates", duplicates), ("leaks", leaks)):
            if value > train:
                msg = f"`{name}` must be at most the {train:,} training samples, got {value:,}"
                raise ValueError(msg)
        self.samples = samples
        self.features = features
        self.classes = classes
        self.groups = groups
        self.attributes = tuple(attributes)
        self.separation = separation
        self.shift = shift
        self.label_noise = label_noise
        self.backdoor = backdoor
        self.backdoor_target = backdoor_target
        self.trigger = trigger
        self.duplicates = duplicates
        self.leaks = leaks
        self.canaries = canaries
        self.repeats = tuple(repeats)
        self.held_out = held_out
        self.data_seed = data_seed

    def load(self) -> Pools:
        """Draw the samples, plant the facts, and split."""
        rng = np.random.default_rng(self.data_seed)
        offsets = rng.standard_normal((self.groups, self.features - 1))
        offsets *= self.shift / np.linalg.norm(offsets, axis=1, keepdims=True)
        rows = self._draw(self.samples, offsets, rng)
        self._plant_noise(rows, rng)
        self._plant_backdoor(rows, rng)
        inside, outside = split(self.samples, self.held_out)
        train, held_out = _take(rows, inside), _take(rows, outside)
        copied = _take(train, rng.choice(len(inside), self.duplicates, replace=False))
        for name, size in (("group", self.groups), ("attribute", len(self.attributes))):
            moved = copied[name] + rng.integers(1, size, len(copied[name]))
            copied[name] = moved % size
        copied["timestamp"] = _days(len(copied["group"]), rng)
        inserted, unseen = self._canaries(offsets, rng)
        train = _join(train, copied, *inserted)
        order = rng.permutation(len(train["target"]))
        train = _take(train, order)
        train["duplicate_of"] = _copies(train["id"])
        leaked = rng.choice(len(order), self.leaks, replace=False)
        n = len(order)
        held_out = _join(held_out, unseen, _take(train, leaked))
        held_out["duplicate_of"] = np.full(len(held_out["target"]), -1)
        held_out["duplicate_of"][len(held_out["target"]) - self.leaks :] = leaked
        train["id"] = np.arange(n)
        held_out["id"] = np.arange(n, n + len(held_out["target"]))
        train_set, held_out_set = (
            ArrayDataset(
                {
                    "input": torch.from_numpy(part["input"].astype(np.float32)),
                    "target": torch.from_numpy(part["target"]),
                }
            )
            for part in (train, held_out)
        )
        for part in (train, held_out):
            part["attribute"] = np.array(self.attributes)[part["attribute"]]
        content = {name: train[name] for name in ("input", "target")}
        return Pools(
            "synthetic", train_set, held_out_set, _columns(train), _columns(held_out), content
        )

    def _draw(self, n: int, offsets: Array, rng: np.random.Generator) -> Rows:
        target = rng.integers(0, self.classes, n)
        group = rng.integers(0, self.groups, n)
        attribute = rng.integers(0, len(self.attributes), n)
        inputs = rng.standard_normal((n, self.features))
        inputs[np.arange(n), target] += self.separation / np.sqrt(2)
        inputs[np.arange(n), self.classes + attribute] += self.shift
        inputs[:, :-1] += offsets[group]
        return {
            "input": inputs,
            "target": target,
            "clean_target": target.copy(),
            "group": group,
            "attribute": attribute,
            "timestamp": _days(n, rng),
            "noisy": np.zeros(n, dtype=bool),
            "is_backdoor": np.zeros(n, dtype=bool),
            "is_canary": np.zeros(n, dtype=bool),
            "canary": np.full(n, -1),
            "repeats": np.zeros(n, dtype=np.int64),
            "id": rng.permutation(n),
        }

    def _plant_noise(self, rows: Rows, rng: np.random.Generator) -> None:
        n = len(rows["target"])
        at = rng.choice(n, round(self.label_noise * n), replace=False)
        rows["noisy"][at] = True
        rows["target"][at] = self._wrong(rows["clean_target"][at], rng)

    def _plant_backdoor(self, rows: Rows, rng: np.random.Generator) -> None:
        n = len(rows["target"])
        free = np.flatnonzero(~rows["noisy"] & (rows["clean_target"] != self.backdoor_target))
        count = round(self.backdoor * n)
        if count > len(free):
            msg = (
                f"`backdoor` must leave room beside `label_noise`: {count:,} samples are asked for "
                f"and {len(free):,} are clean and of another class than {self.backdoor_target}"
            )
            raise ValueError(msg)
        at = rng.choice(free, count, replace=False)
        rows["is_backdoor"][at] = True
        rows["target"][at] = self.backdoor_target
        rows["input"][at, -1] = self.trigger

    def _canaries(self, offsets: Array, rng: np.random.Generator) -> tuple[list[Rows], Rows]:
        k = self.canaries
        rows = self._draw(2 * k, offsets, rng)
        rows["is_canary"][:] = True
        rows["canary"] = np.arange(2 * k)
        rows["target"] = self._wrong(rows["clean_target"], rng)
        rows["id"] = self.samples + np.arange(2 * k)
        rows["repeats"][:k] = np.resize(self.repeats, k)
        copies = np.repeat(np.arange(k), rows["repeats"][:k])
        return [_take(rows, copies)], _take(rows, np.arange(k, 2 * k))

    def _wrong(self, target: Array, rng: np.random.Generator) -> Array:
        wrong: Array = (target + rng.integers(1, self.classes, len(target))) % self.classes
        return wrong


def _days(n: int, rng: np.random.Generator) -> Array:
    days: Array = _FIRST_DAY + rng.integers(0, _DAYS, n)
    return days


def _take(rows: Rows, positions: Array) -> Rows:
    return {name: column[positions] for name, column in rows.items()}


def _join(*parts: Rows) -> Rows:
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in shared}


def _copies(ids: Array) -> Array:
    """Position of the first sample of the same id, −1 for that one itself; `(n,)`."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    origin: Array = first[inverse]
    return np.where(origin == np.arange(len(ids)), -1, origin)


def _columns(rows: Rows) -> dict[str, Array]:
    return {name: column for name, column in rows.items() if name != "input"}
