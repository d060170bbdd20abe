"""Tables by path: CSV, Parquet or NPZ."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from datamodules.base import UnlearningDataModule
from datamodules.datasets import ArrayDataset, Pools
from datamodules.files import named, read_table, split
from erasus_pl.requests import ForgetRequest

__all__ = ["TabularDataModule"]

Array = npt.NDArray[Any]

_MOST_VALUES = 1000


class TabularDataModule(UnlearningDataModule):
    """Rows of a table, as one vector of features each, and a class or a number to predict.

    Every column of the file can be named by requests with the values it has there, feature or
    not; beside them `target`, and `row`, the row's number in the file counted from 0. Which rows
    are held out depends on the table alone, not on the request.

    Numeric features come first, then categorical ones, in the order given. Means, deviations and
    categories are those of the training part; they include the forget set and stay as they are
    when it is forgotten.

    Args:
        path: a `.csv` or `.csv.gz` with a header, a `.parquet` (extra `tabular`) or an `.npz` of
            arrays `(n,)` and `(n, d)`; relative to the working directory.
        target: the column to predict; text and whole numbers become classes 0, 1, … in sorted
            order, kept in `classes`.
        numeric: columns of numbers to feed the model; where neither this nor `categorical` is
            given, every column of numbers.
        categorical: columns of categories to feed the model; where neither this nor `numeric` is
            given, every column of text.
        ignore: columns that are not fed to the model.
        encoding: of categories. `one_hot` makes a feature of each, all 0 for a value that training
            does not have; `codes` numbers them from 1, and 0 is that value.
        standardize: subtract the mean of numeric features and divide by their deviation.
        regression: predict the target as a number.
        held_out: part of the rows that the original is never trained on.
        held_out_path: a second file whose rows are held out, instead of a part of the first.
        request: what must go; none only to train an original.
        **options: of every datamodule, such as `batch_size`; see `UnlearningDataModule`.
    """

    def __init__(
        self,
        path: str,
        target: str,
        numeric: list[str] | None = None,
        categorical: list[str] | None = None,
        ignore: list[str] | None = None,
        encoding: Literal["one_hot", "codes"] = "one_hot",
        standardize: bool = True,
        regression: bool = False,
        held_out: float = 0.3,
        held_out_path: str | None = None,
        request: ForgetRequest | None = None,
        **options: Any,
    ) -> None:
        super().__init__(request, **options)
        if encoding not in ("one_hot", "codes"):
            msg = f"`encoding` must be one_hot or codes, got {encoding!r}"
            raise ValueError(msg)
        self.path = path
        self.target = target
        self.numeric = numeric
        self.categorical = categorical
        self.ignore = list(ignore or ())
        self.encoding = encoding
        self.standardize = standardize
        self.regression = regression
        self.held_out = held_out
        self.held_out_path = held_out_path
        self.classes: list[Any] = []
        self.feature_names: list[str] = []

    def load(self) -> Pools:
        """Read the table, split it, and make features of its columns."""
        table = read_table(self.path)
        n = len(table[named(self.target, table, "target", self.path)])
        if self.held_out_path is None:
            train, held_out = split(n, self.held_out)
            rows = np.arange(n)
        else:
            more = read_table(self.held_out_path, "held_out_path")
            for name in table:
                named(name, more, "held_out_path", self.held_out_path)
            m = len(more[self.target])
            if m < 2:
                msg = f"`held_out_path` must have 2 rows or more, got {m}"
                raise ValueError(msg)
            table = {name: _joined(name, table[name], more[name]) for name in table}
            train, held_out = np.arange(n), np.arange(n, n + m)
            rows = np.concatenate([np.arange(n), np.arange(m)])
            n += m
        target = self._encoded_target(table[self.target])
        features = self._features(table, n, train)
        columns = {k: v for k, v in table.items() if v.shape == (n,)}
        columns |= {"target": table[self.target], "row": rows}
        train_set, held_out_set = (
            ArrayDataset(
                {
                    "input": torch.from_numpy(features[part]),
                    "target": torch.from_numpy(target[part]),
                }
            )
            for part in (train, held_out)
        )
        return Pools(
            Path(self.path).name,
            train_set,
            held_out_set,
            {name: column[train] for name, column in columns.items()},
            {name: column[held_out] for name, column in columns.items()},
            {"input": features[train], "target": target[train]},
        )

    def _encoded_target(self, values: Array) -> Array:
        _check_complete(values, self.target, "target")
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            msg = f"`target`: {self.target!r} must have one value a row, got shape {values.shape}"
            raise ValueError(msg)
        numbers = values.dtype.kind in "biuf"
        if self.regression:
            if not numbers:
                msg = f"`target`: {self.target!r} must hold numbers, got {_example(values)}"
                raise ValueError(msg)
            return values.astype(np.float32)
        if values.dtype.kind == "f" and not np.array_equal(values, np.floor(values)):
            msg = (
                f"`target`: {self.target!r} must hold classes, got {_example(values)}; set "
                "`regression: true` to predict numbers"
            )
            raise ValueError(msg)
        classes, codes = np.unique(values if numbers else values.astype(str), return_inverse=True)
        if len(classes) < 2:
            msg = f"`target`: {self.target!r} must have 2 classes or more, got {classes.tolist()}"
            raise ValueError(msg)
        self.classes = classes.tolist()
        return codes.astype(np.int64)

    def _features(self, table: dict[str, Array], n: int, train: Array) -> Array:
        numeric, categorical = self._chosen(table, n)
        blocks: list[Array] = []
        self.feature_names = []
        for name in numeric:
            values = self._numbers(table[name], name, n)
            width = values.shape[1]
            if self.standardize:
                mean, deviation = values[train].mean(0), values[train].std(0)
                values = (values - mean) / np.where(deviation > 0, deviation, 1.0)
            blocks.append(values.astype(np.float32))
            self.feature_names += [name] if width == 1 else [f"{name}_{i}" for i in range(width)]
        for name in categorical:
            codes, known = self._codes(table[name], name, n, train)
            if self.encoding == "codes":
                blocks.append(codes[:, None].astype(np.float32))
                self.feature_names.append(name)
            else:
                one_hot = codes[:, None] == np.arange(1, len(known) + 1)
                blocks.append(one_hot.astype(np.float32))
                self.feature_names += [f"{name}={value}" for value in known]
        return np.concatenate(blocks, axis=1)

    def _chosen(self, table: dict[str, Array], n: int) -> tuple[list[str], list[str]]:
        for name in self.ignore:
            named(name, table, "ignore", self.path)
        out = {self.target, *self.ignore}
        if self.numeric is None and self.categorical is None:
            free = [name for name, values in table.items() if name not in out and len(values) == n]
            numeric = [name for name in free if table[name].dtype.kind in "biuf"]
            categorical = [name for name in free if name not in numeric]
        else:
            numeric, categorical = list(self.numeric or ()), list(self.categorical or ())
            for field, names in (("numeric", numeric), ("categorical", categorical)):
                for name in names:
                    named(name, table, field, self.path)
                    if name in out:
                        what = "the target" if name == self.target else "in `ignore`"
                        msg = f"`{field}`: {name!r} is {what} as well; take it out of one"
                        raise ValueError(msg)
        both = numeric + categorical
        if len(set(both)) < len(both):
            msg = f"`numeric` and `categorical` must name a column once, got {', '.join(both)}"
            raise ValueError(msg)
        if not numeric and not categorical:
            msg = f"`numeric` and `categorical` leave no feature of {self.path!r}; name some"
            raise ValueError(msg)
        return numeric, categorical

    def _numbers(self, values: Array, name: str, n: int) -> Array:
        if values.ndim not in (1, 2) or len(values) != n:
            msg = f"`numeric`: {name!r} must have shape ({n},) or ({n}, d), got {values.shape}"
            raise ValueError(msg)
        if values.dtype.kind not in "biuf":
            msg = (
                f"`numeric`: {name!r} must hold numbers, got {_example(values)}; name it in "
                "`categorical` or `ignore`"
            )
            raise ValueError(msg)
        _check_complete(values, name, "numeric")
        return values.reshape(n, -1).astype(np.float64)

    def _codes(self, values: Array, name: str, n: int, train: Array) -> tuple[Array, Array]:
        if values.shape != (n,) or values.dtype.kind not in "biufUSOT":
            msg = (
                f"`categorical`: {name!r} must hold text or numbers of shape ({n},), got "
                f"{values.dtype} of shape {values.shape}; name it in `ignore`"
            )
            raise ValueError(msg)
        _check_complete(values, name, "categorical")
        values = values.astype(str) if values.dtype.kind in "UOT" else values
        known = np.unique(values[train])
        if self.encoding == "one_hot" and len(known) > _MOST_VALUES:
            msg = (
                f"`categorical`: {name!r} has {len(known):,} values, {_MOST_VALUES:,} at most can "
                "be one-hot; name it in `ignore`, or set `encoding: codes`"
            )
            raise ValueError(msg)
        at = np.searchsorted(known, values).clip(max=len(known) - 1)
        return np.where(known[at] == values, at + 1, 0), known


def _joined(name: str, first: Array, second: Array) -> Array:
    numbers = [values.dtype.kind in "biuf" for values in (first, second)]
    if numbers[0] != numbers[1] or first.shape[1:] != second.shape[1:]:
        msg = (
            f"`held_out_path`: column {name!r} must be of one kind in both files, got "
            f"{second.dtype} of shape {second.shape}, and {first.dtype} of {first.shape} in `path`"
        )
        raise ValueError(msg)
    return np.concatenate([first, second])


def _check_complete(values: Array, name: str, field: str) -> None:
    bad: Array
    if values.dtype.kind == "f":
        bad = np.asarray(~np.isfinite(values.reshape(len(values), -1)).all(1))
    elif values.dtype.kind == "O":
        bad = np.array([value is None or value != value for value in values], dtype=bool)
    elif values.dtype.kind == "U" and field == "target":
        bad = np.asarray(values == "")
    else:
        return
    if bad.any():
        msg = (
            f"`{field}`: column {name!r} is missing or infinite in {bad.sum():,} of {len(bad):,} "
            f"rows, the first is row {np.flatnonzero(bad)[0]}; fill these in, drop the rows, or "
            "leave the column out"
        )
        raise ValueError(msg)


def _example(values: Array) -> str:
    if values.ndim != 1:
        return f"{values.dtype} of shape {values.shape}"
    odd = (row for row, value in enumerate(values.tolist()) if not _is_as_it_should(value))
    row = next(odd, 0)
    return f"{values.tolist()[row]!r} in row {row}"


def _is_as_it_should(value: object) -> bool:
    try:
        return float(str(value)).is_integer() or isinstance(value, str)
    except ValueError:
        return False
