"""Population membership attack: tell training samples from unseen ones by one score.

The attacker calls a sample a member when its score reaches a threshold. The score is the
logit-scaled confidence ``log p_y - log(1 - p_y)`` of Carlini et al., "Membership Inference Attacks
From First Principles" (2022, arXiv:2112.03570), whose advice on reporting is followed too: the
true positive rate at a low false positive rate and a log-log ROC beside the area.

Members are the *forget* set, which the original model was trained on; non-members are the
*holdout* set, which no model was. The retain set is on neither side: it is made of members.

Scores of a collapsed model are attacked like any other. ``+inf`` and ``-inf`` are the highest and
the lowest score, and NaN, a model that says nothing about a sample, counts as ``-inf``; a model
that gives NaN for everything is therefore one big tie, which no threshold can use (AUC 0.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

__all__ = [
    "MembershipResult",
    "Roc",
    "auc",
    "balanced_accuracy",
    "membership_attack",
    "roc",
    "tpr_at_fpr",
]

Array = npt.NDArray[np.float64]

_CELLS = 2_000_000  # numbers that a bootstrap holds at once: 16 MB


@dataclass(frozen=True)
class Roc:
    """The receiver operating characteristic of a threshold attack.

    Attributes:
        fpr: ``(k,)`` false positive rates, from 0 to 1, not decreasing.
        tpr: ``(k,)`` true positive rates, from 0 to 1, not decreasing.
        thresholds: ``(k,)`` scores from which a sample is called a member; the first, above every
            score, is ``+inf`` and calls nobody one.
    """

    fpr: Array
    tpr: Array
    thresholds: Array

    def log_points(self, floor: float) -> tuple[Array, Array]:
        """Return ``fpr`` and ``tpr``, both ``(k,)``, for axes that have no zero.

        Args:
            floor: What stands for a rate below it, such as ``1 / n`` of the smaller set.

        Raises:
            ValueError: `floor` is not in (0, 1].
        """
        if not 0 < floor <= 1:
            msg = f"`floor` must be in (0, 1], got {floor}"
            raise ValueError(msg)
        return np.maximum(self.fpr, floor), np.maximum(self.tpr, floor)


@dataclass(frozen=True)
class MembershipResult:
    """What the attack achieves, with bootstrap intervals.

    Attributes:
        auc: Chance that a random member scores above a random non-member, ties counting half.
        auc_interval: Low and high end.
        tpr: True positive rate at the false positive rate `fpr`.
        tpr_interval: Low and high end.
        fpr: The false positive rate asked for.
        balanced_accuracy: Mean of the rates at which members and non-members are recognised, by a
            threshold chosen on other samples; 0.5 is guessing.
        resolved: Whether there are enough non-members to see a rate of `fpr`.
        note: What to keep in mind when reading `tpr`; empty when `resolved`.
    """

    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]
    fpr: float
    balanced_accuracy: float
    resolved: bool
    note: str


def auc(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> float:
    """Area under the ROC: the exact Mann-Whitney statistic, ties counting half.

    Args:
        members: ``(n,)`` scores of samples that were trained on.
        nonmembers: ``(m,)`` scores of samples that never were.

    Returns:
        ``(#(member > nonmember) + #(equal) / 2) / (n m)``, in [0, 1].

    Raises:
        ValueError: Either side is empty or not one-dimensional.

    Example:
        >>> auc([3.0, 2.0], [1.0, 2.0])
        0.875
    """
    a, b = _checked(members, nonmembers)
    ranks = rankdata(np.concatenate([a, b]))
    return float((ranks[: a.size].sum() - a.size * (a.size + 1) / 2) / (a.size * b.size))


def roc(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> Roc:
    """Every false and true positive rate that some threshold reaches; equal scores are one step.

    Args:
        members: ``(n,)`` scores of samples that were trained on.
        nonmembers: ``(m,)`` scores of samples that never were.

    Raises:
        ValueError: Either side is empty or not one-dimensional.
    """
    a, b = _checked(members, nonmembers)
    values, groups = np.unique(np.concatenate([a, b]), return_inverse=True)
    tpr, fpr = (
        _rates(np.bincount(part, minlength=values.size)[None])[0]
        for part in (groups[: a.size], groups[a.size :])
    )
    return Roc(fpr, tpr, np.concatenate([[np.inf], values[::-1]]))


def tpr_at_fpr(members: npt.ArrayLike, nonmembers: npt.ArrayLike, fpr: float = 0.01) -> float:
    """True positive rate at a false positive rate.

    Between two thresholds the rate is interpolated linearly: an attacker reaches that by tossing a
    coin over the samples in between.

    Args:
        members: ``(n,)`` scores of samples that were trained on.
        nonmembers: ``(m,)`` scores of samples that never were. Fewer than ``1 / fpr`` of them
            cannot show the rate: the value is then interpolated from the first false alarm.
        fpr: The false positive rate, in [0, 1].

    Raises:
        ValueError: Either side is empty or not one-dimensional, or `fpr` is out of range.

    Example:
        >>> tpr_at_fpr([4.0, 3.0, 2.0, 1.0], [3.5, 0.0], fpr=0.5)
        1.0
    """
    _check_fpr(fpr)
    points = roc(members, nonmembers)
    return float(_interpolated(points.fpr[None], points.tpr[None], fpr)[0])


def balanced_accuracy(
    members: npt.ArrayLike, nonmembers: npt.ArrayLike, repeats: int = 10, seed: int = 0
) -> float:
    """Mean of true positive and true negative rate, at a threshold chosen on other samples.

    Each repeat halves both sides, takes the best threshold of one half and scores the other with
    it, both ways: chosen and scored on the same samples, it would find "membership" in noise.

    Args:
        members: ``(n,)`` scores of samples that were trained on, ``n >= 2``.
        nonmembers: ``(m,)`` scores of samples that never were, ``m >= 2``.
        repeats: Number of random halvings.
        seed: Of the halvings.

    Returns:
        In [0, 1]; 0.5 is guessing. NaN where either side has one sample only.

    Raises:
        ValueError: Either side is empty or not one-dimensional.
    """
    a, b = _checked(members, nonmembers)
    if min(a.size, b.size) < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(repeats):
        halves = [np.array_split(rng.permutation(x), 2) for x in (a, b)]
        for fit in (0, 1):
            points = roc(halves[0][fit], halves[1][fit])
            best = int(np.argmax(points.tpr - points.fpr))
            if best == 0:
                found.append(0.5)
                continue
            hit, alarm = (np.mean(side[1 - fit] >= points.thresholds[best]) for side in halves)
            found.append((1 + hit - alarm) / 2)
    return float(np.mean(found))


def membership_attack(
    members: npt.ArrayLike,
    nonmembers: npt.ArrayLike,
    *,
    fpr: float = 0.01,
    resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> MembershipResult:
    """Attack, with percentile intervals from a stratified bootstrap.

    Args:
        members: ``(n,)`` scores of samples that were trained on.
        nonmembers: ``(m,)`` scores of samples that never were.
        fpr: False positive rate at which the true positive rate is given.
        resamples: Of the bootstrap; members and non-members are drawn apart.
        confidence: Of the intervals, in (0, 1).
        seed: Of the resamples: the same seed gives the same intervals.

    Raises:
        ValueError: Either side is empty or not one-dimensional, or a setting is out of range.
    """
    _check_fpr(fpr)
    if resamples < 1 or not 0 < confidence < 1:
        given = f"got {resamples} and {confidence}"
        msg = f"`resamples` must be at least 1 and `confidence` in (0, 1), {given}"
        raise ValueError(msg)
    a, b = _checked(members, nonmembers)
    areas, hits = [], []
    for true, false in _resampled(a, b, resamples, np.random.default_rng(seed)):
        areas.append(np.sum(np.diff(false) * (true[:, 1:] + true[:, :-1]) / 2, axis=1))
        hits.append(_interpolated(false, true, fpr))
    tail = 50 * (1 - confidence)
    ends = [np.percentile(np.concatenate(x), [tail, 100 - tail]) for x in (areas, hits)]
    resolved = b.size * fpr >= 1
    note = (
        ""
        if resolved
        else (
            f"{b.size} holdout samples cannot show a false positive rate of {fpr:g}: the smallest "
            f"they can is {1 / b.size:.3g}, and the value is interpolated below it"
        )
    )
    return MembershipResult(
        auc=auc(a, b),
        auc_interval=(float(ends[0][0]), float(ends[0][1])),
        tpr=tpr_at_fpr(a, b, fpr),
        tpr_interval=(float(ends[1][0]), float(ends[1][1])),
        fpr=fpr,
        balanced_accuracy=balanced_accuracy(a, b, seed=seed),
        resolved=resolved,
        note=note,
    )


def _resampled(
    a: Array, b: Array, resamples: int, rng: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Yield true and false positive rates, both ``(chunk, k)``, of resamples of both sides."""
    values, groups = np.unique(np.concatenate([a, b]), return_inverse=True)
    sides = (groups[: a.size], groups[a.size :])
    chunk = max(1, _CELLS // max(values.size, a.size, b.size))
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        true, false = (_rates(_drawn(side, values.size, rows, rng)) for side in sides)
        yield true, false


def _drawn(
    groups: npt.NDArray[np.intp], k: int, rows: int, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Draw `rows` resamples and count the score groups in each, ``(rows, k)``."""
    drawn = groups[rng.integers(groups.size, size=(rows, groups.size))]
    flat = (drawn + k * np.arange(rows)[:, None]).ravel()
    return np.bincount(flat, minlength=rows * k).reshape(rows, k)


def _rates(counts: npt.NDArray[np.intp]) -> Array:
    """Turn counts per ascending score ``(B, k)`` into rates from the top ``(B, k + 1)``."""
    reached = np.cumsum(counts[:, ::-1], axis=1)
    return np.pad(reached / reached[:, -1:], ((0, 0), (1, 0)))


def _interpolated(fpr: Array, tpr: Array, at: float) -> Array:
    """Interpolate ``tpr`` at one ``fpr`` in each row of ``(B, k)`` curves."""
    rows = np.arange(len(fpr))
    left = np.sum(fpr <= at, axis=1) - 1
    right = np.minimum(left + 1, fpr.shape[1] - 1)
    width = fpr[rows, right] - fpr[rows, left]
    part = np.divide(at - fpr[rows, left], width, out=np.zeros(len(fpr)), where=width > 0)
    return tpr[rows, left] + part * (tpr[rows, right] - tpr[rows, left])


def _checked(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> tuple[Array, Array]:
    sides = []
    for name, values in (("members", members), ("nonmembers", nonmembers)):
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or array.size == 0:
            msg = f"`{name}` must be scores of shape (n,) with n >= 1, got shape {array.shape}"
            raise ValueError(msg)
        sides.append(np.where(np.isnan(array), -np.inf, array))
    return sides[0], sides[1]


def _check_fpr(fpr: float) -> None:
    if not 0 <= fpr <= 1:
        msg = f"`fpr` must be in [0, 1], got {fpr}"
        raise ValueError(msg)
