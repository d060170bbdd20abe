"""Everybody's results measured in one place: logits and weights in, AvgGap and remarks out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _common import SPLITS, logits, read

from erasus_pl.attacks import auc
from erasus_pl.evaluation.measures import average_gap
from erasus_pl.tasks.classification import logit_scaled

__all__ = ["NO_PREDICTION", "NO_WEIGHT", "Gold", "Side", "compare", "rates", "side"]

NO_WEIGHT, NO_PREDICTION = "no weight changed", "no prediction changed"
Found = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Side:
    """One method on one problem, measured.

    Attributes:
        gap: AvgGap to the retrained model; none after a crash.
        cpu: CPU seconds of the unlearning call; none after a crash.
        error: the error's line.
        weights: whether any weight changed.
        predictions: how many predictions changed, over all four sets.
        warned: whether the method said itself that it changed nothing.
    """

    gap: float | None = None
    cpu: float | None = None
    error: str | None = None
    weights: bool = True
    predictions: int = 1
    warned: bool = False

    @property
    def remark(self) -> str:
        """What it failed to do, if anything."""
        if self.error:
            return "crashed"
        if not self.weights:
            return NO_WEIGHT
        return "" if self.predictions else NO_PREDICTION


def rates(found: Found, target: Found) -> dict[str, float]:
    """UA, RA, TA and the AUC of the membership attack by confidence, forget against holdout.

    Args:
        found: split → logits, `(n, C)`.
        target: split → classes, `(n,)`.
    """
    right = {s: float((found[s].argmax(1) == target[s]).mean()) for s in SPLITS}
    score = {
        s: logit_scaled(torch.from_numpy(found[s]).double(), torch.from_numpy(target[s])).numpy()
        for s in ("forget", "holdout")
    }
    return {
        "UA": 1 - right["forget"],
        "RA": right["retain"],
        "TA": right["test"],
        "AUC": auc(score["forget"], score["holdout"]),
    }


class Gold:
    """A problem's original and retrained models, measured once.

    Args:
        folder: of the problem.
    """

    def __init__(self, folder: Path) -> None:
        problem = read(folder)
        self.about = problem.about
        self.state = {k: v.clone() for k, v in problem.network.state_dict().items()}
        self.target = {s: y.numpy() for s, (_, y) in problem.data.items()}
        self.logits = {}
        for name in ("original", "retrained", "retrained_2"):
            problem.network.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
            self.logits[name] = logits(problem.network, problem)
        self.reference = rates(self.logits["retrained"], self.target)

    def gap(self, found: Found) -> float:
        """AvgGap of a model by its logits."""
        return average_gap(rates(found, self.target), self.reference)


def side(gold: Gold, stem: str) -> Side:
    """Measure one result.

    Args:
        gold: of its problem.
        stem: of the files that a driver wrote, `.json` and, where nothing crashed, `.npz`, `.pt`.
    """
    result = json.loads(Path(f"{stem}.json").read_text())
    if result["error"]:
        return Side(error=result["error"])
    with np.load(f"{stem}.npz") as arrays:
        found = {s: arrays[s] for s in SPLITS}
    state = torch.load(f"{stem}.pt", weights_only=True)
    same = state.keys() == gold.state.keys() and all(
        torch.equal(v, gold.state[k]) for k, v in state.items()
    )
    before = gold.logits["original"]
    return Side(
        gap=gold.gap(found),
        cpu=min(result["cpu_seconds"]),
        weights=not same,
        predictions=sum(int((found[s].argmax(1) != before[s].argmax(1)).sum()) for s in SPLITS),
        warned="NoEffectWarning" in result["warnings"],
    )


def compare(theirs: Sequence[Side], ours: Sequence[Side], floor: float) -> str:
    """Who is nearer to the retrained model: `theirs`, `ours`, or `even`.

    Nearer is who has the smaller AvgGap in every seed, by more than the noise floor on average. Who
    crashed is not compared.

    Args:
        theirs: a side for each seed.
        ours: the same.
        floor: AvgGap that another seed of retraining makes.
    """
    lead = [
        o.gap - t.gap
        for t, o in zip(theirs, ours, strict=True)
        if t.gap is not None and o.gap is not None
    ]
    if not lead or len(lead) < len(theirs) or abs(sum(lead)) / len(lead) <= floor:
        return "even"
    if all(x > 0 for x in lead):
        return "theirs"
    return "ours" if all(x < 0 for x in lead) else "even"
