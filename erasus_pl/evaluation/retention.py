"""How much of the original's memory a model retains, measured against two retrained models.

Every model gives each sample of the forget set one number: a confidence (`calibrated`) or 1 for a
right answer. Write ``o`` for the original's, ``r`` and ``s`` for those of two models retrained
without the forget set from different seeds, ``u`` for the unlearned model's; sums run over the
forget set. With ``D = Σ (o - r)(o - s)``:

* retained memory ``½ [Σ (o - r)(u - s) + Σ (o - s)(u - r)] / D``: exactly 1 for the original, 0 on
  average for a fresh retrained model. Each product takes its two baselines from different seeds,
  so that their noise does not look like memory.
* distance ``Σ (u - r)(u - s) / D``: the squared distance to the retrained models relative to the
  original's; exactly 1 for the original. It sees what retained memory cannot: a model that
  overshoots, or that treats the forget set differently in any other way.
* noise ``½ Σ (r - s)² / D``: the same for a third retrained model, on average.

Seed noise is shared by alike samples: whether a retrained model still gets a cluster of near
duplicates right is one coin, not forty. Two retrained models that fell on the same side by chance
make ``noise`` far too small. `Trace.shared` is therefore the standard deviation of retained memory
if *all* samples shared one noise, of the size that unseen data at the same confidence shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Retention", "Trace", "calibrated", "finite", "retention", "seed_noise", "trace"]

Array = npt.NDArray[np.float64]

_BOUND = 5.0
_LEVEL_BOUND = 15.0
_NEIGHBOURS = 30
_RADIUS = 3.0
_NEAR = 3
_CELLS = 4_000_000  # numbers that a bootstrap holds at once: 32 MB


@dataclass(frozen=True)
class Trace:
    """What the original carries of the forget set, and how well the retrained models show it.

    Attributes:
        gap: ``D / n``: mean squared difference between original and retrained, without the share
            of the retrained models' noise; not positive where there is none.
        noise: Mean squared noise of one retrained model relative to `gap`; inf without a gap.
        support: Number of samples that carry the gap, ``(Σ p)² / Σ p²`` of its summands.
        shared: Standard deviation of retained memory for a retrained model whose noise is common
            to all samples; inf without a gap.
    """

    gap: float
    noise: float
    support: float
    shared: float


@dataclass(frozen=True)
class Retention:
    """Retained memory and distance of one model, each as (value, low, high)."""

    memory: tuple[float, float, float]
    distance: tuple[float, float, float]


def calibrated(scores: npt.ArrayLike, unseen: npt.ArrayLike, reference: npt.ArrayLike) -> Array:
    """Confidence on the scale of a reference model, whatever the scale of the model's own.

    A score becomes the confidence that has the same rank among the reference's unseen data as the
    score has among the model's own. Dividing the logits by a large number, or any other increasing
    change of all confidences, hides memory from a threshold but changes nothing here. The result is
    clipped to ±5, between 0.7 % and 99.3 % for the true answer: beyond that confidence moves with
    the training and not with what is known.

    Args:
        scores: ``(n,)`` logit-scaled confidence; NaN becomes -5.
        unseen: ``(m,)`` of the same model on data that no model was trained on, ``m >= 1``.
        reference: ``(k,)`` of the reference on that data, ``k >= 1``.

    Returns:
        ``(n,)`` in [-5, 5].

    Example:
        >>> calibrated([0.3, 0.1], unseen=[0.0, 0.2, 0.4], reference=[-4.0, 0.0, 4.0]).round(2)
        array([ 1.33, -1.33])
    """
    values, line = finite(scores), np.sort(finite(unseen))
    below, upto = (np.searchsorted(line, values, side) for side in ("left", "right"))
    rank = (below + upto) / (2 * line.size)
    found = np.quantile(np.clip(finite(reference), -_BOUND, _BOUND), rank)
    return np.where(np.isnan(np.asarray(scores, dtype=np.float64)), -_BOUND, found)


def seed_noise(
    golds: tuple[Array, Array],
    levels: Array,
    unseen: tuple[Array, Array],
    unseen_levels: Array,
) -> Array:
    """Standard deviation over seeds of a retrained model's value, for each forgotten sample.

    It is read off samples of like confidence, none of which a retrained model was trained on: the
    nearest 30 of the forget set, and the nearest 30 of the unseen data that are at most 3 away in
    confidence. The larger of the two counts, because the forget set may be one cluster that both
    seeds happened to treat alike. Where fewer than 3 unseen samples are near, the forget set's own
    variance is doubled instead.

    Args:
        golds: Values of two retrained models on the forget set, each ``(n,)``.
        levels: ``(n,)`` mean confidence of the two.
        unseen: Their values on test and holdout data, each ``(m,)``.
        unseen_levels: ``(m,)`` mean confidence of the two there.

    Returns:
        ``(n,)``; inf where there are fewer than 30 unseen samples.
    """
    if unseen_levels.size < _NEIGHBOURS:
        return np.full(levels.shape, np.inf)
    here, there = (np.clip(x, -_LEVEL_BOUND, _LEVEL_BOUND) for x in (levels, unseen_levels))
    own = _nearest_mean(here, (golds[0] - golds[1]) ** 2 / 2, here, np.inf)
    others = _nearest_mean(there, (unseen[0] - unseen[1]) ** 2 / 2, here, _RADIUS)
    return np.sqrt(np.where(np.isnan(others), 2 * own, np.fmax(own, others)))


def trace(original: Array, golds: tuple[Array, Array], noise: Array) -> Trace:
    """Measure what there is to forget; the unlearned model has no part in it.

    Args:
        original: ``(n,)`` values of the original on the forget set.
        golds: Values of two retrained models there, each ``(n,)``.
        noise: ``(n,)`` from `seed_noise`.
    """
    products = (original - golds[0]) * (original - golds[1])
    total = float(products.sum())
    if total <= 1e-9 * products.size:
        return Trace(total / products.size, np.inf, 0.0, np.inf)
    difference = np.abs(original - (golds[0] + golds[1]) / 2)
    return Trace(
        gap=total / products.size,
        noise=float(((golds[0] - golds[1]) ** 2).sum() / 2) / total,
        support=total**2 / float((products**2).sum()),
        # u - (r + s) / 2 has 1.5 times the variance of one retrained model
        shared=float(np.sqrt(1.5) * np.sum(difference * noise, where=difference > 0)) / total,
    )


def retention(
    original: Array,
    golds: tuple[Array, Array],
    unlearned: Array,
    resamples: int = 500,
    seed: int = 0,
) -> Retention:
    """Measure one model, with 95 % bootstrap intervals over the samples of the forget set.

    Args:
        original: ``(n,)`` values of the original on the forget set.
        golds: Values of two retrained models there, each ``(n,)``.
        unlearned: ``(n,)`` values of the model that is judged.
        resamples: Of the bootstrap.
        seed: Of the resamples.

    Returns:
        NaN throughout where original and retrained models do not differ.

    Example:
        >>> import numpy as np
        >>> original, golds = np.array([5.0, 4.0]), (np.array([0.0, 1.0]), np.array([1.0, 0.0]))
        >>> retention(original, golds, original).memory
        (1.0, 1.0, 1.0)
    """
    r, s = golds
    rows = np.stack(
        [
            (original - r) * (original - s),
            ((original - r) * (unlearned - s) + (original - s) * (unlearned - r)) / 2,
            (unlearned - r) * (unlearned - s),
        ]
    )
    n = original.size
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // (4 * n))
    sums = []
    for start in range(0, resamples, chunk):
        drawn = rng.integers(n, size=(min(chunk, resamples - start), n))
        sums.append(rows[:, drawn].sum(axis=2))
    total, (memory, distance) = rows.sum(axis=1)[0], rows.sum(axis=1)[1:]
    if total <= 1e-9 * n:
        return Retention((np.nan,) * 3, (np.nan,) * 3)
    drawn_sums = np.concatenate(sums, axis=1)
    kept = drawn_sums[:, drawn_sums[0] > 0]
    ratios = kept[1:] / kept[0] if kept.size else np.full((2, 1), np.nan)
    ends = np.percentile(ratios, [2.5, 97.5], axis=1)
    return Retention(
        (float(memory / total), float(ends[0, 0]), float(ends[1, 0])),
        (float(distance / total), float(ends[0, 1]), float(ends[1, 1])),
    )


def _nearest_mean(positions: Array, values: Array, queries: Array, radius: float) -> Array:
    """Mean of the `values` at the 30 `positions` nearest to each query, ``(q,)``.

    Positions further than `radius` do not count; NaN where fewer than 3 remain.
    """
    order = np.argsort(positions, kind="stable")
    line, sums = positions[order], np.concatenate([[0.0], np.cumsum(values[order])])
    first = np.searchsorted(line, queries - radius, "left")
    end = np.searchsorted(line, queries + radius, "right")
    size = np.minimum(_NEIGHBOURS, end - first)
    low, high = first, end - size
    while np.any(low < high):  # the first window whose left end is no further than what follows it
        middle = (low + high) // 2
        after = line[np.minimum(middle + size, line.size - 1)]
        move = (low < high) & (queries - line[np.minimum(middle, line.size - 1)] > after - queries)
        low, high = np.where(move, middle + 1, low), np.where(move, high, np.minimum(high, middle))
    enough = size >= min(_NEAR, line.size)
    total = sums[low + size] - sums[low]
    return np.divide(total, size, out=np.full(queries.shape, np.nan), where=enough)


def finite(scores: npt.ArrayLike) -> Array:
    """Scores with infinities made large numbers and NaN the lowest of all, ``(n,)``."""
    array = np.asarray(scores, dtype=np.float64)
    return np.nan_to_num(array, nan=-1e300, posinf=1e300, neginf=-1e300)
