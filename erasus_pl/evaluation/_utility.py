"""What unlearning cost the model on the data it was to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from erasus_pl.evaluation._rule import GOLDS
from erasus_pl.evaluation.evidence import ModelRecord

__all__ = ["Utility", "utility"]

_TOLERATED_LOSS = 0.02
_SIGNIFICANT = 2.58  # standard errors: 1 %, two-sided


@dataclass
class Utility:
    """What was lost, in words; what was compared; the numbers.

    Attributes:
        splits: ``"3.1 points of accuracy on test data"`` for each split that lost.
        reasons: One sentence for each split.
        statistics: ``"<split> accuracy drop"``, in [-1, 1].
    """

    splits: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    statistics: dict[str, float] = field(default_factory=dict)


def utility(models: Mapping[str, ModelRecord], random_draw: bool) -> Utility:
    """Compare accuracy on retain and test data, sample by sample.

    Args:
        models: Records; held against the retrained models, or the original where there is none.
        random_draw: Whether the forget set is a random draw. If it is not and no retrained model
            is there, nobody knows what forgetting should cost on test data: retain data only.
    """
    golds = [models[key] for key in GOLDS if key in models]
    references = golds or [models["original"]]
    whose = "retrained models'" if len(golds) > 1 else f"{references[0].name} model's"
    splits = ("retain", "test") if golds or random_draw else ("retain",)
    found = Utility()
    for split in splits:
        answers = [
            np.nan_to_num(record.correct.get(split, np.empty(0)))
            for record in (*references, models["unlearned"])
        ]
        if any(values.size == 0 for values in answers):
            continue
        *before, after = answers
        difference = np.mean(before, axis=0) - after
        drop, error = float(difference.mean()), float(difference.std() / np.sqrt(after.size))
        spread = float(np.ptp([values.mean() for values in before]))
        found.statistics[f"{split} accuracy drop"] = drop
        change, low, high = (-100 * (drop + k * error) for k in (0, 1.96, -1.96))
        found.reasons.append(
            f"Accuracy on {split} data is {100 * after.mean():.1f} %: {change:+.1f} points "
            f"[{low:+.1f}, {high:+.1f}] against the {whose} {100 * np.mean(before):.1f} %."
        )
        if drop > _TOLERATED_LOSS + 2 * spread and drop > _SIGNIFICANT * error:
            found.splits.append(f"{100 * drop:.1f} points of accuracy on {split} data")
    return found
