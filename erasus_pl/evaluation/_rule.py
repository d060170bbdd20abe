"""The rule behind the verdict: which scales decide, and what they accept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

from erasus_pl.evaluation.evidence import ModelRecord
from erasus_pl.evaluation.retention import (
    Retention,
    Trace,
    calibrated,
    finite,
    retention,
    seed_noise,
    trace,
)

__all__ = ["GOLDS", "NEEDED_SHARED", "NEEDED_SUPPORT", "Scale", "scales", "values"]

Array = npt.NDArray[np.float64]

GOLDS = ("retrained", "retrained_2")
NEEDED_SHARED = 0.08
NEEDED_SUPPORT = {"confidence": 8.0, "answers": 20.0, "random draw": 16.0}
_BASE = {"confidence": 0.2, "answers": 0.1}
_SLOPE = {"confidence": 3.0, "answers": 4.0}
_DRAW_NOISE = 0.15
_DRAW_BACKGROUND = 0.25
_DRAW_LIMIT = 0.4
_ALIKE = 0.05


@dataclass(frozen=True)
class Scale:
    """One scale of the comparison: what there is to forget, and what the model retains of it.

    Attributes:
        name: ``"confidence"`` or ``"answers"``.
        trace: What the original carries.
        retention: What the unlearned model retains.
        limit: Of retained memory; None where the scale cannot decide. It depends on the original
            and the retrained models only.
    """

    name: str
    trace: Trace
    retention: Retention
    limit: float | None

    @property
    def fault(self) -> Literal["memory", "distance"] | None:
        """What the model fails by; None where it fails by nothing, or the scale cannot decide."""
        if self.limit is None:
            return None
        if self.retention.memory[0] > self.limit:
            return "memory"
        return "distance" if self.retention.distance[0] >= 1 else None


def scales(
    models: Mapping[str, ModelRecord], random_draw: bool, resamples: int
) -> tuple[Scale, Scale]:
    """Measure the unlearned model by confidence and by answers.

    Args:
        models: Records of the original, the unlearned and two retrained models.
        random_draw: Whether the forget set is a random draw.
        resamples: Of the bootstrap.
    """
    levels, unseen_levels = (
        np.mean([finite(x) for x in side], axis=0)
        for side in (
            [models[key].scores["forget"] for key in GOLDS],
            [_unseen(models[key], "scores") for key in GOLDS],
        )
    )
    found = []
    for name in ("confidence", "answers"):
        of = {key: values(models, key, name, "forget") for key in models}
        golds = (of[GOLDS[0]], of[GOLDS[1]])
        unseen = (
            values(models, GOLDS[0], name, "unseen"),
            values(models, GOLDS[1], name, "unseen"),
        )
        carried = trace(of["original"], golds, seed_noise(golds, levels, unseen, unseen_levels))
        limit = None
        if carried.shared <= NEEDED_SHARED and carried.support >= NEEDED_SUPPORT[name]:
            limit = _BASE[name] + _SLOPE[name] * carried.shared
        elif name == "confidence" and random_draw and _draw_decides(models, carried):
            limit = _DRAW_LIMIT
        retained = retention(of["original"], golds, of["unlearned"], resamples)
        found.append(Scale(name, carried, retained, limit))
    return found[0], found[1]


def values(models: Mapping[str, ModelRecord], key: str, scale: str, split: str) -> Array:
    """Values of one model on one scale, ``(n,)``.

    Args:
        models: Records, the retrained ones among them.
        key: Of the model.
        scale: ``"confidence"`` or ``"answers"``.
        split: Of the data, or ``"unseen"`` for test and holdout together.
    """
    record = models[key]
    if scale == "answers":
        return np.nan_to_num(
            _unseen(record, "correct") if split == "unseen" else record.correct[split]
        )
    unseen = _unseen(record, "scores")
    reference = np.concatenate([_unseen(models[gold], "scores") for gold in GOLDS])
    if unseen.size == 0:
        return np.zeros(0 if split == "unseen" else record.scores[split].size)
    return calibrated(unseen if split == "unseen" else record.scores[split], unseen, reference)


def _draw_decides(models: Mapping[str, ModelRecord], carried: Trace) -> bool:
    """Whether a random draw is memorised clearly enough, and nothing contradicts the draw."""
    keys = ("original", *GOLDS)
    if (
        carried.noise > _DRAW_NOISE
        or carried.support < NEEDED_SUPPORT["random draw"]
        or any(models[key].scores.get("holdout", np.empty(0)).size == 0 for key in keys)
    ):
        return False
    first, *golds = (values(models, key, "confidence", "holdout") for key in keys)
    background = float(np.mean((first - golds[0]) * (first - golds[1])))
    return background <= _DRAW_BACKGROUND * carried.gap and all(
        ks_2samp(*(finite(models[key].scores[split]) for split in ("forget", "holdout"))).pvalue
        > _ALIKE
        for key in GOLDS
    )


def _unseen(record: ModelRecord, kind: str) -> Array:
    parts = getattr(record, kind)
    return np.concatenate([np.empty(0), *(parts[s] for s in ("test", "holdout") if s in parts)])
