"""What the command line says when something cannot be used: one line, with the remedy."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

__all__ = ["UsageError", "complain", "did_you_mean"]


class UsageError(Exception):
    """What the user gave cannot be used; one line that says what can."""


def complain(message: str) -> int:
    """Print a message as one line to stderr.

    Args:
        message: what was given, what is accepted, what to do; line breaks become blanks.

    Returns:
        2, the exit status of wrong usage.
    """
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """A hint at the nearest choice: `"; did you mean 'fit'?"`, or nothing where none is near."""
    lowered = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(given.lower(), lowered, n=1, cutoff=0.6)
    near = near or sorted(name for name in lowered if name.startswith(given.lower()))
    return f"; did you mean {lowered[near[0]]!r}?" if near else ""
