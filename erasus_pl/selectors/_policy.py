"""A small model of which selector, at which ratio, comes closest to the retrained model.

Each candidate, a selector with a ratio, has a ridge regression of its own on standardised features
z: ``gap(z) = a + b (z - m)``, where the gap is what its AvgGap is above Random's mean in the same
setting, and the candidate with the lowest predicted gap is taken. With a strong penalty b vanishes
and the best candidate on average remains, so that the model departs from it only as far as settings
show; the penalty is chosen by leaving out one data set at a time. So is the model judged, with its
penalty chosen anew from the data sets that are left. Data sets count alike, however many settings
they have. All of it is a few numbers, kept as JSON.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Setting", "evaluate", "learn", "predict", "read", "settings"]

Candidate = tuple[str, float]
_COLUMNS = ("dataset", "request", "strategy", "selector", "fraction", "seed", "AvgGap", "seconds")
_PENALTIES = (math.inf, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
_BASE = "Random"


@dataclass(frozen=True)
class Setting:
    """One data set, request, strategy and seed, under all candidates that ran.

    Args:
        dataset: left out as a whole when the model is judged.
        features: ``(F,)``; NaN where they have no meaning.
        gaps: AvgGap by candidate.
        seconds: the same.
    """

    dataset: str
    features: np.ndarray
    gaps: dict[Candidate, float]
    seconds: dict[Candidate, float]

    @property
    def random(self) -> float:
        """Mean AvgGap of Random over its ratios."""
        return float(np.mean([gap for (name, _), gap in self.gaps.items() if name == _BASE]))


def read(path: Path, features: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a table of runs in CSV.

    Raises:
        ValueError: it has no rows, or lacks a column.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        msg = f"{str(path)!r} has no rows; it needs one for each run"
        raise ValueError(msg)
    missing = [name for name in (*_COLUMNS, *features) if name not in rows[0]]
    if missing:
        msg = f"{str(path)!r} lacks the columns {missing}"
        raise ValueError(msg)
    return rows


def settings(rows: Iterable[Mapping[str, Any]], features: Sequence[str]) -> list[Setting]:
    """Rows by setting; runs without an AvgGap are left out.

    Raises:
        ValueError: a setting has no run of Random, or there are fewer than three data sets.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if math.isfinite(_number(row["AvgGap"])):
            key = tuple(str(row[k]) for k in ("dataset", "request", "strategy", "seed"))
            groups[key].append(row)
    found = []
    for key, group in sorted(groups.items()):
        if all(row["selector"] != _BASE for row in group):
            msg = f"setting {key} has no run of {_BASE}, which all others are held against"
            raise ValueError(msg)
        ran = [((str(r["selector"]), float(r["fraction"])), r) for r in group]
        gaps = {c: _number(r["AvgGap"]) for c, r in ran}
        seconds = {c: _number(r["seconds"]) for c, r in ran}
        values = np.array([_number(group[0][name]) for name in features])
        found.append(Setting(key[0], values, gaps, seconds))
    names = {setting.dataset for setting in found}
    if len(names) < 3:
        msg = f"the table must hold at least 3 data sets, got {sorted(names)}"
        raise ValueError(msg)
    return found


def learn(found: Sequence[Setting], features: Sequence[str], penalty: float | None = None) -> dict:
    """The model, ready for JSON.

    Args:
        found: settings.
        features: their names.
        penalty: of the slopes; chosen by leaving out data sets if not given.
    """
    if penalty is None:
        # The first of equals is the most cautious.
        penalty = min(_PENALTIES, key=lambda p: _mean(_judge(found, features, p)["learned"]))
    known = np.stack([setting.features for setting in found])
    weight = _weights(found)
    counted = weight[:, None] * np.isfinite(known)
    total = counted.sum(0)
    center = (counted * np.nan_to_num(known)).sum(0) / np.where(total > 0, total, 1)
    square = (counted * (np.nan_to_num(known) - center) ** 2).sum(0)
    scale = np.sqrt(square / np.where(total > 0, total, 1))
    z = _standard(known, center, scale)
    candidates = []
    for candidate in sorted({c for setting in found for c in setting.gaps}):
        ran = [i for i, setting in enumerate(found) if candidate in setting.gaps]
        target = np.array([found[i].gaps[candidate] - found[i].random for i in ran])
        share = weight[ran] / weight[ran].sum()
        mean, at = float(share @ target), share @ z[ran]
        slopes = np.zeros(len(features))
        if math.isfinite(penalty):
            x = z[ran] - at
            matrix = (share[:, None] * x).T @ x + penalty * np.eye(len(features))
            slopes = np.linalg.solve(matrix, (share[:, None] * x).T @ (target - mean))
        candidates.append({
            "selector": candidate[0], "fraction": candidate[1], "mean": mean,
            "at": at.tolist(), "slopes": slopes.tolist(), "settings": len(ran),
        })  # fmt: skip
    return {
        "features": list(features), "center": center.tolist(), "scale": scale.tolist(),
        "penalty": penalty if math.isfinite(penalty) else None, "candidates": candidates,
    }  # fmt: skip


def predict(model: dict, features: Mapping[str, float]) -> dict[Candidate, float]:
    """Gap above Random's that each candidate is expected to leave; the lowest is best."""
    given = np.array([features[name] for name in model["features"]], dtype=float)
    z = _standard(given, np.array(model["center"]), np.array(model["scale"]))
    return {
        (c["selector"], c["fraction"]): float(
            c["mean"] + np.array(c["slopes"]) @ (z - np.array(c["at"]))
        )
        for c in model["candidates"]
    }


def evaluate(found: Sequence[Setting], features: Sequence[str]) -> dict[str, Any]:
    """Mean AvgGap of each policy on data sets that were left out, and who beats whom.

    Policies are `learned`, `average` (the best candidate on average of the others), `random` and
    `best` (what hindsight would choose). One beats another where its AvgGap is lower by more than
    the standard error of the difference over data sets.
    """
    each = _judge(found, features, None)
    names = sorted({setting.dataset for setting in found})
    return {
        "AvgGap": {policy: _mean(values) for policy, values in each.items()},
        "by_dataset": {n: {p: v[n] for p, v in each.items()} for n in names},
        "learned_beats_average": _beats(each["learned"], each["average"]),
        "learned_beats_random": _beats(each["learned"], each["random"]),
        "average_beats_random": _beats(each["average"], each["random"]),
        "settings": len(found),
    }


def _judge(
    found: Sequence[Setting], features: Sequence[str], penalty: float | None
) -> dict[str, dict[str, float]]:
    """Mean AvgGap by policy and by the data set that was left out."""
    names = sorted({setting.dataset for setting in found})
    each: dict[str, dict[str, float]] = {p: {} for p in ("learned", "average", "random", "best")}
    for name in names:
        rest = [setting for setting in found if setting.dataset != name]
        # One data set alone says nothing of the penalty.
        few = len({setting.dataset for setting in rest}) < 2
        model = learn(rest, features, math.inf if few and penalty is None else penalty)
        average = learn(rest, features, math.inf)
        gaps: dict[str, list[float]] = {policy: [] for policy in each}
        for setting in (setting for setting in found if setting.dataset == name):
            described = dict(zip(features, setting.features, strict=True))
            for policy, by in (("learned", model), ("average", average)):
                expected = {c: g for c, g in predict(by, described).items() if c in setting.gaps}
                gaps[policy].append(setting.gaps[min(expected, key=lambda c: expected[c])])
            gaps["random"].append(setting.random)
            gaps["best"].append(min(setting.gaps.values()))
        for policy, values in gaps.items():
            each[policy][name] = float(np.mean(values))
    return each


def _beats(one: dict[str, float], other: dict[str, float]) -> bool:
    difference = np.array([one[name] - other[name] for name in one])
    error = difference.std(ddof=1) / math.sqrt(len(difference))
    return bool(difference.mean() < -error)


def _mean(by_dataset: dict[str, float]) -> float:
    return float(np.mean(list(by_dataset.values())))


def _weights(found: Sequence[Setting]) -> np.ndarray:
    names = [setting.dataset for setting in found]
    return np.array([1 / names.count(name) for name in names])


def _standard(values: np.ndarray, center: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardised; 0, which is the mean, where a value is missing or never varied."""
    varied = scale > 1e-9
    z = np.where(varied, (values - center) / np.where(varied, scale, 1), 0.0)
    # Far outside of what was seen a line says nothing more.
    return np.clip(np.nan_to_num(z, nan=0.0), -3, 3)


def _number(value: Any) -> float:
    return math.nan if value in ("", None) else float(value)
