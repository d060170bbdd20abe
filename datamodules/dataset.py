"""Any map dataset: torch style, Hugging Face style, or the user's own."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from datamodules.base import UnlearningDataModule
from datamodules.datasets import Pools
from erasus_pl.requests import ForgetRequest

__all__ = ["DatasetDataModule"]

Array = npt.NDArray[Any]


class DatasetDataModule(UnlearningDataModule):
    """Data in objects with `__len__` and `__getitem__`, given from Python or by `class_path`.

    Items are `(input, target)` pairs or dicts. Requests can name the columns of a Hugging Face
    dataset, the `target` of a dataset with `.targets` or a TensorDataset of two tensors (inside a
    Subset or ConcatDataset as well), and what `columns` gives.

    A column `id` says which samples are the same; one that is both trained on and held out is
    refused, as is one sample in two Subsets. The manifest's fingerprint covers the columns and
    what is in memory (`.data`, `.tensors`), but not files that items are read from.

    Args:
        train: what the original was trained on.
        held_out: what it was never trained on; split into test and holdout set as the request
            says. Give this, or both of `test` and `holdout`.
        test: measures what the model is good for.
        holdout: the non-members of membership attacks, distributed like the forget set.
        columns: name → one value for each sample of `train`, for requests.
        held_out_columns: the same for `held_out`, or for `test` followed by `holdout`.
        keys: batch key → key of the items, which must be dicts; other keys are left out, and
            requests can use both names. Items are taken as they are if not given.
        name: of the data, for manifests and reports.
        request: what must go; none only to train an original.
        **options: of every datamodule, such as `batch_size`; see `UnlearningDataModule`.
    """

    def __init__(
        self,
        train: Dataset,
        held_out: Dataset | None = None,
        test: Dataset | None = None,
        holdout: Dataset | None = None,
        columns: dict[str, Any] | None = None,
        held_out_columns: dict[str, Any] | None = None,
        keys: dict[str, str] | None = None,
        name: str = "dataset",
        request: ForgetRequest | None = None,
        **options: Any,
    ) -> None:
        super().__init__(request, **options)
        given = {"train": train, "held_out": held_out, "test": test, "holdout": holdout}
        self.parts = {field: part for field, part in given.items() if part is not None}
        if set(self.parts) not in ({"train", "held_out"}, {"train", "test", "holdout"}):
            msg = (
                "give `train` and either `held_out` or both of `test` and `holdout`, got "
                f"{', '.join(self.parts)}"
            )
            raise ValueError(msg)
        for field, part in self.parts.items():
            if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
                msg = f"`{field}` must have __len__ and __getitem__, got {type(part).__name__}"
                raise TypeError(msg)
        self.columns = dict(columns or {})
        self.held_out_columns = dict(held_out_columns or {})
        self.keys = keys
        self.data_name = name

    def load(self) -> Pools:
        """Collect the columns and refuse samples that are in two places."""
        for (one, first), (other, second) in combinations(self.parts.items(), 2):
            _refuse_shared(one, first, other, second)
        train, *others = self.parts.values()
        sizes = {field: _size(part) for field, part in self.parts.items()}
        for field, size in sizes.items():
            least = 2 if field in ("train", "held_out") else 1
            if size < least:
                msg = f"`{field}` must have {least} samples or more, got {size}"
                raise ValueError(msg)
        columns = self._renamed(_found(train))
        columns |= _given(self.columns, sizes["train"], "columns")
        held_out = others[0] if len(others) == 1 else ConcatDataset(others)
        m = sum(size for field, size in sizes.items() if field != "train")
        held_out_columns = self._renamed(_found(held_out))
        held_out_columns |= _given(self.held_out_columns, m, "held_out_columns")
        _refuse_same_ids(columns, held_out_columns, list(sizes.items())[1:])
        holdout = np.arange(m) >= sizes["test"] if "test" in sizes else None
        return Pools(
            self.data_name,
            _Items(train, self.keys),
            _Items(held_out, self.keys),
            columns,
            held_out_columns,
            {**_content(train), **{f"column {name}": v for name, v in columns.items()}},
            holdout,
        )

    def _renamed(self, columns: dict[str, Array]) -> dict[str, Array]:
        renamed = {name: columns[key] for name, key in (self.keys or {}).items() if key in columns}
        return columns | renamed


class _Items(Dataset[Any]):
    """Items of a dataset, with keys renamed and lists of numbers made into tensors."""

    def __init__(self, dataset: Dataset, keys: Mapping[str, str] | None) -> None:
        self.dataset = dataset
        self.keys = keys

    def __len__(self) -> int:
        return _size(self.dataset)

    def __getitem__(self, i: int) -> Any:
        item = self.dataset[i]
        if self.keys is not None:
            if not isinstance(item, Mapping):
                msg = f"`keys` needs items that are dicts, got {type(item).__name__}"
                raise TypeError(msg)
            absent = sorted(set(self.keys.values()) - set(item))
            if absent:
                msg = f"`keys`: items have no {absent[0]!r}, but {', '.join(map(str, item))}"
                raise ValueError(msg)
            item = {name: item[key] for name, key in self.keys.items()}
        if isinstance(item, Mapping):
            return {
                name: torch.tensor(value) if isinstance(value, list) else value
                for name, value in item.items()
            }
        return item


def _size(dataset: Any) -> int:
    return len(dataset)


def _found(dataset: Any) -> dict[str, Array]:
    """Per-sample columns that a dataset shows by itself, each `(n,)`."""
    if isinstance(dataset, Subset):
        return {name: v[np.asarray(dataset.indices)] for name, v in _found(dataset.dataset).items()}
    if isinstance(dataset, ConcatDataset):
        parts = [_found(part) for part in dataset.datasets]
        shared = set.intersection(*(set(part) for part in parts))
        return {name: np.concatenate([part[name] for part in parts]) for name in sorted(shared)}
    n = _size(dataset)
    columns = {name: np.asarray(dataset[name][:]) for name in _scalar_columns(dataset)}
    targets = getattr(dataset, "targets", None)
    if targets is None and isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        targets = dataset.tensors[1]
    if targets is not None and np.shape(targets) == (n,):
        columns["target"] = np.asarray(targets)
    return columns


def _scalar_columns(dataset: Any) -> list[str]:
    names = getattr(dataset, "column_names", None)
    if not isinstance(names, Sequence) or not _size(dataset):
        return []
    first = dataset[0]
    scalar = (str, bool, int, float, np.generic, torch.Tensor)
    return [n for n in names if isinstance(first[n], scalar) and np.ndim(first[n]) == 0]


def _given(columns: Mapping[str, Any], n: int, field: str) -> dict[str, Array]:
    found = {}
    for name, values in columns.items():
        found[name] = np.asarray(values)
        if found[name].shape != (n,):
            msg = (
                f"`{field}`: {name!r} must have shape ({n},), one value per sample, got "
                f"{found[name].shape}"
            )
            raise ValueError(msg)
    return found


def _content(dataset: Any) -> dict[str, Array]:
    """What identifies the samples beyond their columns, where it is in memory."""
    if isinstance(dataset, Subset):
        return {**_content(dataset.dataset), "indices": np.asarray(dataset.indices)}
    if isinstance(dataset, ConcatDataset):
        return {
            f"{i} {name}": values
            for i, part in enumerate(dataset.datasets)
            for name, values in _content(part).items()
        }
    if isinstance(dataset, TensorDataset):
        return {f"tensor {i}": t.numpy() for i, t in enumerate(dataset.tensors)}
    known = getattr(dataset, "_fingerprint", None)  # of a Hugging Face dataset
    if isinstance(known, str):
        return {"fingerprint": np.array(known)}
    data = getattr(dataset, "data", None)
    return {"data": np.asarray(data)} if isinstance(data, (np.ndarray, torch.Tensor)) else {}


def _refuse_shared(one: str, first: Any, other: str, second: Any) -> None:
    if first is second:
        msg = f"`{one}` and `{other}` are the same object; give parts that share no sample"
        raise ValueError(msg)
    whole, positions = _roots(first)
    same, others = _roots(second)
    shared = np.intersect1d(positions, others)
    if whole is same and len(shared):
        msg = (
            f"`{one}` and `{other}` share {len(shared):,} samples of one dataset, the first at "
            f"{shared[0]}; give parts that share none"
        )
        raise ValueError(msg)


def _roots(dataset: Any) -> tuple[Any, Array]:
    if isinstance(dataset, Subset):
        whole, positions = _roots(dataset.dataset)
        return whole, positions[np.asarray(dataset.indices)]
    return dataset, np.arange(_size(dataset))


def _refuse_same_ids(
    train: dict[str, Array], held_out: dict[str, Array], sizes: list[tuple[str, int]]
) -> None:
    if "id" not in train or "id" not in held_out:
        return
    ids = {"train": train["id"]}
    ends = np.cumsum([size for _, size in sizes])
    for (field, size), end in zip(sizes, ends, strict=True):
        ids[field] = held_out["id"][end - size : end]
    for one, other in combinations(ids, 2):
        both = np.intersect1d(ids[one], ids[other])
        if len(both):
            msg = (
                f"`{one}` and `{other}` share {len(both):,} samples, the first with id "
                f"{both[0].item()!r}; take them out of one"
            )
            raise ValueError(msg)
