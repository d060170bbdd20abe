"""Forget every sample whose time falls in a window."""

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from erasus_pl.requests.base import ColumnRequest
from erasus_pl.requests.columns import _is_finite, _number, pick_column
from erasus_pl.requests.errors import ForgetRequestError

__all__ = ["ForgetTimeWindow"]

_EXAMPLE = "such as 2024-01-31 or 2024-01-31T12:00:00Z"


class ForgetTimeWindow(ColumnRequest):
    """Forget every sample with ``start <= time < end``.

    Columns of numbers take numbers in the column's own unit. Columns of ``datetime64``, ISO text
    or Python datetimes take ISO text, to the microsecond; times without a zone are UTC. Missing
    times (NaN, NaT, None, empty text) are in no window.

    Args:
        column: The column that holds the time.
        start: First time that is forgotten; None for no lower bound.
        end: First time that is kept again; None for no upper bound.

    Raises:
        ForgetRequestError: No bound is given, one is no time, or `start` is not before `end`.
    """

    field: str = "start"

    def __init__(
        self,
        column: str = "timestamp",
        start: str | int | float | None = None,
        end: str | int | float | None = None,
    ) -> None:
        self.column = column
        self.start = _bound(start, "start")
        self.end = _bound(end, "end")
        if start is None and end is None:
            msg = "give `start`, `end` or both, got neither"
            raise ForgetRequestError(msg)
        if self.start is None:
            self.field = "end"
        if self.start is None or self.end is None:
            return
        pairs = [(_as_number(self.start), _as_number(self.end))]
        pairs.append((_as_moment(self.start), _as_moment(self.end)))  # type: ignore[arg-type]
        comparable = [(low, high) for low, high in pairs if low is not None and high is not None]
        if not comparable:
            msg = (
                "`start` and `end` must both be numbers or both be ISO times, "
                f"got {start!r} and {end!r}"
            )
            raise ForgetRequestError(msg)
        if not any(low < high for low, high in comparable):
            msg = f"`start` must be before `end`, got {start!r} and {end!r}"
            raise ForgetRequestError(msg)

    def mask(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of the times `values`, shape ``(n,)``, are in the window; shape ``(n,)``.

        Raises:
            ForgetRequestError: The column holds no times, or the bounds are of another kind.
        """
        times = _times(values, self.column)
        inside = _known(times)
        if inside.any():
            if self.start is not None:
                inside &= np.greater_equal(times, self._limit("start", self.start, times.dtype))
            if self.end is not None:
                inside &= np.less(times, self._limit("end", self.end, times.dtype))
        return inside

    def select(self, columns: Mapping[str, npt.NDArray[Any]], n: int) -> npt.NDArray[np.int64]:
        """Positions whose time is in the window, shape ``(k,)``.

        Raises:
            ForgetRequestError: No time is in the window; the message gives the column's range.
        """
        values = pick_column(columns, self.column, n)
        positions = np.flatnonzero(self.mask(values))
        if positions.size == 0:
            times = _times(values, self.column)
            known = times[_known(times)]
            span = f"runs from {known.min()} to {known.max()}" if known.size else "has no times"
            msg = (
                f"`start` and `end` must enclose a sample, got {self.start!r} and {self.end!r}; "
                f"column `{self.column}` {span}"
            )
            raise ForgetRequestError(msg)
        return positions

    def describe(self) -> str:
        """Say what is forgotten: ``every sample with `timestamp` from 3 on``."""
        if self.start is None:
            return f"every sample with `{self.column}` before {self.end}"
        if self.end is None:
            return f"every sample with `{self.column}` from {self.start} on"
        window = f"from {self.start} up to but not including {self.end}"
        return f"every sample with `{self.column}` {window}"

    def _limit(
        self, name: str, bound: str | int | float, dtype: np.dtype[Any]
    ) -> np.datetime64 | np.float64 | int:
        if dtype.kind == "M":
            moment = _as_moment(bound)
            if moment is None:
                msg = (
                    f"`{name}` must be an ISO time {_EXAMPLE}, because column `{self.column}` "
                    f"holds times, got {bound!r}"
                )
                raise ForgetRequestError(msg)
            return moment
        number = _as_number(bound)
        if number is None:
            msg = (
                f"`{name}` must be a number in the unit of column `{self.column}`, "
                f"which holds numbers, got {bound!r}"
            )
            raise ForgetRequestError(msg)
        return math.ceil(number) if dtype.kind in "iu" else np.float64(number)


def _bound(value: object, name: str) -> str | int | float | None:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, int, float)):
        known = value is None or _as_number(value) is not None or _as_moment(value) is not None
        if known and not isinstance(value, bool):
            return value
    msg = f"`{name}` must be a finite number or an ISO time {_EXAMPLE}, got {value!r}"
    raise ForgetRequestError(msg)


def _as_number(bound: str | int | float) -> int | float | None:
    number = _number(bound) if isinstance(bound, str) else bound
    return number if number is not None and _is_finite(number) else None


def _as_moment(bound: object) -> np.datetime64 | None:
    """`bound` as UTC microseconds, or None where it is no ISO text, date or datetime."""
    if isinstance(bound, str):
        try:
            bound = datetime.fromisoformat(bound.strip())
        except ValueError:
            return None
    if isinstance(bound, datetime):
        if bound.tzinfo is not None:
            try:
                bound = bound.astimezone(UTC)
            except OverflowError:
                return None
        return np.datetime64(bound.replace(tzinfo=None), "us")
    if isinstance(bound, np.datetime64):
        moment: np.datetime64 = bound.astype("datetime64[us]")
        return moment
    return np.datetime64(bound, "us") if isinstance(bound, date) else None


def _times(values: npt.NDArray[Any], column: str) -> npt.NDArray[Any]:
    """The column as numbers or as ``datetime64[us]``, rounded down; shape ``(n,)``."""
    kind = values.dtype.kind
    if kind in "iuf":
        return values
    if kind == "M":
        return values.astype("datetime64[us]")
    if kind not in "USOT":
        msg = f"column `{column}` must hold numbers, datetime64 or ISO text, got {values.dtype}"
        raise ForgetRequestError(msg)
    items = [
        item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in values
    ]
    present = [item for item in items if not _is_missing(item)]
    if present and all(
        isinstance(item, (int, float, np.integer, np.floating)) and not isinstance(item, bool)
        for item in present
    ):
        whole = all(isinstance(item, (int, np.integer)) for item in items)
        numbers = np.array([math.nan if _is_missing(item) else item for item in items])
        return numbers if whole and numbers.dtype.kind in "iu" else numbers.astype(np.float64)
    times = np.full(len(items), np.datetime64("NaT"), dtype="datetime64[us]")
    for position, item in enumerate(items):
        if not _is_missing(item):
            moment = _as_moment(item)
            if moment is None:
                msg = (
                    f"column `{column}` must hold ISO times {_EXAMPLE}, "
                    f"got '{item}' for sample {position}"
                )
                raise ForgetRequestError(msg)
            times[position] = moment
    return times


def _known(times: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    missing: npt.NDArray[np.bool_] = np.isnat(times) if times.dtype.kind == "M" else np.isnan(times)
    return ~missing


def _is_missing(item: object) -> bool:
    return item is None or str(item).strip().lower() in ("", "nan", "nat", "<na>")
