"""Forget every sample whose attribute has one of some values."""

from typing import Any

import numpy as np
import numpy.typing as npt

from erasus_pl.requests.base import ColumnRequest
from erasus_pl.requests.columns import canonical_values, match_values, refuse_unknown
from erasus_pl.requests.errors import _either

__all__ = ["ForgetAttribute"]


class ForgetAttribute(ColumnRequest):
    """Forget every sample whose `column` holds one of `values`.

    Args:
        column: The column that holds the attribute.
        values: One value or several; ``3`` and ``"3"`` are the same.

    Raises:
        ForgetRequestError: `values` is empty, repeats a value, or holds something else than
            text, finite numbers and booleans.
    """

    field: str = "values"

    def __init__(
        self,
        column: str,
        values: str | bool | int | float | list[str | bool | int | float],
    ) -> None:
        self.column = column
        self.values = canonical_values(values, "values")

    def mask(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of the column's `values`, shape ``(n,)``, are named; shape ``(n,)``."""
        return match_values(values, self.values, self.column)

    def check(self, values: npt.NDArray[Any]) -> None:
        """Refuse a value that no training sample has."""
        refuse_unknown(values, self.values, field="values", column=self.column)

    def describe(self) -> str:
        """Say what is forgotten: ``every sample whose `colour` is red``."""
        return f"every sample whose `{self.column}` is {_either(self.values)}"
