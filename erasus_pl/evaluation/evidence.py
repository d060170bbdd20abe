"""Evidence: original, unlearned and retrained model side by side, as plain data.

The classes here need numpy and the standard library only, so that a report can be read and
rewritten on a machine that has neither torch nor the trained models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Evidence", "Measure", "ModelRecord", "Outcome", "Verdict"]

Array = npt.NDArray[np.float64]
Outcome = Literal["forgotten", "not forgotten", "inconclusive"]


@dataclass
class ModelRecord:
    """One model, measured on every split.

    Splits are ``"forget"``, ``"retain"``, ``"test"`` and ``"holdout"``; a split that was not
    measured is absent.

    Attributes:
        name: ``"original"``, ``"unlearned"``, ``"retrained"``, ``"retrained (seed 2)"``.
        seconds: Wall-clock seconds it took to train, unlearn or retrain; None when unknown.
        scores: Split to ``(n,)`` logit-scaled confidence ``log p_y - log(1 - p_y)``.
        losses: Split to ``(n,)`` per-sample loss, in nats.
        correct: Split to ``(n,)`` correctness in [0, 1].
        kl_to_retrained: Split to the mean of ``KL(p_retrained || p_model)`` in nats.
    """

    name: str
    seconds: float | None = None
    scores: dict[str, Array] = field(default_factory=dict)
    losses: dict[str, Array] = field(default_factory=dict)
    correct: dict[str, Array] = field(default_factory=dict)
    kl_to_retrained: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Measure:
    """One number of the report.

    Attributes:
        name: Short name, the same for every model.
        value: The number; None where it cannot be computed.
        definition: One sentence that says what the number is and how to read it.
        low: Lower end of the interval, where there is one.
        high: Upper end of the interval, where there is one.
    """

    name: str
    value: float | None
    definition: str
    low: float | None = None
    high: float | None = None


@dataclass
class Verdict:
    """What the numbers say, in words.

    Attributes:
        outcome: ``"forgotten"``, ``"not forgotten"`` or ``"inconclusive"``.
        headline: One sentence in plain words.
        reasons: What the outcome rests on: the tests made and their intervals.
        statistics: The numbers behind the reasons.
    """

    outcome: Outcome
    headline: str
    reasons: list[str] = field(default_factory=list)
    statistics: dict[str, float] = field(default_factory=dict)


@dataclass
class Evidence:
    """Everything a report shows.

    Attributes:
        run: Name, seed, versions, git revision, machine, config text, start time.
        manifest: Dataset fingerprint, request, counts, sha256 of the forget ids.
        coreset: ``size``, ``of``, ``selector``, ``seconds``; None when all of the forget set was
            used.
        models: Records under ``"original"``, ``"unlearned"``, ``"retrained"``, ``"retrained_2"``;
            the retrained ones may be absent.
        measures: Model key to its measures, in one fixed order.
        verdict: What the numbers say.
        curves: Name to ``(step, value)`` points of the unlearning run.
        notes: Assumptions and caveats, one sentence each.
    """

    run: dict[str, Any]
    manifest: dict[str, Any]
    coreset: dict[str, Any] | None
    models: dict[str, ModelRecord]
    measures: dict[str, list[Measure]]
    verdict: Verdict
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
