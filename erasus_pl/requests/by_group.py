"""Forget everything that belongs to a user or another group."""

from typing import Any

import numpy as np
import numpy.typing as npt

from erasus_pl.requests.base import ColumnRequest
from erasus_pl.requests.columns import canonical_values, match_values, refuse_unknown
from erasus_pl.requests.errors import _either

__all__ = ["ForgetGroup"]


class ForgetGroup(ColumnRequest):
    """Forget everything that belongs to the given users, patients, clients or other groups.

    Args:
        ids: One id or several; ``17`` and ``"17"`` are the same.
        column: The column that holds the id.

    Raises:
        ForgetRequestError: `ids` is empty, repeats an id, or holds something else than text and
            whole numbers.
    """

    field: str = "ids"

    def __init__(self, ids: str | int | list[str | int], column: str = "user") -> None:
        self.ids = canonical_values(ids, "ids")
        self.column = column

    def mask(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of `values`, shape ``(n,)``, are among the ids; shape ``(n,)``."""
        return match_values(values, self.ids, self.column)

    def check(self, values: npt.NDArray[Any]) -> None:
        """Refuse an id that no training sample has."""
        refuse_unknown(values, self.ids, field="ids", column=self.column)

    def describe(self) -> str:
        """Say what is forgotten: ``everything of user 17``."""
        return f"everything of {self.column} {_either(self.ids, 'and')}"
