"""The numbers of the report: each with its definition in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from erasus_pl.attacks import MembershipResult, membership_attack
from erasus_pl.evaluation.evidence import Measure, ModelRecord

__all__ = ["average_gap", "measure", "tug_of_war"]

_SPLITS = ("forget", "retain", "test")
_FPR = 0.01
_NO_GOLD = "Not available: there is no retrained model to compare with."
_NO_HOLDOUT = "Not available: there is no holdout data to attack with."
_NO_TIME = "Not available: the time was not recorded."

_DEFINITIONS = {
    "UA": "Unlearning accuracy: share of the forget set the model gets wrong; right is what the "
    "retrained model has, not 100 %.",
    "RA": "Retain accuracy: share of the retain set the model gets right.",
    "TA": "Test accuracy: share of the test set the model gets right.",
    "AvgGap": "Mean distance to the retrained model over UA, RA, TA and membership AUC; 0 is as "
    "good as retraining.",
    "ToW": "Tug of war: product over forget, retain and test set of one minus the distance to the "
    "retrained model's accuracy; 1 is as good as retraining.",
    "Membership AUC": "Chance that an attack by confidence ranks a forgotten sample above a "
    "holdout sample, which no model saw; 0.5 is guessing.",
    "Membership TPR at 1 % FPR": "Share of the forget set the attack finds when it wrongly accuses "
    "1 % of the holdout set; 1 % is guessing.",
    "KL to retrained": "Mean Kullback-Leibler divergence on the {} set from the retrained model's "
    "predictions to this model's, in nats; a second retrained model shows the noise floor.",
    "Seconds": "Wall-clock seconds it took to make the model.",
    "Time ratio": "Seconds divided by the seconds of retraining; below 1 is faster.",
}


def tug_of_war(accuracy: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Tug of war of Zhao et al. (2024, arXiv:2406.01257): the product of closenesses in accuracy.

    ``Π (1 - |accuracy[s] - reference[s]|)`` over forget, retain and test set.

    Args:
        accuracy: Accuracy in [0, 1] of the model, under ``"forget"``, ``"retain"`` and ``"test"``.
        reference: The same of the retrained model.

    Returns:
        In [0, 1]; 1 where all three agree.

    Raises:
        KeyError: A split is missing.

    Example:
        >>> found = {"forget": 0.5, "retain": 1.0, "test": 0.9}
        >>> round(tug_of_war(found, {"forget": 0.0, "retain": 1.0, "test": 1.0}), 3)
        0.45
    """
    return math.prod(1 - abs(accuracy[split] - reference[split]) for split in _SPLITS)


def average_gap(found: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Mean absolute difference over the keys of `found`: UA, RA, TA and the attack's AUC.

    Defined as in SalUn, Fan et al. (2024, arXiv:2310.12508), whose fourth number is another attack.

    Args:
        found: Name to value in [0, 1].
        reference: The retrained model's values under the same names.

    Raises:
        KeyError: The reference lacks a name.
        ValueError: There is nothing to average.

    Example:
        >>> round(average_gap({"UA": 0.9, "RA": 1.0}, {"UA": 1.0, "RA": 0.99}), 3)
        0.055
    """
    if not found:
        msg = "`found` must hold at least one number, got none"
        raise ValueError(msg)
    return sum(abs(value - reference[name]) for name, value in found.items()) / len(found)


def measure(models: Mapping[str, ModelRecord], resamples: int = 500) -> dict[str, list[Measure]]:
    """Take every measure of every model.

    Args:
        models: Records under ``"original"``, ``"unlearned"``, ``"retrained"``, ``"retrained_2"``.
            Distances are to ``"retrained"``; in the column of ``"retrained_2"`` they are the noise
            floor, what a change of seed alone amounts to.
        resamples: Of the bootstrap behind the attack's intervals.

    Returns:
        Model key to its measures, the same names in the same order for each model. A measure that
        cannot be taken has no value, and its definition says why.
    """
    attacks = {key: _attack(record, resamples) for key, record in models.items()}
    gold = models.get("retrained")
    reference = None if gold is None else _rates(gold, attacks["retrained"])
    return {
        key: [
            *_accuracies(record),
            *_distances(_rates(record, attacks[key]), reference),
            *_attacked(attacks[key]),
            *(_divergence(record, split, gold is not None) for split in _SPLITS),
            *_times(record, gold),
        ]
        for key, record in models.items()
    }


def _accuracy(record: ModelRecord, split: str) -> float | None:
    correct = record.correct.get(split)
    if correct is None or correct.size == 0:
        return None
    return float(np.nan_to_num(correct).mean())


def _attack(record: ModelRecord, resamples: int) -> MembershipResult | None:
    sides = [record.scores.get(split, np.empty(0)) for split in ("forget", "holdout")]
    if any(side.size == 0 for side in sides):
        return None
    return membership_attack(*sides, fpr=_FPR, resamples=resamples)


def _rates(record: ModelRecord, attack: MembershipResult | None) -> dict[str, float]:
    found = {split: _accuracy(record, split) for split in _SPLITS}
    if attack is not None:
        found["AUC"] = attack.auc
    return {name: value for name, value in found.items() if value is not None}


def _accuracies(record: ModelRecord) -> list[Measure]:
    found = []
    for name, split in zip(("UA", "RA", "TA"), _SPLITS, strict=True):
        value = _accuracy(record, split)
        if value is None:
            found.append(Measure(name, None, f"Not available: there is no {split} data."))
        else:
            found.append(Measure(name, 1 - value if name == "UA" else value, _DEFINITIONS[name]))
    return found


def _distances(rates: Mapping[str, float], reference: Mapping[str, float] | None) -> list[Measure]:
    names = ("AvgGap", "ToW")
    if reference is None:
        return [Measure(name, None, _NO_GOLD) for name in names]
    if any(split not in side for side in (rates, reference) for split in _SPLITS):
        why = "Not available: one of forget, retain and test data is missing."
        return [Measure(name, None, why) for name in names]
    tow = Measure("ToW", tug_of_war(rates, reference), _DEFINITIONS["ToW"])
    if "AUC" not in rates or "AUC" not in reference:
        return [Measure("AvgGap", None, _NO_HOLDOUT), tow]
    return [Measure("AvgGap", average_gap(rates, reference), _DEFINITIONS["AvgGap"]), tow]


def _attacked(attack: MembershipResult | None) -> list[Measure]:
    names = ("Membership AUC", "Membership TPR at 1 % FPR")
    if attack is None:
        return [Measure(name, None, _NO_HOLDOUT) for name in names]
    tpr = _DEFINITIONS[names[1]]
    if attack.note:
        tpr = f"{tpr[:-1]}; {attack.note}."
    return [
        Measure(names[0], attack.auc, _DEFINITIONS[names[0]], *attack.auc_interval),
        Measure(names[1], attack.tpr, tpr, *attack.tpr_interval),
    ]


def _divergence(record: ModelRecord, split: str, gold: bool) -> Measure:
    name = f"KL to retrained, {split}"
    value = record.kl_to_retrained.get(split)
    if value is not None:
        return Measure(name, value, _DEFINITIONS["KL to retrained"].format(split))
    why = "Not available: the task gives no divergence of predictions, or there was no data."
    return Measure(name, None, why if gold else _NO_GOLD)


def _times(record: ModelRecord, gold: ModelRecord | None) -> list[Measure]:
    made = record.seconds
    seconds = Measure("Seconds", made, _NO_TIME if made is None else _DEFINITIONS["Seconds"])
    if gold is None:
        return [seconds, Measure("Time ratio", None, _NO_GOLD)]
    if made is None or not gold.seconds:
        return [seconds, Measure("Time ratio", None, _NO_TIME)]
    return [seconds, Measure("Time ratio", made / gold.seconds, _DEFINITIONS["Time ratio"])]
