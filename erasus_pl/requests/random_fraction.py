"""Forget a random part of the training set."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from erasus_pl.requests.base import ForgetRequest
from erasus_pl.requests.errors import ForgetRequestError

__all__ = ["ForgetRandom"]


class ForgetRandom(ForgetRequest):
    """Forget a random fraction, or a random number, of the training samples.

    The draw ranks every position by one raw 64-bit output of PCG64, whose stream numpy keeps
    fixed between versions. So one seed gives the same samples on every machine, and a larger
    fraction contains a smaller one of the same seed.

    Args:
        fraction: Part of the training set, in (0, 1); the count is rounded to the nearest.
        count: Number of samples instead; exactly one of the two is given.
        seed: Non-negative seed of the draw.

    Raises:
        ForgetRequestError: Both or neither of the two are given, or a value leaves its range.
    """

    field: str = "fraction"

    def __init__(
        self, fraction: float | None = None, count: int | None = None, seed: int = 0
    ) -> None:
        if (fraction is None) == (count is None):
            msg = f"give exactly one of `fraction` and `count`, got {fraction!r} and {count!r}"
            raise ForgetRequestError(msg)
        if fraction is not None and not 0 < fraction < 1:
            msg = f"`fraction` must be in (0, 1), got {fraction!r}"
            raise ForgetRequestError(msg)
        for name, value, least in (("count", count, 1), ("seed", seed, 0)):
            if value is not None and (not _is_whole(value) or value < least):
                msg = f"`{name}` must be a whole number of at least {least}, got {value!r}"
                raise ForgetRequestError(msg)
        self.fraction = fraction
        self.count = count
        self.seed = seed

    def select(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        n: int,
    ) -> npt.NDArray[np.int64]:
        """The drawn positions, shape ``(k,)``.

        Raises:
            ForgetRequestError: `count` is not below `n`, or `fraction` rounds to none or all.
        """
        k = int(self.count or 0) if self.fraction is None else round(self.fraction * n)
        if not 0 < k < n and self.fraction is None:
            msg = f"`count` must be in 1..{n - 1} for {n:,} training samples, got {k}"
            raise ForgetRequestError(msg)
        if not 0 < k < n:
            msg = (
                f"`fraction` must select from 1 to {n - 1} of {n:,} training samples, "
                f"got {self.fraction!r}, which rounds to {k}; give `count` instead"
            )
            raise ForgetRequestError(msg)
        ranks = np.random.PCG64(self.seed).random_raw(n)
        return np.argsort(ranks, kind="stable")[:k]

    def describe(self) -> str:
        """Say what is forgotten: ``5% of the training samples, drawn at random (seed 0)``."""
        if self.fraction is None:
            return f"{self.count:,} training samples, drawn at random (seed {self.seed})"
        share = f"{100 * self.fraction:.6g}%"
        return f"{share} of the training samples, drawn at random (seed {self.seed})"


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
