"""Per-sample columns: finding one, and matching its values whatever type they came in.

Users write ``3`` where the column holds ``"3"`` and the reverse; both mean the same value. A name
is converted to the column's own type, never the column to the name's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from erasus_pl.requests.errors import ForgetRequestError, _did_you_mean, _listing

__all__ = ["Value", "canonical_values", "match_values", "pick_column", "refuse_unknown"]

Value = str | bool | int | float


def pick_column(columns: Mapping[str, npt.NDArray[Any]], name: str, n: int) -> npt.NDArray[Any]:
    """The column `name`, checked to hold one value for each of `n` samples.

    Returns:
        Shape ``(n,)``.

    Raises:
        ForgetRequestError: There is no such column, or its shape is not ``(n,)``.
    """
    if name not in columns:
        there = f"there are: {_listing(sorted(columns))}" if columns else "the data has none"
        hint = _did_you_mean(name, columns)
        msg = f"`column` must name a column of the data, got {name!r}; {there}{hint}"
        raise ForgetRequestError(msg)
    values = np.asarray(columns[name])
    if values.shape != (n,):
        msg = f"column `{name}` must have shape ({n},), one value per sample, got {values.shape}"
        raise ForgetRequestError(msg)
    return values


def canonical_values(given: Value | Iterable[Value], field: str) -> list[Value]:
    """`given` as a sorted list in which ``"3"`` and ``3`` are one value.

    Raises:
        ForgetRequestError: `given` is empty, names a value twice, or holds something else than
            text, whole numbers, finite floats and booleans.
    """
    if isinstance(given, np.ndarray):
        given = given.tolist()
    single = isinstance(given, (str, bytes)) or not isinstance(given, Iterable)
    values = [_canonical(item, field) for item in ([given] if single else given)]  # type: ignore[union-attr]
    if not values:
        msg = f"`{field}` must name at least one value, got an empty list"
        raise ForgetRequestError(msg)
    values.sort(key=lambda item: (type(item).__name__, item))
    for left, right in pairwise(values):
        if type(left) is type(right) and left == right:
            msg = f"`{field}` must name each value once, got {left!r} twice; remove the repeat"
            raise ForgetRequestError(msg)
    return values


def match_values(
    values: npt.NDArray[Any], wanted: Iterable[Value], column: str
) -> npt.NDArray[np.bool_]:
    """Which of `values` are among `wanted`.

    Numeric and boolean columns compare numbers; text and object columns compare text. Missing
    entries (None, NaN) match nothing.

    Args:
        values: The column, shape ``(n,)``.
        wanted: Values as the user wrote them.
        column: The column's name, for the error.

    Returns:
        A mask of shape ``(n,)``.

    Raises:
        ForgetRequestError: The column holds times, complex numbers or records.
    """
    if _is_text(values, column):
        names = {str(item) for item in wanted}
        return np.fromiter((_text(item) in names for item in values), np.bool_, values.size)
    cast = [_cast(item, values.dtype) for item in wanted]
    known = np.array([item for item in cast if item is not None], dtype=values.dtype)
    return np.isin(values, known)


def refuse_unknown(
    values: npt.NDArray[Any], wanted: Iterable[Value], *, field: str, column: str
) -> None:
    """Refuse names that no sample has, listing those there are.

    Args:
        values: The training column, shape ``(n,)``.
        wanted: Values as the user wrote them.
        field: The argument they were given in.
        column: The column's name.

    Raises:
        ForgetRequestError: One of `wanted` matches no sample.
    """
    if _is_text(values, column):
        texts = {text for item in values if (text := _text(item)) is not None}
        missing = [item for item in wanted if str(item) not in texts]
        known = sorted(texts)
    else:
        distinct = np.unique(values)
        held = set(distinct.tolist())
        missing = [
            item
            for item in wanted
            if (cast := _cast(item, values.dtype)) is None or cast.item() not in held
        ]
        known = [str(item) for item in distinct]
    if missing:
        hint = _did_you_mean(missing[0], known) if isinstance(missing[0], str) else ""
        msg = (
            f"`{field}` must be among the values of column `{column}`, got {missing[0]!r}; "
            f"valid {field}: {_listing(known)}{hint}"
        )
        raise ForgetRequestError(msg)


def _number(text: str) -> int | float | None:
    if "_" in text:
        return None
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if _is_finite(number):
            return number
    return None


def _is_finite(number: int | float) -> bool:
    """Whether `number` fits the widest column types: finite, and within 64 bits if whole."""
    return abs(number) < 2**64 if isinstance(number, int) else math.isfinite(number)


def _canonical(value: object, field: str) -> Value:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        whole = value.removeprefix("-")
        is_whole = whole.isascii() and whole.isdigit() and len(whole) < 19
        return int(value) if is_whole and str(int(value)) == value else value
    if isinstance(value, (int, float)) and _is_finite(value):
        return value
    msg = f"`{field}` must hold text, finite numbers or booleans, got {value!r}"
    raise ForgetRequestError(msg)


def _cast(value: Value, dtype: np.dtype[Any]) -> np.generic | None:
    """`value` in the column's own type, or None where that type has no such value."""
    if dtype.kind == "b":
        truth = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
        return None if truth is None else np.bool_(truth)
    number = _number(value) if isinstance(value, str) else value
    if number is None:
        return None
    kind: type[np.generic] = dtype.type
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return kind(number)
    limits = np.iinfo(dtype)
    if number != int(number) or not limits.min <= number <= limits.max:
        return None
    return kind(int(number))


def _is_text(values: npt.NDArray[Any], column: str) -> bool:
    if values.dtype.kind in "biuf":
        return False
    if values.dtype.kind in "USOT":
        return True
    remedy = "; use ForgetTimeWindow for times" if values.dtype.kind in "mM" else ""
    msg = f"column `{column}` must hold numbers, booleans or text, got {values.dtype}{remedy}"
    raise ForgetRequestError(msg)


def _text(value: object) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
