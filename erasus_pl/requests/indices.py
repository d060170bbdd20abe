"""Forget samples named by their position in the training set."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from erasus_pl.requests.base import ForgetRequest
from erasus_pl.requests.errors import ForgetRequestError, _either

__all__ = ["ForgetIndices"]

_HEADERS = ("index", "indices", "id", "ids")


class ForgetIndices(ForgetRequest):
    """Forget the samples at the given positions, counted from 0.

    Args:
        indices: The positions; thousands of them belong in a file, which YAML reads far faster.
        path: A file of positions instead, read when the request is resolved: ``.txt`` (numbers
            apart by spaces, commas or lines; ``#`` starts a comment), ``.csv`` (one column, or
            one headed ``index``), ``.json`` (a list) or ``.npy`` (an integer array).

    Raises:
        ForgetRequestError: Both or neither are given, or `indices` holds something else than
            whole numbers.
    """

    field: str = "indices"

    def __init__(self, indices: list[int] | None = None, path: str | None = None) -> None:
        if (indices is None) == (path is None):
            given = "neither" if path is None else "both"
            msg = f"give exactly one of `indices` and `path`, got {given}"
            raise ForgetRequestError(msg)
        self._given = None if indices is None else _whole(indices, "indices")
        self.indices = None if self._given is None else sorted(self._given.tolist())
        self.path = path
        if path is not None:
            self.field = "path"

    def select(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        n: int,
    ) -> npt.NDArray[Any]:
        """The positions as given, shape ``(k,)``.

        Raises:
            ForgetRequestError: The file is missing, of another kind, or holds something else
                than whole numbers.
        """
        if self._given is not None:
            return self._given
        return _read(Path(str(self.path)).expanduser())

    def describe(self) -> str:
        """Say what is forgotten: ``the samples at 1, 5 and 9``."""
        if self.indices is None:
            return f"the samples listed in {self.path}"
        if not self.indices:
            return "no sample"
        noun = "sample" if len(self.indices) == 1 else "samples"
        return f"the {noun} at {_either(self.indices, 'and')}"


def _whole(items: Iterable[Any], field: str) -> npt.NDArray[Any]:
    """`items` as int64, shape ``(k,)``, refusing anything that is not a whole number."""
    if isinstance(items, np.ndarray):
        if items.ndim != 1 or (items.dtype.kind not in "iu" and items.size):
            msg = (
                f"`{field}` must hold whole numbers of shape (k,), "
                f"got {items.dtype} of shape {items.shape}"
            )
            raise ForgetRequestError(msg)
        return items
    limit = np.iinfo(np.int64).max
    whole = []
    for entry, item in enumerate(items, 1):
        if isinstance(item, (bool, np.bool_)) or not isinstance(item, (int, np.integer)):
            msg = f"`{field}` must hold whole numbers, got {item!r} (entry {entry})"
            raise ForgetRequestError(msg)
        if abs(int(item)) > limit:
            msg = f"`{field}` must hold positions in a data set, got {item} (entry {entry})"
            raise ForgetRequestError(msg)
        whole.append(int(item))
    return np.array(whole, dtype=np.int64)


def _read(path: Path) -> npt.NDArray[Any]:
    readers = {".txt": _read_txt, ".csv": _read_csv, ".json": _read_json, ".npy": _read_npy}
    if path.suffix.lower() not in readers:
        msg = f"`path` must end in {_either(list(readers))}, got {path}"
        raise ForgetRequestError(msg)
    try:
        return readers[path.suffix.lower()](path)
    except OSError as error:
        msg = f"`path` must be a readable file, got {path}: {error.strerror or error}"
        raise ForgetRequestError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"`path` must be UTF-8 text, got {path}: {error.reason} at byte {error.start}"
        raise ForgetRequestError(msg) from error


def _parse(cells: Iterable[tuple[int, str]], path: Path) -> npt.NDArray[Any]:
    whole = []
    for line, cell in cells:
        if not cell.removeprefix("-").isdecimal():
            msg = f"`path` must hold whole numbers, got {cell!r} on line {line} of {path}"
            raise ForgetRequestError(msg)
        whole.append(int(cell))
    return _whole(whole, "path")


def _read_txt(path: Path) -> npt.NDArray[Any]:
    lines = path.read_text("utf-8-sig").splitlines()
    return _parse(
        (
            (number, cell)
            for number, line in enumerate(lines, 1)
            for cell in line.partition("#")[0].replace(",", " ").split()
        ),
        path,
    )


def _read_csv(path: Path) -> npt.NDArray[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    if not rows:
        return np.array([], dtype=np.int64)
    header = [cell.lower() for cell in rows[0][1]]
    named = [header.index(name) for name in _HEADERS if name in header]
    if not named and any(len(row) != 1 for _, row in rows):
        msg = (
            f"`path` must be a CSV of one column, or with a column headed `index`, "
            f"got {len(header)} columns in {path}"
        )
        raise ForgetRequestError(msg)
    at = named[0] if named else 0
    return _parse(
        ((line, row[at] if at < len(row) else "") for line, row in rows[bool(named) :]), path
    )


def _read_json(path: Path) -> npt.NDArray[Any]:
    try:
        items = json.loads(path.read_text("utf-8-sig"))
    except json.JSONDecodeError as error:
        msg = f"`path` must be valid JSON, got {path}: {error.msg} on line {error.lineno}"
        raise ForgetRequestError(msg) from error
    if not isinstance(items, list):
        msg = f"`path` must hold a JSON list of indices, got {type(items).__name__} in {path}"
        raise ForgetRequestError(msg)
    return _whole(items, "path")


def _read_npy(path: Path) -> npt.NDArray[Any]:
    try:
        items = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        msg = f"`path` must be a .npy file of whole numbers, without Python objects, got {path}"
        raise ForgetRequestError(msg) from error
    if not isinstance(items, np.ndarray):
        items.close()
        msg = f"`path` must be one .npy array, got an archive of several in {path}"
        raise ForgetRequestError(msg)
    return _whole(items, "path")
