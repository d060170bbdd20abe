"""The error every forget request raises, and the small phrases its messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["ForgetRequestError"]


class ForgetRequestError(ValueError):
    """A forget request that cannot be honoured; one line: the field, the value, what to do."""


def _listing(items: Sequence[object], limit: int = 20) -> str:
    """`items` joined by commas, shortened in the middle past `limit` with the total named."""
    if len(items) <= limit:
        return ", ".join(str(item) for item in items)
    head = ", ".join(str(item) for item in items[: limit // 2])
    return f"{head}, … {items[-1]} ({len(items):,} in all)"


def _either(items: Sequence[object], word: str = "or") -> str:
    """`1, 2 or 3`; more than five are shortened."""
    if len(items) > 5:
        return f"{', '.join(str(item) for item in items[:4])} {word} {len(items) - 4:,} more"
    head, last = items[:-1], items[-1]
    return f"{', '.join(str(item) for item in head)} {word} {last}" if head else str(last)


def _did_you_mean(given: object, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known name is close."""
    close = difflib.get_close_matches(str(given), list(known)[:10_000], n=1)
    return f"; did you mean {close[0]}?" if close else ""
