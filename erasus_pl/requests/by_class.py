"""Forget every sample of one or more classes."""

from typing import Any

import numpy as np
import numpy.typing as npt

from erasus_pl.requests.base import ColumnRequest
from erasus_pl.requests.columns import canonical_values, match_values, refuse_unknown
from erasus_pl.requests.errors import _either

__all__ = ["ForgetClass"]


class ForgetClass(ColumnRequest):
    """Forget every sample of the given classes.

    Args:
        classes: One class or several, as numbers or names; ``3`` and ``"3"`` are the same.
        column: The column that holds the class.

    Raises:
        ForgetRequestError: `classes` is empty, repeats a class, or holds something else than text
            and whole numbers.
    """

    field: str = "classes"

    def __init__(
        self,
        classes: str | int | list[str | int],
        column: str = "target",
    ) -> None:
        self.classes = canonical_values(classes, "classes")
        self.column = column

    def mask(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of `values`, shape ``(n,)``, are among the classes; shape ``(n,)``."""
        return match_values(values, self.classes, self.column)

    def check(self, values: npt.NDArray[Any]) -> None:
        """Refuse a class that no training sample has."""
        refuse_unknown(values, self.classes, field="classes", column=self.column)

    def describe(self) -> str:
        """Say what is forgotten: ``every sample of class 3``."""
        noun = "class" if len(self.classes) == 1 else "classes"
        where = "" if self.column == "target" else f" (column `{self.column}`)"
        return f"every sample of {noun} {_either(self.classes, 'and')}{where}"
