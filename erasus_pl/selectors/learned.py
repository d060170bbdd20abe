"""Learned: choose the selector, and how much to keep, by what earlier runs have shown.

A small model, learnt from runs of many selectors, ratios, strategies and data sets, predicts from
what can be measured beforehand (`FEATURES`) which candidate comes closest to the retrained model;
the candidate then does the selection. What is measured, and the model, are told in ``_describe``
and ``_policy``; choosing an algorithm by the features of a problem is Rice's "The Algorithm
Selection Problem" (Advances in Computers 1976).

The model is only followed where its own evaluation, on data sets that it did not see, says that it
beats both the candidate that is best on average and a random pick. Otherwise the candidate that is
best on average is taken, if it beats a random pick, and else a random pick, at the ratio that was
given or of everything.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from erasus_pl.selectors._describe import FEATURES, describe
from erasus_pl.selectors._policy import predict
from erasus_pl.selectors.base import Coreset, Selector
from erasus_pl.selectors.full import Full
from erasus_pl.selectors.random import Random
from erasus_pl.strategies.base import Strategy

__all__ = ["FEATURES", "Learned", "choose", "describe"]

_SHIPPED = Path(__file__).with_suffix(".json")


def choose(
    expected: dict[tuple[str, float], float], able: set[str], fraction: float | None
) -> tuple[str, float] | None:
    """The candidate with the lowest expected gap, or none.

    Args:
        expected: gap by selector and ratio.
        able: names of the selectors that can be used.
        fraction: ratio that was asked for: of each selector the nearest ratio stands for it, and
            the whole set is no candidate for a part. Without it ratios are chosen, too.
    """
    left = {c: gap for c, gap in expected.items() if c[0] in able}
    if fraction is not None:
        partial = {c: gap for c, gap in left.items() if c[1] < 1 or fraction == 1}
        left = {}
        for name in {c[0] for c in partial}:
            ratios = sorted(c[1] for c in partial if c[0] == name)
            nearest = (name, min(ratios, key=lambda r: abs(r - fraction)))
            left[nearest] = partial[nearest]
    return min(sorted(left), key=lambda c: left[c]) if left else None


class Learned(Selector):
    """Keep what the selector keeps that earlier runs speak for.

    Args:
        fraction: part of the forget set to keep, in (0, 1]; chosen, too, if neither it nor `k` is
            given.
        k: number of samples to keep.
        model: JSON that `benchmarks/learn_selector.py` wrote; that of the package if not given.
        seed: of a random pick.
    """

    paper: ClassVar[dict[str, Any]] = {
        "title": "The Algorithm Selection Problem",
        "year": 1976,
        "url": "https://doi.org/10.1016/S0065-2458(08)60520-3",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        model: str | None = None,
        seed: int = 0,
    ) -> None:
        self.free = fraction is None and k is None
        super().__init__(1.0 if self.free else fraction, k, seed)
        path = _SHIPPED if model is None else Path(model)
        self.learnt: dict[str, Any] | None = None
        if path.is_file():
            self.learnt = _load(path)
        elif model is not None:
            msg = f"`model`: there is no file {model!r}; benchmarks/learn_selector.py writes one"
            raise ValueError(msg)
        self.chosen: Selector | None = None

    def budget(self, strategy: Strategy, dataset: Any) -> int:
        """Choose a selector, and say how many samples it keeps."""
        n = len(dataset)
        k = None if self.free else self.size(n)
        candidate, why = self._candidate(strategy, None if k is None else k / n)
        self.chosen = self._make(candidate, k)
        k = self.chosen.size(n)
        name = type(self.chosen).__name__
        rank_zero_info(f"Learned: {name} keeps {k:,} of {n:,} samples: {why}")
        return k

    def select(self, strategy: Strategy, dataset: Dataset[Any], k: int) -> Coreset:
        """What the chosen selector picks."""
        assert self.chosen is not None
        torch.manual_seed(self.chosen.seed)
        return self.chosen.select(strategy, dataset, k)

    def _candidate(
        self, strategy: Strategy, fraction: float | None
    ) -> tuple[tuple[str, float] | None, str]:
        if self.learnt is None:
            return None, "nothing has been learnt yet, so a random pick"
        judged = self.learnt["evaluation"]
        able = set()
        for name in {c["selector"] for c in self.learnt["candidates"]}:
            made = self._make((name, 0.5), None)
            # No record was made for a selector that is chosen when the original has been trained.
            if made.recorder() is None and made.needs <= strategy.task.capabilities:
                able.add(name)
        gaps = judged["AvgGap"]
        if judged["learned_beats_average"] and judged["learned_beats_random"]:
            expected = predict(self.learnt, describe(strategy))
            found = choose(expected, able, fraction)
            if found is not None:
                return found, f"AvgGap of {expected[found]:+.3f} expected against a random pick"
        elif judged["average_beats_random"]:
            expected = {
                (c["selector"], c["fraction"]): c["mean"] for c in self.learnt["candidates"]
            }
            found = choose(expected, able, fraction)
            if found is not None:
                return found, (
                    f"best on average, which learning did not beat on other data (AvgGap "
                    f"{gaps['learned']:.3f} against {gaps['average']:.3f})"
                )
        return None, (
            "a random pick, which nothing that was learnt beat on other data (AvgGap "
            f"{gaps['random']:.3f})"
        )

    def _make(self, candidate: tuple[str, float] | None, k: int | None) -> Selector:
        name, fraction = ("Random", 1.0) if candidate is None else candidate
        kind: Any = _kind(name)
        if kind is Full or (k is None and fraction == 1):
            return Full()
        if kind is Random:
            return Random(None if k else fraction, k, self.seed)
        made: Selector = kind(None if k else fraction, k)
        return made


def _kind(name: str) -> type[Selector]:
    import erasus_pl.selectors as room

    kind: type[Selector] = getattr(room, name)
    return kind


def _load(path: Path) -> dict[str, Any]:
    import erasus_pl.selectors as room

    try:
        model: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        unknown = sorted(set(model["features"]) - set(FEATURES))
        unknown += [c["selector"] for c in model["candidates"] if c["selector"] not in room.__all__]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"`model`: {str(path)!r} is no model of selectors ({error!r}); learn it anew"
        raise ValueError(msg) from error
    if unknown:
        msg = f"`model`: {str(path)!r} knows {unknown}, which there are not here; learn it anew"
        raise ValueError(msg)
    return model
