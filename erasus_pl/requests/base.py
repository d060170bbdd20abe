"""The contract of a forget request: what must go, in the user's own terms.

A request reads per-sample columns of the training set and answers with positions in it. It knows
neither models nor loaders, so the same object serves training, federated and serving code.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from erasus_pl.requests.columns import pick_column
from erasus_pl.requests.errors import ForgetRequestError, _listing

__all__ = ["ColumnRequest", "ForgetRequest"]

_ROOM = "erasus_pl.requests"


class ForgetRequest(ABC):
    """What must go, named so that it can be resolved against any training set.

    A subclass fills in :meth:`select` and :meth:`describe`, sets :attr:`field`, and keeps every
    argument of its ``__init__`` as an attribute of the same name (:meth:`to_dict` reads them).

    Attributes:
        field: The argument that error messages name.
    """

    field: str = "request"

    @abstractmethod
    def select(self, columns: Mapping[str, npt.NDArray[Any]], n: int) -> npt.NDArray[Any]:
        """Positions to forget, in any order; :meth:`resolve` checks and sorts them.

        Args:
            columns: Per-sample columns of the training set, each of shape ``(n,)``.
            n: Number of training samples.

        Returns:
            Integer positions, shape ``(k,)``.
        """

    @abstractmethod
    def describe(self) -> str:
        """Say in one plain line what is forgotten: ``every sample of class 3``."""

    def matches(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        n: int,
    ) -> npt.NDArray[np.bool_] | None:
        """Apply the request to data other than the training set, where that has a meaning.

        Args:
            columns: Per-sample columns of that data, each of shape ``(n,)``.
            n: Number of samples in that data.

        Returns:
            A mask of shape ``(n,)``, or None where the request names training positions only
            (indices, random draws) or the column it reads is absent.
        """
        return None

    def resolve(self, columns: Mapping[str, npt.NDArray[Any]], n: int) -> npt.NDArray[np.int64]:
        """The forget set as positions in the training set.

        Args:
            columns: Per-sample columns of the training set, each of shape ``(n,)``.
            n: Number of training samples.

        Returns:
            Sorted unique positions, shape ``(k,)`` with ``0 < k < n``.

        Raises:
            ForgetRequestError: The request is empty, forgets everything, leaves the range
                ``0..n-1``, names a position twice, or reads a column or value that is not there.
        """
        if n < 1:
            msg = f"the training set must hold at least 1 sample, got {n}"
            raise ForgetRequestError(msg)
        positions = np.asarray(self.select(columns, n))
        self._refuse_bad(positions, n)
        return np.sort(positions.astype(np.int64))

    def to_dict(self) -> dict[str, Any]:
        """The request as plain JSON types: ``{"class_path": …, "init_args": {…}}``.

        Two requests with equal dictionaries ask for the same thing.
        """
        kind = type(self)
        module = kind.__module__
        public = _ROOM if module.startswith(f"{_ROOM}.") else module
        arguments = {
            name: _plain(getattr(self, name), f"{kind.__name__}.{name}")
            for name, parameter in inspect.signature(kind).parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        return {"class_path": f"{public}.{kind.__qualname__}", "init_args": arguments}

    def difference(self, other: Mapping[str, Any]) -> list[str]:
        """What changed since `other`, a recorded :meth:`to_dict`; empty when nothing did.

        Args:
            other: The dictionary of the earlier request.

        Returns:
            One line per differing field: ``classes was [3], is now [4]``.
        """
        return _request_difference(other, self.to_dict())

    def __repr__(self) -> str:
        """Name the class and what it forgets."""
        return f"<{type(self).__name__}: {self.describe()}>"

    def _refuse_bad(self, positions: npt.NDArray[Any], n: int) -> None:
        if positions.size == 0:
            msg = f"`{self.field}` selects no sample of {n:,} ({self.describe()}); widen it"
            raise ForgetRequestError(msg)
        if positions.ndim != 1 or positions.dtype.kind not in "iu":
            msg = (
                f"`{self.field}` must give whole numbers of shape (k,), "
                f"got {positions.dtype} of shape {positions.shape}"
            )
            raise ForgetRequestError(msg)
        outside = np.flatnonzero((positions < 0) | (positions >= n))
        if outside.size:
            first = int(outside[0])
            msg = (
                f"`{self.field}` must hold positions in 0..{n - 1}, got {positions[first]} "
                f"(entry {first + 1} of {positions.size:,}); remove it or correct it"
            )
            raise ForgetRequestError(msg)
        ordered = np.sort(positions)
        twice = np.flatnonzero(ordered[1:] == ordered[:-1])
        if twice.size:
            where = np.flatnonzero(positions == ordered[twice[0]]) + 1
            msg = (
                f"`{self.field}` must name each position once, got {ordered[twice[0]]}, "
                f"{where.size} times (at entries {_listing(where.tolist())}); remove the repeats"
            )
            raise ForgetRequestError(msg)
        if positions.size == n:
            msg = (
                f"`{self.field}` forgets all {n:,} training samples ({self.describe()}); "
                "leave at least one to retain"
            )
            raise ForgetRequestError(msg)


class ColumnRequest(ForgetRequest):
    """A request that is a condition on one column, so it applies to held-out data as well.

    A subclass keeps the column's name in ``self.column`` and fills in :meth:`mask`.
    """

    column: str

    @abstractmethod
    def mask(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of `values`, shape ``(n,)``, meet the condition; shape ``(n,)``."""

    def check(self, values: npt.NDArray[Any]) -> None:
        """Refuse a condition that the training column `values`, shape ``(n,)``, cannot meet."""

    def select(self, columns: Mapping[str, npt.NDArray[Any]], n: int) -> npt.NDArray[np.int64]:
        """Positions whose column meets the condition, after :meth:`check`; shape ``(k,)``."""
        values = pick_column(columns, self.column, n)
        self.check(values)
        return np.flatnonzero(self.mask(values))

    def matches(
        self, columns: Mapping[str, npt.NDArray[Any]], n: int
    ) -> npt.NDArray[np.bool_] | None:
        """The same condition on other data, shape ``(n,)``; None where the column is absent."""
        if self.column not in columns:
            return None
        return self.mask(pick_column(columns, self.column, n))


def _plain(value: object, name: str) -> object:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, name) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    msg = (
        f"`{name}` must be numbers, text, lists or mappings of them to be recorded, "
        f"got {type(value).__name__}"
    )
    raise ForgetRequestError(msg)


def _request_difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if was.get("class_path") != now.get("class_path"):
        return [f"request was {_call(was)}, is now {_call(now)}"]
    return _field_differences(was.get("init_args", {}), now.get("init_args", {}))


def _field_differences(
    was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    lines = []
    for name in [*now, *(name for name in was if name not in now)]:
        before = _show(was[name]) if name in was else "absent"
        after = _show(now[name]) if name in now else "absent"
        if name not in was or name not in now or was[name] != now[name]:
            lines.append(f"{prefix}{name} was {before}, is now {after}")
    return lines


def _call(request: Mapping[str, Any]) -> str:
    name = str(request.get("class_path", "unknown")).rpartition(".")[2]
    arguments = request.get("init_args", {})
    return f"{name}({', '.join(f'{key}={_show(value)}' for key, value in arguments.items())})"


def _show(value: object) -> str:
    if isinstance(value, list) and len(value) > 10:
        return f"[{', '.join(repr(item) for item in value[:5])}, …] ({len(value):,} values)"
    return repr(value)
